import copy
import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax import config
from d4s_jax.models.wan.autoencoder import WanAutoencoder
from d4s_jax.weights.wan import AUTOENCODER
from tests.support import from_torch

WAN21 = dict(
  base_dim=4,
  z_dim=4,
  num_res_blocks=1,
  latents_mean=(0.5, -0.2, 0.0, 0.1),
  latents_std=(2, 1, 3, 1),
)
PATCHED = dict(
  base_dim=4,
  z_dim=3,
  num_res_blocks=2,
  dim_mult=(1, 2, 3),
  temporal_downsample=(True, True),
  patch=2,
)
WAN22 = dict(
  base_dim=4,
  decoder_base_dim=8,
  z_dim=3,
  num_res_blocks=1,
  patch=2,
  residual=True,
  latents_mean=(0.5, -0.2, 0.1),
  latents_std=(2, 1, 3),
)
VARIANTS = {"wan2.1": WAN21, "patched": PATCHED, "wan2.2": WAN22}


def _torch_model(fields, device="cpu"):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  fields = dict(fields)
  fields.pop("chunk", None)
  fields["is_residual"] = fields.pop("residual", False)
  patch = fields.pop("patch", 1)
  fields["temperal_downsample"] = fields.pop("temporal_downsample", (False, True, True))
  channels = 3 * patch**2
  with torch.device(device):
    return diffusers.AutoencoderKLWan(
      **{name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()},
      in_channels=channels,
      out_channels=channels,
      patch_size=None if patch == 1 else patch,
    ).eval()


def _parameters(module, values):
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5, *module.strides[1:], 3)))
  return from_torch(AUTOENCODER, shapes, {name: x.numpy() for name, x in values.items()})


def _video(torch, ours, frames):
  """Two clips of 2 x 3 latents."""
  _, rows, columns = ours.strides
  return 2 * torch.rand(2, 3, frames, 2 * rows, 3 * columns) - 1


