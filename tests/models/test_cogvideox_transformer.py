import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS
from d4s_jax.models.cogvideox.positions import grid_positions, rotary_positions, sine_positions
from d4s_jax.models.cogvideox.transformer import CogVideoXTransformer
from d4s_jax.models.condition import Condition
from tests.models.cogvideox_oracle import (
  channel_last,
  rotary,
  torch_transformer,
  transformer_parameters,
)

SMALL = dict(heads=2, head_dim=16, depth=2, out_channels=4, time_dim=24, text_length=7)
# The published variants, at the size of these tests: 3 or 4 latent frames of 4 x 6.
VARIANTS = {
  "2b": dict(positions="sine"),
  "5b": dict(grid=(3, 6, 7)),
  "5b-i2v": dict(positions="learned", grid=(3, 2, 3), takes_image=True),
  "1.5-5b": dict(patch=(2, 2, 2)),
  "1.5-5b-i2v": dict(patch=(2, 2, 2), takes_image=True, offset=True),
}
FULL = {
  preset.removeprefix("cogvideox-"): model["backbone"]["transformer"]
  for preset, model in PRESETS.items()
  if preset.startswith("cogvideox-")
}


@functools.cache
def _case(variant):
  """A PyTorch model, ours with the same random weights, and inputs."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  config = SMALL | VARIANTS[variant]
  model = torch_transformer(config, text_dim=20)
  for name, parameter in model.named_parameters():
    if "norm" in name and "linear" not in name:
      torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.3)
  if config.get("positions") == "learned":
    torch.nn.init.normal_(model.patch_embed.pos_embedding)
  frames = 4 if config.get("patch") else 3
  latents = torch.randn(2, frames, 8 if config.get("takes_image") else 4, 4, 6)
  text, time = torch.randn(2, 7, 20), torch.tensor([900.0, 17.0])
  params = transformer_parameters({n: v.numpy() for n, v in model.state_dict().items()}, config)
  return torch, config, model, params, latents, text, time


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_equal_diffusers(variant):
  torch, config, model, params, latents, text, time = _case(variant)
  module = CogVideoXTransformer(**config)
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), channel_last(latents), time.numpy(), text.numpy()
  )
  assert jax.tree.map(jnp.shape, nn.unbox(shapes)["params"]) == jax.tree.map(jnp.shape, params)

  latents, text = latents.clone().requires_grad_(), text.clone().requires_grad_()
  model.zero_grad()
  frames = latents.shape[1] // config.get("patch", (1, 2, 2))[0]
  velocity = model(
    latents,
    text,
    time,
    ofs=torch.full((1,), 2.0) if config.get("offset") else None,
    image_rotary_emb=rotary(config, frames, 2, 3),
  ).sample
  weights = torch.randn_like(velocity)
  (velocity * weights).sum().backward()

  @jax.jit
  def ours(params, latents, text):
    def objective(params, latents, text):
      got = module.apply({"params": params}, latents, jnp.asarray(time.numpy()), text)
      return jnp.sum(got * channel_last(weights)), got

    return jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(params, latents, text)

  (_, got), gradients = ours(params, channel_last(latents), text.detach().numpy())
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(got, channel_last(velocity), atol=1e-5)
  of_params = {n: p.grad.numpy() for n, p in model.named_parameters()}
  # The learnt positions are a buffer there, without a gradient.
  of_params |= {n: v.numpy() for n, v in model.named_buffers() if n in model.state_dict()}
  wanted = (
    transformer_parameters(of_params, config),
    channel_last(latents.grad),
    text.grad.numpy(),
  )
  for tree in (gradients[0], wanted[0]):
    tree.pop("positions", None)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted), strict=True
  ):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    largest = np.abs(b).max()
    if config.get("positions") == "sine" and name.endswith("attention/key_norm/bias"):
      # Without rotation it adds the same to all logits of a query, which softmax takes away: both
      # are rounding errors of 0, here of entries of order 1.
      assert largest < 1e-5
      largest = 0.1
    # 1e-4 of the largest entry: sums over tokens, samples and channels.
    np.testing.assert_allclose(a, b, atol=1e-4 * largest, rtol=0, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 30, 45), (2, 16, 16), (5, 9, 33), (2, 48, 20)])
def test_rotary_positions_equal_diffusers_at_every_shape(grid):
  for trained in (None, (13, 30, 45)):
    cos, sin = rotary(dict(head_dim=64, grid=trained), *grid)
    axes = grid_positions(*grid, None if trained is None else trained[1:])
    got = rotary_positions(axes, 64)
    # 1e-5: diffusers computes positions and angles in float32.
    np.testing.assert_allclose(got[0], cos[:, ::2], atol=1e-5)
    np.testing.assert_allclose(got[1], sin[:, ::2], atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 6, 9)])
def test_sine_positions_equal_diffusers(grid):
  embeddings = pytest.importorskip("diffusers.models.embeddings")
  want = embeddings.get_3d_sincos_pos_embed(64, (grid[2], grid[1]), grid[0], 1.875)
  got = sine_positions(grid_positions(*grid), 64)
  # 5e-7: float32 holds angles from 4 to 8 in steps of that size.
  np.testing.assert_allclose(got, want.reshape(-1, 64), atol=5e-7, rtol=0)


@functools.cache
def _forward(variant, **changes):
  module = CogVideoXTransformer(**(SMALL | VARIANTS[variant] | changes))
  return jax.jit(lambda params, *args: module.apply({"params": params}, *args), static_argnums=5)


def _trained(variant):
  """Parameters with no zeros but in the cameras' projection, and inputs."""
  module = CogVideoXTransformer(**(SMALL | VARIANTS[variant]))
  frames = 4 if VARIANTS[variant].get("patch") else 3
  channels = 8 if VARIANTS[variant].get("takes_image") else 4
  draw = np.random.default_rng(0).standard_normal
  latents, text = draw((2, frames, 4, 6, channels), np.float32), draw((2, 7, 20), np.float32)
  maps = 100.0 * draw((2, 4 * frames - 3, 32, 48, 6), np.float32)
  time = jnp.array([300.0, 800.0])
  shapes = nn.unbox(
    jax.eval_shape(module.init, jax.random.key(0), latents, time, text, jnp.asarray(maps))
  )["params"]

  def parameter(path, leaf):
    if path[-2].key == "projection":
      return jnp.zeros(leaf.shape)
    return jnp.asarray(0.2 * draw(leaf.shape, np.float32) + (path[-1].key == "scale"))

  params = jax.tree_util.tree_map_with_path(parameter, shapes)
  return params, jnp.asarray(latents), time, jnp.asarray(text), jnp.asarray(maps)


