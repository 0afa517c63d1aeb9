import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers import convolution
from d4s_jax.layers.convolution import CausalConv3d, FrameConv, PatchConv3d


def _reference(x, kernel, bias, strides, padding):
  numbers = ("NDHWC", "DHWIO", "NDHWC")
  y = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)
  return y + bias.reshape(1, 1, 1, 1, -1)


def _parameters(module, x, key):
  """New parameters with a bias that shows."""
  variables = nn.unbox(jax.jit(module.init)(key, x))["params"]
  return variables | ({"bias": jnp.arange(1.0, module.features + 1)} if "bias" in variables else {})


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1)])
def test_causal_convolution_on_every_platform(kernel, platform, key, monkeypatch):
  # Both forms are plain XLA, so the one for accelerators runs here too.
  monkeypatch.setattr(convolution.partitioning, "platform", lambda: platform)
  x = jax.random.normal(key, (2, 5, 4, 6, 3))
  module = CausalConv3d(7, kernel)
  params = _parameters(module, x, key)
  padding = ((kernel[0] - 1, 0), (kernel[1] // 2,) * 2, (kernel[2] // 2,) * 2)
  want = _reference(x, params["kernel"], params["bias"], (1, 1, 1), padding)
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-5)


@pytest.mark.parametrize("platform, axes", [("cpu", 4), ("tpu", 5), ("gpu", 5)])
def test_causal_convolution_has_the_form_of_the_devices_it_is_compiled_for(platform, axes):
  # Not of the machine that compiles: a plan is made for devices that are elsewhere.
  device = jax.sharding.AbstractDevice(device_kind="", num_cores=1, platform=platform)
  mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
  module, x = CausalConv3d(32), jnp.zeros((1, 3, 4, 4, 32))
  params = module.init(jax.random.key(0), x)
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.make_jaxpr(module.apply)(params, x)
  used = [e for e in traced.eqns if e.primitive.name == "conv_general_dilated"]
  assert {e.invars[0].aval.ndim for e in used} == {axes}


def test_causal_convolution_does_not_see_the_future(key):
  x = jax.random.normal(key, (1, 6, 3, 3, 2))
  module = CausalConv3d(2)
  params = jax.jit(module.init)(key, x)
  seen = jax.jit(jax.jacobian(lambda x: module.apply(params, x).sum((0, 2, 3, 4))))(x)
  reach = np.abs(seen).sum((1, 3, 4, 5)) > 0
  offset = np.arange(6)[:, None] - np.arange(6)[None]
  np.testing.assert_array_equal(reach, (offset >= 0) & (offset < 3))


def test_frame_convolution_downsamples_each_frame(key):
  x = jax.random.normal(key, (1, 3, 4, 6, 2))
  module = FrameConv(5, stride=2, padding=(0, 1))
  params = _parameters(module, x, key)
  padding = ((0, 0), (0, 1), (0, 1))
  want = _reference(x, params["kernel"][None], params["bias"], (1, 2, 2), padding)
  got = module.apply({"params": params}, x)
  assert got.shape == (1, 3, 2, 3, 5)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_patch_convolution_is_a_strided_convolution(key):
  x = jax.random.normal(key, (2, 4, 4, 6, 3))
  module = PatchConv3d(5, (2, 2, 3))
  params = _parameters(module, x, key)
  want = _reference(x, params["kernel"], params["bias"], (2, 2, 3), "VALID")
  np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-5)
