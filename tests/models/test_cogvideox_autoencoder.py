import copy
import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS
from d4s_jax.models.cogvideox.autoencoder import CogVideoXAutoencoder
from d4s_jax.models.cogvideox.chunks import ChunkNorm, Chunks
from tests.models.cogvideox_oracle import autoencoder_parameters, channel_last, torch_autoencoder

SMALL = dict(widths=(4, 6, 8), z_dim=3, num_res_blocks=1, groups=2, scale=0.7)


@functools.cache
def _pair():
  """A PyTorch model and ours with the same random weights."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = torch_autoencoder(SMALL)
  for name, parameter in model.named_parameters():
    if "norm" in name and parameter.ndim == 1 and "conv" not in name:
      torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.3)
  params = autoencoder_parameters({n: v.numpy() for n, v in model.state_dict().items()}, SMALL)
  return torch, model, CogVideoXAutoencoder(**SMALL), {"params": params}


@pytest.mark.parity
def test_tree_is_that_of_the_module():
  _, _, ours, variables = _pair()
  shapes = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))
  assert jax.tree.map(jnp.shape, nn.unbox(shapes)) == jax.tree.map(jnp.shape, variables)


# 13 frames are one chunk of 13; 21 are one of 13 and one of 8.
@pytest.mark.parity
@pytest.mark.parametrize("frames", [1, 9, 13, 21])
def test_encode_equals_diffusers(frames):
  torch, model, ours, variables = _pair()
  video = 2 * torch.rand(2, 3, frames, 8, 12) - 1
  with torch.no_grad():
    posterior = model.encode(video).latent_dist
  encode = jax.jit(functools.partial(ours.apply, method="encode"))
  mean, log_variance = encode(variables, channel_last(video, 1))
  assert mean.shape == (2, 1 + (frames - 1) // 4, 2, 3, 3)
  # 2e-5: float32 sums in another order, through some thirty layers.
  np.testing.assert_allclose(mean, 0.7 * channel_last(posterior.mean, 1), atol=2e-5)
  want = channel_last(posterior.logvar, 1) + 2 * np.log(0.7)
  np.testing.assert_allclose(log_variance, want, atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize("frames", [1, 3, 7])
def test_decode_equals_diffusers_for_odd_numbers_of_latents(frames):
  torch, model, ours, variables = _pair()
  z = torch.randn(2, 3, frames, 2, 3)
  with torch.no_grad():
    want = channel_last(model.decode(z).sample, 1)
  got = jax.jit(functools.partial(ours.apply, method="decode"))(variables, 0.7 * channel_last(z, 1))
  assert got.shape == (2, 4 * frames - 3, 8, 12, 3)
  # 1e-4 of the largest value: float32 sums in another order, through some forty layers.
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parity
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_gradients_equal_diffusers(method):
  torch, model, ours, variables = _pair()
  model = copy.deepcopy(model)
  if method == "encode":
    x = (2 * torch.rand(2, 3, 17, 8, 8) - 1).requires_grad_()
    out = model.encode(x).latent_dist.mean
  else:
    x = torch.randn(2, 3, 5, 2, 2).requires_grad_()
    out = model.decode(x).sample
  weights = torch.randn_like(out)
  (out * weights).sum().backward()

  @jax.jit
  def gradients(variables, x):
    def objective(variables, x):
      if method == "encode":
        got = ours.apply(variables, x, method="encode")[0] / 0.7
      else:
        got = ours.apply(variables, 0.7 * x, method="decode")
      return jnp.sum(got * channel_last(weights, 1))

    return jax.grad(objective, (0, 1))(variables, x)

  of_params, of_x = gradients(variables, channel_last(x, 1))
  want = channel_last(x.grad, 1)
  # 1e-4 of the largest entry: float32 sums over all pixels, in another order.
  np.testing.assert_allclose(of_x, want, atol=1e-4 * np.abs(want).max())
  grads = {n: p.grad for n, p in model.named_parameters()}
  zero = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
  wanted = autoencoder_parameters(
    {n: (zero[n] if g is None else g).numpy() for n, g in grads.items()}, SMALL
  )
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(of_params["params"]), jax.tree.leaves(wanted), strict=True
  ):
    size = max(np.abs(want).max(), 1.0)
    np.testing.assert_allclose(got, want, atol=2e-4 * size, err_msg=str(path))


@pytest.mark.parity
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_bfloat16_is_as_near_to_float32_as_that_of_diffusers(method):
  torch, model, ours, variables = _pair()
  x = 2 * torch.rand(2, 3, 9, 16, 24) - 1 if method == "encode" else torch.randn(2, 3, 3, 4, 6)

  def run(model, x):
    with torch.no_grad():
      out = getattr(model, method)(x)
    out = out.latent_dist.mean if method == "encode" else out.sample
    return channel_last(out.float(), 1)

  exact = run(model, x)
  theirs = run(copy.deepcopy(model).to(torch.bfloat16), x.to(torch.bfloat16))
  half = jax.jit(functools.partial(ours.clone(dtype=jnp.bfloat16).apply, method=method))
  if method == "encode":
    got = half(variables, channel_last(x, 1))[0] / 0.7
  else:
    got = half(variables, 0.7 * channel_last(x, 1))
  size = np.sqrt(np.mean(np.square(exact)))
  error, allowed = (np.sqrt(np.mean(np.square(x - exact))) / size for x in (got, theirs))
  # Both round after every layer, if not at the same places.
  assert 0 < error < 1.5 * allowed < 0.1


@pytest.mark.slow
@pytest.mark.parity
@hypothesis.settings(max_examples=12)
@hypothesis.given(
  latents=st.sampled_from([1, 3, 5]),
  batch=st.integers(1, 3),
  rows=st.integers(1, 5),
  columns=st.integers(1, 5),
  chunk=st.sampled_from([0, 2, 4]),
)
def test_every_shape_equals_diffusers(latents, batch, rows, columns, chunk):
  # Odd numbers of latents: of even ones they decode four frames of the first.
  torch, model, ours, variables = _pair()
  video = 2 * torch.rand(batch, 3, 4 * latents - 3, 4 * rows, 4 * columns) - 1
  with torch.no_grad():
    z = model.encode(video).latent_dist.mean
    want = channel_last(model.decode(z).sample, 1)
  ours, z = ours.clone(chunk=chunk), 0.7 * channel_last(z, 1)
  got, _ = jax.jit(functools.partial(ours.apply, method="encode"))(
    variables, channel_last(video, 1)
  )
  # As above: of the largest value, float32 sums in another order.
  np.testing.assert_allclose(got, z, atol=1e-4 * max(1.0, np.abs(z).max()))
  got = jax.jit(functools.partial(ours.apply, method="decode"))(variables, z)
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_even_numbers_of_latents_decode_to_the_frames_they_came_from(key):
  ours = CogVideoXAutoencoder(**SMALL)
  video = jax.random.normal(key, (1, 13, 8, 8, 3))
  shapes = jax.eval_shape(ours.init, key, video)
  assert jax.eval_shape(ours.apply, shapes, video).shape == video.shape


def test_chunks_do_not_see_later_ones(key):
  ours = CogVideoXAutoencoder(**SMALL)
  video = jax.random.normal(key, (1, 17, 8, 8, 3))
  params = nn.unbox(jax.jit(ours.init)(key, video[:, :5]))
  both = jax.jit(lambda x: (ours.apply(params, x, method="encode")[0], ours.apply(params, x)))
  latents, decoded = both(video)
  changed_latents, changed = both(video.at[:, 9:].add(jax.random.normal(key, (8, 8, 8, 3))[None]))
  np.testing.assert_array_equal(latents[:, :3], changed_latents[:, :3])
  np.testing.assert_array_equal(decoded[:, :9], changed[:, :9])
  assert not np.allclose(latents[:, 3:], changed_latents[:, 3:])


def test_chunk_norm_by_hand(key):
  x = jax.random.normal(key, (2, 7, 2, 3, 4)) * 5 + 2
  norm = ChunkNorm(groups=2)
  chunks = Chunks.of(7, 2)
  assert (chunks.count, chunks.first(7)) == (3, 3)
  got = norm.apply(nn.unbox(norm.init(key, x, chunks)), x, chunks)
  for part in (got[:, :3], got[:, 3:5], got[:, 5:]):
    for group in (part[..., :2], part[..., 2:]):
      # 1e-4: the epsilon of the normalisation.
      np.testing.assert_allclose(group.mean((1, 2, 3, 4)), 0.0, atol=1e-4)
      np.testing.assert_allclose(group.var((1, 2, 3, 4)), 1.0, atol=1e-4)


@pytest.mark.parity
def test_full_size_has_the_parameter_count_of_diffusers():
  config = PRESETS["cogvideox-2b"]["backbone"]["autoencoder"]
  ours = CogVideoXAutoencoder(**config)
  assert ours.strides == (4, 8, 8)
  shapes = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == sum(p.numel() for p in torch_autoencoder(config, "meta").parameters())