@pytest.mark.parametrize("variant", ["2b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"])
def test_cameras_change_no_bit_untrained_and_the_output_trained(variant):
  params, latents, time, text, maps = _trained(variant)
  forward = _forward(variant)
  without = forward(params, latents, time, text)
  np.testing.assert_array_equal(forward(params, latents, time, text, maps), without)
  kernel = jax.random.normal(jax.random.key(2), params["camera"]["projection"]["kernel"].shape)
  params = params | {"camera": params["camera"] | {"projection": {"kernel": kernel}}}
  got = forward(params, latents, time, text, maps.at[1].set(0.0))
  assert np.abs(got[0] - without[0]).max() > 0.1
  np.testing.assert_array_equal(got[1], without[1])


@pytest.mark.parametrize(
  "variant, known, clean", [("5b", 1, 1), ("1.5-5b", 1, 0), ("1.5-5b", 2, 1)]
)
def test_denoise_of_text_to_video_puts_clean_frames_at_time_zero(variant, known, clean):
  """Of tokens of two latents only those of which both are clean."""
  params, latents, _, text, maps = _trained(variant)
  module = CogVideoXTransformer(**(SMALL | VARIANTS[variant]))
  denoise = jax.jit(lambda *a: module.apply({"params": params}, *a, method="denoise"))
  first, sigma = 3.0 + latents[:, :known], jnp.array([0.3, 0.8])
  got = denoise(latents, sigma, text, maps, Condition(first))
  replaced = jnp.concatenate([first, latents[:, known:]], axis=1)
  times = jnp.array([299.0, 799.0])
  forward = _forward(variant)
  want = forward(params, replaced, times, text, maps, clean)
  np.testing.assert_allclose(got, want, atol=1e-5)
  without = denoise(latents, sigma, text, None, None)
  want = forward(params, latents, times, text)
  np.testing.assert_allclose(without, want, atol=1e-5)
  # The clean frame has a timestep of its own, which is 0.
  assert np.abs(forward(params, replaced, times, text, maps, 1 - clean) - got).max() > 0.01
  none = jnp.zeros(2)
  np.testing.assert_allclose(
    *(forward(params, replaced, none, text, maps, clean) for clean in (0, 1)), atol=1e-5
  )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_denoise_of_image_to_video_takes_the_image_beside_the_noise(scale):
  params, latents, _, text, maps = _trained("1.5-5b-i2v")
  module = CogVideoXTransformer(**(SMALL | VARIANTS["1.5-5b-i2v"]), image_scale=scale)
  denoise = jax.jit(lambda *a: module.apply({"params": params}, *a, method="denoise"))
  noisy, first, sigma = latents[..., :4], latents[:, :1, :, :, 4:], jnp.array([0.3, 0.8])
  got = denoise(noisy, sigma, text, maps, Condition(first))
  image = jnp.zeros_like(noisy).at[:, :1].set(scale * first)
  both = jnp.concatenate([noisy, image], axis=-1)
  want = _forward("1.5-5b-i2v")(params, both, jnp.array([299.0, 799.0]), text, maps)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - denoise(noisy, sigma, text, maps, None)).max() > 1e-3


