"""Channel-last convolutions over video: causal in time, frame by frame, and over patches."""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers import partitioning
from d4s_jax.layers.linear import XAVIER
from d4s_jax.layers.partitioning import partitioned
from d4s_jax.layers.past import preceded

# On a CPU, the time taps of fewer channels are convolved faster side by side than one by one.
_FEW = 24
_UNIFORM = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class CausalConv3d(nn.Module):
  """Convolution whose output frame i sees input frames <= i only.

  Zeros stand for the frames before the first one, and around the image; the size stays.

  Attributes:
    features: channels of the output.
    kernel_size: frames, rows, columns.
    dtype: compute dtype.
    repeat_first: the first frame itself stands for the frames before it (CogVideoX).
  """

  features: int
  kernel_size: tuple[int, int, int] = (3, 3, 3)
  dtype: DTypeLike = jnp.float32
  repeat_first: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w {self.features}"]:
    """Convolves a clip, or the next chunk of one (`layers.past`)."""
    kernel, bias = parameters(self, (*self.kernel_size, x.shape[-1], self.features))
    frames, taps = x.shape[1], self.kernel_size[0]
    if taps > 1:
      before = x[:, :1] if self.repeat_first else jnp.zeros_like(x[:, :1])
      x = preceded(self, x, jnp.repeat(before, taps - 1, axis=1), taps - 1)
    if partitioning.platform() == "cpu":
      # XLA's 2D convolution runs at several times the speed of its 3D one there.
      return convolve_taps([x[:, i : i + frames] for i in range(taps)], kernel, bias)
    return _add(_convolve(x, kernel, padding=_same(kernel, spatial=3)), bias)


class FrameConv(nn.Module):
  """The same 2D convolution in every frame.

  Attributes:
    features: channels of the output.
    kernel_size: rows, columns.
    stride: step between output pixels.
    padding: zeros before and after the rows and columns.
    dtype: compute dtype.
    kernel_init: initialiser of the kernel as a matrix [pixels and channels in, features].
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  stride: int = 1
  padding: tuple[int, int] = (1, 1)
  dtype: DTypeLike = jnp.float32
  kernel_init: Callable = _UNIFORM

  @nn.compact
  def __call__(self, x: Float[Array, "b f H W c"]) -> Float[Array, "b f h w {self.features}"]:
    """Convolves each frame by itself."""
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel, bias = parameters(self, shape, self.kernel_init)
    batch = x.shape[0]
    x = rearrange(x, "b f h w c -> (b f) h w c")
    x = _convolve(x, kernel, padding=[self.padding] * 2, strides=(self.stride,) * 2)
    return _add(rearrange(x, "(b f) h w c -> b f h w c", b=batch), bias)


class PatchConv3d(nn.Module):
  """Convolution whose stride is its kernel: one matrix product over disjoint patches.

  Attributes:
    features: channels of the output.
    patch: frames, rows, columns of a patch.
    dtype: compute dtype.
    use_bias: whether to add a bias.
    kernel_init: initialiser of the kernel as a matrix [pixels of a patch * c, features].
    axes: logical names of the input and output channels.
  """

  features: int
  patch: tuple[int, int, int]
  dtype: DTypeLike = jnp.float32
  use_bias: bool = True
  kernel_init: Callable = XAVIER
  axes: tuple[str | None, str | None] = (None, "embed")

  @nn.compact
  def __call__(self, x: Float[Array, "b F H W c"]) -> Float[Array, "b f h w {self.features}"]:
    """Embeds each patch; the patch must divide the size of `x`."""
    frames, rows, columns = self.patch
    init = partitioned(_as_matrix(self.kernel_init), None, None, None, *self.axes)
    kernel = self.param("kernel", init, (*self.patch, x.shape[-1], self.features))
    x = rearrange(
      x.astype(self.dtype),
      "b (f pf) (h ph) (w pw) c -> b f h w (pf ph pw c)",
      pf=frames,
      ph=rows,
      pw=columns,
    )
    x = x @ rearrange(kernel.astype(self.dtype), "pf ph pw c d -> (pf ph pw c) d")
    if not self.use_bias:
      return x
    bias = self.param("bias", partitioned(nn.initializers.zeros, self.axes[1]), (self.features,))
    return _add(x, bias.astype(self.dtype))


def parameters(
  module, shape: tuple[int, ...], kernel_init: Callable = _UNIFORM
) -> tuple[Array, Array]:
  """Kernel and bias of a convolution module in its dtype; `shape` ends with channels in, out."""
  axes = (None,) * (len(shape) - 1) + ("channels",)
  kernel = module.param("kernel", partitioned(_as_matrix(kernel_init), *axes), shape)
  bias = module.param("bias", partitioned(nn.initializers.zeros, "channels"), shape[-1:])
  return kernel.astype(module.dtype), bias.astype(module.dtype)


def _as_matrix(init: Callable) -> Callable:
  """Initialises a kernel as the matrix [pixels and channels in, channels out].

  The fans are then those of a patch, and XLA compiles random numbers of two dimensions ten times
  faster than those of five.
  """
  return lambda key, shape: init(key, (math.prod(shape[:-1]), shape[-1])).reshape(shape)


def convolve_taps(
  taps: Sequence[Float[Array, "b f h w c"]],
  kernel: Float[Array, "t r s c d"],
  bias: Float[Array, "d"],
) -> Float[Array, "b f h w d"]:
  """A 3D convolution as 2D ones: frame i of tap j is what time tap j of output i sees."""
  batch, channels = taps[0].shape[0], taps[0].shape[-1]
  if channels < _FEW:
    taps = [jnp.concatenate(taps, axis=-1)]
    kernel = rearrange(kernel, "t r s c d -> 1 r s (t c) d")
  padding = _same(kernel, spatial=2)
  parts = [
    _convolve(rearrange(tap, "b f h w c -> (b f) h w c"), part, padding=padding)
    for tap, part in zip(taps, kernel)
  ]
  x = functools.reduce(jnp.add, parts)
  return _add(rearrange(x, "(b f) h w c -> b f h w c", b=batch), bias)


def _convolve(x: Array, kernel: Array, padding, strides: tuple[int, ...] | None = None) -> Array:
  """Channel-last convolution over all axes between the first and the last."""
  spatial = "DHW"[-(x.ndim - 2) :]
  numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
  strides = strides or (1,) * len(spatial)
  x = x.astype(kernel.dtype)
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def _same(kernel: Array, spatial: int) -> list[tuple[int, int]]:
  """Padding that keeps rows and columns; time, the third axis from the right, is padded already."""
  rows, columns = kernel.shape[-4:-2]
  space = [(rows // 2, rows // 2), (columns // 2, columns // 2)]
  return [(0, 0)] * (spatial - 2) + space


def _add(x: Array, bias: Array) -> Array:
  return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
