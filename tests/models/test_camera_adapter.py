import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.camera_adapter import CameraAdapter


@pytest.fixture(scope="module")
def case():
  key = jax.random.key(0)
  maps = jax.random.normal(key, (2, 9, 8, 16, 6))
  module = CameraAdapter((4, 8, 8))
  return module, nn.unbox(jax.jit(module.init)(key, maps))["params"], maps


def test_shape_is_that_of_the_latents(case):
  module, params, maps = case
  features = jax.jit(lambda m: module.apply({"params": params}, m))(maps)
  assert features.shape == (2, 3, 1, 2, 48)
  # A single group: zero mean and unit variance over each whole clip. 1e-3: its epsilon.
  np.testing.assert_allclose(features.mean((1, 2, 3, 4)), 0.0, atol=1e-5)
  np.testing.assert_allclose(features.var((1, 2, 3, 4)), 1.0, atol=1e-3)


def test_time_is_padded_by_repeating_the_first_frame(case):
  module, params, maps = case
  convolved = []
  for i in range(3):
    frames = maps[:, [0, 0, 0, 0]] if i == 0 else maps[:, 4 * i - 3 : 4 * i + 1]
    patches = frames.reshape(2, 4, 8, 2, 8, 6).transpose(0, 3, 1, 2, 4, 5).reshape(2, 2, -1)
    convolved.append(patches @ params["conv"]["kernel"].reshape(-1, 48))
  want = jnp.stack(convolved, axis=1) + params["conv"]["bias"].reshape(1, 1, 1, -1)
  want = (want - want.mean((1, 2, 3), keepdims=True)) / want.std((1, 2, 3), keepdims=True)
  got = jax.jit(lambda m: module.apply({"params": params}, m))(maps)
  # 1e-4: the epsilon of the normalisation.
  np.testing.assert_allclose(got[:, :, 0], want, atol=1e-4)


@pytest.mark.parity
def test_equals_torch(case):
  torch = pytest.importorskip("torch")
  module, params, maps = case
  draw = np.random.default_rng(0).standard_normal
  params = jax.tree.map(lambda p: p + 0.1 * draw(p.shape, np.float32), params)
  x = torch.tensor(np.array(maps)).permute(0, 4, 1, 2, 3)
  x = torch.cat([x[:, :, :1]] * 3 + [x], dim=2)
  weight = torch.tensor(np.array(params["conv"]["kernel"])).permute(4, 3, 0, 1, 2)
  bias, scale, shift = (
    torch.tensor(np.array(p))
    for p in (params["conv"]["bias"], params["norm"]["scale"], params["norm"]["bias"])
  )
  x = torch.nn.functional.conv3d(x, weight, bias, stride=(4, 8, 8))
  want = torch.nn.functional.group_norm(x, 1, scale, shift).permute(0, 2, 3, 4, 1)
  got = jax.jit(lambda m: module.apply({"params": params}, m))(maps)
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(got, want, atol=1e-5)