def test_learnt_positions_are_read_between_entries_and_refuse_longer_clips():
  params, latents, time, text, _ = _trained("5b-i2v")
  forward = _forward("5b-i2v")
  # A square picture, and a shorter clip.
  assert forward(params, latents[:, :2, :4, :4], time, text).shape == (2, 2, 4, 4, 4)
  longer = jnp.concatenate([latents, latents], axis=1)
  with pytest.raises(ValueError, match="6 latent frames and 7 tokens .* at most 3 and 7"):
    forward(params, longer, time, text)


def test_remat_and_bfloat16_give_the_same_velocity():
  params, latents, time, text, _ = _trained("5b")
  want = _forward("5b")(params, latents, time, text)
  remat = _forward("5b", remat="all")(params, latents, time, text)
  # 1e-6 of up to 4: XLA may fuse, and so round, otherwise where layers are computed again.
  np.testing.assert_allclose(remat, want, atol=4e-6, rtol=0)
  half = _forward("5b", dtype=jnp.bfloat16)(params, latents, time, text)
  assert half.dtype == jnp.float32
  # 5% of the spread: eight bits of mantissa through two blocks.
  assert float(jnp.std(half - want)) < 0.05 * float(jnp.std(want))


def _full(variant):
  config = FULL[variant]
  channels = 32 if config.get("takes_image") else 16
  return jax.eval_shape(
    CogVideoXTransformer(**config).init,
    jax.random.key(0),
    jnp.zeros((1, 2, 2, 2, channels)),
    jnp.zeros(1),
    jnp.zeros((1, 226, 4096)),
  )


@pytest.mark.parity
@pytest.mark.parametrize("variant", FULL)
def test_full_sizes_have_the_parameter_count_of_diffusers(variant):
  ours = sum(x.size for x in jax.tree.leaves(_full(variant)))
  model = torch_transformer(FULL[variant], 4096, "meta")
  # The learnt positions are a buffer there.
  theirs = [*model.parameters(), *(v for n, v in model.state_dict().items() if "pos_emb" in n)]
  assert ours == sum(p.numel() for p in theirs)


def test_every_parameter_is_cut_along_one_axis_at_most():
  shapes = _full("5b-i2v")
  params, specs = nn.unbox(shapes)["params"], nn.get_partition_spec(shapes)["params"]
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    spec = functools.reduce(lambda t, key: t[key.key], path, specs)
    assert list(spec).count("embed") <= 1
    if value.size > 1_000_000:
      assert "embed" in spec, path


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(positions="polar"), "'polar'; expected 'rotary', 'sine' or 'learned'"),
    (dict(positions="learned"), "need the grid"),
    (dict(head_dim=12), "Head dimension 12 can't hold"),
    (dict(positions="sine", head_dim=20), "Width 40 can't hold"),
  ],
)
def test_impossible_positions_are_refused(change, message):
  module = CogVideoXTransformer(**(SMALL | change))
  args = jnp.zeros((1, 1, 2, 2, 4)), jnp.zeros(1), jnp.zeros((1, 7, 20))
  with pytest.raises(ValueError, match=re.escape(message)):
    jax.eval_shape(module.init, jax.random.key(0), *args)