def _channel_last(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


@functools.cache
def _pair(variant):
  """A PyTorch model and ours with the same random weights."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = _torch_model(VARIANTS[variant])
  for name, parameter in model.named_parameters():
    if name.endswith("gamma"):
      torch.nn.init.normal_(parameter, 1.0, 0.3)
  ours = WanAutoencoder(**VARIANTS[variant])
  return torch, model, ours, {"params": _parameters(ours, model.state_dict())}


@pytest.mark.parity
@pytest.mark.parametrize(
  "variant, frames", [("wan2.1", 1), ("wan2.1", 9), ("patched", 9), ("wan2.2", 1), ("wan2.2", 9)]
)
def test_encode_and_decode_equal_diffusers(variant, frames):
  torch, model, ours, variables = _pair(variant)
  video = _video(torch, ours, frames)
  with torch.no_grad():
    posterior = model.encode(video).latent_dist
    z = torch.randn_like(posterior.mean)
    decoded = model.decode(z).sample

  encode = jax.jit(functools.partial(ours.apply, method="encode"))
  decode = jax.jit(functools.partial(ours.apply, method="decode"))
  offset, scale = ours.latents_mean or 0.0, ours.latents_std or 1.0
  offset, scale = np.asarray(offset, np.float32), np.asarray(scale, np.float32)

  mean, log_variance = encode(variables, _channel_last(video))
  assert mean.shape == (2, 1 + (frames - 1) // 4, 2, 3, ours.z_dim)
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(mean, (_channel_last(posterior.mean) - offset) / scale, atol=1e-5)
  want = _channel_last(posterior.logvar) - 2 * np.log(scale)
  np.testing.assert_allclose(log_variance, want, atol=1e-5)

  got = decode(variables, (_channel_last(z) - offset) / scale)
  # diffusers clips what it returns.
  # 3e-5: likewise, through some thirty convolutions.
  np.testing.assert_allclose(np.clip(got, -1, 1), _channel_last(decoded), atol=3e-5)
  assert np.mean(np.abs(_channel_last(decoded)) < 1) > 0.5


@pytest.mark.parity
@pytest.mark.parametrize(
  "variant, method", [("wan2.1", "encode"), ("wan2.2", "encode"), ("wan2.2", "decode")]
)
def test_gradients_equal_diffusers(variant, method):
  torch, model, ours, variables = _pair(variant)
  model = copy.deepcopy(model)
  shape = (1, 1, 1, 1, -1)
  offset, scale = (
    np.asarray(x, np.float32).reshape(shape) for x in (ours.latents_mean, ours.latents_std)
  )
  if method == "encode":
    x = _video(torch, ours, 9).requires_grad_()
    out = model.encode(x).latent_dist.mean
  else:
    x = torch.randn(2, ours.z_dim, 3, 2, 3).requires_grad_()
    out = model.decode(x).sample
  weights = torch.randn_like(out)
  (out * weights).sum().backward()

  @jax.jit
  def gradients(variables, x):
    def objective(variables, x):
      if method == "encode":
        got = ours.apply(variables, x, method="encode")[0] * scale
      else:
        # diffusers clips what it returns.
        got = jnp.clip(ours.apply(variables, (x - offset) / scale, method="decode"), -1, 1)
      return jnp.sum(got * _channel_last(weights))

    return jax.grad(objective, (0, 1))(variables, x)

  of_params, of_x = gradients(variables, _channel_last(x))
  want = _channel_last(x.grad)
  # 1e-4 of the largest entry: float32 sums over all pixels, in another order.
  np.testing.assert_allclose(of_x, want, atol=1e-4 * np.abs(want).max())
  wanted = {
    name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in model.named_parameters()
  }
  wanted = _parameters(ours, wanted)
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(of_params["params"]), jax.tree.leaves(wanted)
  ):
    size = max(np.abs(want).max(), 1.0)
    np.testing.assert_allclose(got, want, atol=2e-4 * size, err_msg=str(path))


@pytest.mark.parity
@pytest.mark.parametrize("method", ["encode", "decode"])
@pytest.mark.parametrize("variant", ["wan2.1", "wan2.2"])
def test_bfloat16_is_as_near_to_float32_as_that_of_diffusers(variant, method):
  torch, model, ours, variables = _pair(variant)
  x = _video(torch, ours, 9) if method == "encode" else torch.randn(1, ours.z_dim, 3, 2, 3)
  offset, scale = (np.asarray(y, np.float32) for y in (ours.latents_mean, ours.latents_std))

  def run(model, x):
    with torch.no_grad():
      out = getattr(model, method)(x)
    return _channel_last((out.latent_dist.mean if method == "encode" else out.sample).float())

  exact = run(model, x)
  theirs = run(copy.deepcopy(model).to(torch.bfloat16), x.to(torch.bfloat16))
  half = jax.jit(functools.partial(ours.clone(dtype=jnp.bfloat16).apply, method=method))
  if method == "encode":
    got = np.asarray(half(variables, _channel_last(x))[0]) * scale + offset
  else:
    got = np.clip(half(variables, (_channel_last(x) - offset) / scale), -1, 1)
  size = np.sqrt(np.mean(np.square(exact)))
  error, allowed = (np.sqrt(np.mean(np.square(y - exact))) / size for y in (got, theirs))
  # Both round after every layer, if not at the same places.
  assert 0 < error < 1.5 * allowed < 0.1


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("variant", ["wan2.1", "wan2.2"])
@hypothesis.settings(max_examples=12)
@hypothesis.given(
  latents=st.integers(1, 4),
  batch=st.integers(1, 3),
  rows=st.integers(1, 5),
  columns=st.integers(1, 5),
  chunk=st.integers(0, 2),
)
def test_every_shape_equals_diffusers(variant, latents, batch, rows, columns, chunk):
  torch, model, ours, variables = _pair(variant)
  time, height, width = ours.strides
  shape = (batch, 3, 1 + time * (latents - 1), rows * height, columns * width)
  video = 2 * torch.rand(shape) - 1
  with torch.no_grad():
    z = model.encode(video).latent_dist.mean
    decoded = _channel_last(model.decode(z).sample)
  ours = ours.clone(chunk=chunk)
  got, _ = jax.jit(functools.partial(ours.apply, method="encode"))(variables, _channel_last(video))
  offset, scale = (np.asarray(x, np.float32) for x in (ours.latents_mean, ours.latents_std))
  want = (_channel_last(z) - offset) / scale
  # 3e-5: float32 sums in another order, through some thirty convolutions.
  np.testing.assert_allclose(got, want, atol=3e-5)
  got = jax.jit(functools.partial(ours.apply, method="decode"))(variables, want)
  np.testing.assert_allclose(np.clip(got, -1, 1), decoded, atol=3e-5)


def test_first_frame_and_past_do_not_see_the_future(key):
  ours = WanAutoencoder(
    base_dim=4, z_dim=2, num_res_blocks=1, dim_mult=(1, 1, 1), temporal_downsample=(True, True)
  )
  video = jax.random.normal(key, (1, 9, 8, 8, 3))
  params = nn.unbox(jax.jit(ours.init)(key, video[:, :5]))
  both = jax.jit(lambda x: (ours.apply(params, x, method="encode")[0], ours.apply(params, x)))
  latents, decoded = both(video)
  changed_latents, changed = both(video.at[:, 5:].add(1.0))
  np.testing.assert_array_equal(latents[:, :2], changed_latents[:, :2])
  np.testing.assert_array_equal(decoded[:, :5], changed[:, :5])
  assert not np.allclose(latents[:, 2], changed_latents[:, 2])


def test_wrong_number_of_statistics_is_refused(key):
  ours = WanAutoencoder(base_dim=2, z_dim=3, latents_mean=(0.0, 1.0))
  with pytest.raises(ValueError, match="2 and 3 entries; expected one for each of the 3"):
    jax.eval_shape(ours.init, key, jnp.zeros((1, 1, 8, 8, 3)))


def _config(preset):
  if preset == "wan2.2":
    return config._WAN22_AUTOENCODER
  return config.PRESETS[preset]["backbone"]["autoencoder"]


def test_channels_that_no_shortcut_can_make_are_refused(key):
  for change in ({"base_dim": 3, "dim_mult": (1, 5)}, {"decoder_base_dim": 5, "dim_mult": (1, 3)}):
    ours = WanAutoencoder(
      **WAN22 | change | {"temporal_downsample": (False,)} | dict(latents_mean=(), latents_std=())
    )
    with pytest.raises(ValueError, match="don't divide"):
      jax.eval_shape(ours.init, key, jnp.zeros((1, 1, 4, 4, 3)))


@pytest.mark.parity
@pytest.mark.parametrize("preset", ["tiny", "wan1.3b", "paper", "wan2.2"])
def test_presets_have_the_parameter_count_of_diffusers(preset):
  fields = _config(preset)
  ours = WanAutoencoder(**fields)
  assert ours.strides == {"wan2.2": (4, 16, 16), "tiny": (2, 4, 4)}.get(preset, (4, 8, 8))
  shapes = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == sum(p.numel() for p in _torch_model(fields, "meta").parameters())


@pytest.mark.parity
def test_statistics_are_the_published_ones():
  published = _torch_model({}, "meta").config
  ours = _config("wan1.3b")
  assert list(ours["latents_mean"]) == published["latents_mean"]
  assert list(ours["latents_std"]) == published["latents_std"]
