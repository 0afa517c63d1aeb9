"""The transposed convolution against PyTorch's, and its arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.deconvolution import Deconvolution


def test_thirteen_latents_become_forty_nine_frames(key):
  module = Deconvolution(12, (4, 16, 16))
  shape = jax.eval_shape(module.init_with_output, key, jnp.zeros((1, 13, 16, 16, 8)))[0].shape
  assert (13 - 1) * 4 - 4 + 5 == 49
  assert shape == (1, 49, 256, 256, 12)


@pytest.mark.parity
@pytest.mark.parametrize(("frames", "stride"), [(1, (4, 2, 2)), (3, (4, 2, 3)), (2, (2, 1, 1))])
def test_equals_the_transposed_convolution_of_pytorch(frames, stride):
  torch = pytest.importorskip("torch")
  time, rows, columns = stride
  numbers = np.random.default_rng(0)
  x = jnp.asarray(numbers.normal(size=(2, frames, 3, 4, 6)), jnp.float32)
  kernel = jnp.asarray(numbers.normal(size=(time + 1, rows, columns, 6, 5)), jnp.float32)
  params = {"kernel": kernel, "bias": jnp.arange(5.0)}
  y = jax.jit(Deconvolution(5, stride).apply)({"params": params}, x)

  def to_torch(array, *axes):
    return torch.from_numpy(np.array(array).transpose(axes).copy())

  expected = torch.nn.functional.conv_transpose3d(
    to_torch(x, 0, 4, 1, 2, 3),
    to_torch(params["kernel"], 3, 4, 0, 1, 2),
    to_torch(params["bias"], 0),
    stride=stride,
    padding=(stride[0] // 2, 0, 0),
  )
  # Float32 sums of six products in another order.
  np.testing.assert_allclose(y, expected.numpy().transpose(0, 2, 3, 4, 1), rtol=1e-5, atol=1e-5)


def test_deviation_at_initialisation(key):
  x = jax.random.normal(key, (1, 3, 8, 8, 64))
  y, _ = jax.jit(Deconvolution(16, (4, 4, 4), scale=0.1).init_with_output)(key, x)
  # Half of the frames come from one token, the blended ones from two.
  assert 0.08 < jnp.std(y) < 0.15


def test_odd_stride_in_time_is_refused(key):
  with pytest.raises(ValueError, match="Stride 3 in time must be even"):
    Deconvolution(2, (3, 2, 2)).init(key, jnp.zeros((1, 2, 2, 2, 4)))
