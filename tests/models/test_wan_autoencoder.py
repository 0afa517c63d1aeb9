import copy
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS
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
VARIANTS = {"wan2.1": WAN21, "patched": PATCHED}
# Compiled without LLVM's optimiser: these networks run once.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _torch_model(config, device="cpu"):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  config = dict(config)
  patch = config.pop("patch", 1)
  config["temperal_downsample"] = config.pop("temporal_downsample", (False, True, True))
  channels = 3 * patch**2
  with torch.device(device):
    return diffusers.AutoencoderKLWan(
      **{name: list(v) if isinstance(v, tuple) else v for name, v in config.items()},
      in_channels=channels,
      out_channels=channels,
      patch_size=None if patch == 1 else patch,
    ).eval()


def _parameters(module, values):
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))
  return from_torch(AUTOENCODER, shapes, {name: x.numpy() for name, x in values.items()})


def _video(torch, frames, size=16):
  return 2 * torch.rand(2, 3, frames, size, size + 8) - 1


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
@pytest.mark.parametrize("variant, frames", [("wan2.1", 1), ("wan2.1", 9), ("patched", 9)])
def test_encode_and_decode_equal_diffusers(variant, frames):
  torch, model, ours, variables = _pair(variant)
  video = _video(torch, frames)
  with torch.no_grad():
    posterior = model.encode(video).latent_dist
    z = torch.randn_like(posterior.mean)
    decoded = model.decode(z).sample

  encode = jit(functools.partial(ours.apply, method="encode"))
  decode = jit(functools.partial(ours.apply, method="decode"))
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
def test_gradients_of_encode_equal_diffusers():
  torch, model, ours, variables = _pair("wan2.1")
  model = copy.deepcopy(model)
  video = _video(torch, 9).requires_grad_()
  posterior = model.encode(video).latent_dist
  weights = torch.randn_like(posterior.mean)
  (posterior.mean * weights).sum().backward()
  scale = np.asarray(ours.latents_std or 1.0, np.float32)

  @jit
  def gradients(variables, video):
    def objective(variables, video):
      mean, _ = ours.apply(variables, video, method="encode")
      return jnp.sum(mean * (_channel_last(weights) * scale))

    return jax.grad(objective, (0, 1))(variables, video)

  of_params, of_video = gradients(variables, _channel_last(video))
  want = _channel_last(video.grad)
  # 1e-4 of the largest entry: float32 sums over all pixels, in another order.
  np.testing.assert_allclose(of_video, want, atol=1e-4 * np.abs(want).max())
  wanted = {
    name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in model.named_parameters()
  }
  wanted = _parameters(ours, wanted)
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(of_params["params"]), jax.tree.leaves(wanted)
  ):
    size = max(np.abs(want).max(), 1.0)
    np.testing.assert_allclose(got, want, atol=2e-4 * size, err_msg=str(path))


def test_first_frame_and_past_do_not_see_the_future(key):
  ours = WanAutoencoder(
    base_dim=4, z_dim=2, num_res_blocks=1, dim_mult=(1, 1, 1), temporal_downsample=(True, True)
  )
  video = jax.random.normal(key, (1, 9, 8, 8, 3))
  params = nn.unbox(jit(ours.init)(key, video[:, :5]))
  both = jit(lambda x: (ours.apply(params, x, method="encode")[0], ours.apply(params, x)))
  latents, decoded = both(video)
  changed_latents, changed = both(video.at[:, 5:].add(1.0))
  np.testing.assert_array_equal(latents[:, :2], changed_latents[:, :2])
  np.testing.assert_array_equal(decoded[:, :5], changed[:, :5])
  assert not np.allclose(latents[:, 2], changed_latents[:, 2])


def test_wrong_number_of_statistics_is_refused(key):
  ours = WanAutoencoder(base_dim=2, z_dim=3, latents_mean=(0.0, 1.0))
  with pytest.raises(ValueError, match="2 and 3 entries; expected one for each of the 3"):
    jax.eval_shape(ours.init, key, jnp.zeros((1, 1, 8, 8, 3)))


@pytest.mark.parity
@pytest.mark.parametrize("preset", ["tiny", "wan1.3b", "paper"])
def test_presets_have_the_parameter_count_of_diffusers(preset):
  config = PRESETS[preset]["backbone"]["autoencoder"]
  ours = WanAutoencoder(**config)
  assert ours.strides == (4, 8, 8)
  shapes = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == sum(p.numel() for p in _torch_model(config, "meta").parameters())


@pytest.mark.parity
def test_statistics_are_the_published_ones():
  config = _torch_model({}, "meta").config
  ours = PRESETS["wan1.3b"]["backbone"]["autoencoder"]
  assert list(ours["latents_mean"]) == config["latents_mean"]
  assert list(ours["latents_std"]) == config["latents_std"]
