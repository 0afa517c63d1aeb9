"""Transposed convolution from a token grid to a map of every frame."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import constrain, partitioned


class Deconvolution(nn.Module):
  """Transposed convolution with stride (t, s, s), kernel (t + 1, s, s) and padding (t / 2, 0, 0).

  f tokens become (f - 1) t - 2 (t / 2) + (t + 1) = (f - 1) t + 1 frames: 13 become 49 at t = 4.
  Written as one matrix product per token, which lays down t + 1 frames of s x s cells, and a sum
  where the last frame of a token falls on the first of the next: the same function, without the
  strided backward convolutions that are slow on most devices.

  Attributes:
    features: channels of the map.
    stride: t (even), s and s.
    scale: deviation of the map at initialisation, for tokens of unit variance.
    dtype: compute dtype.
  """

  features: int
  stride: tuple[int, int, int]
  scale: float = 1.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b F H W {self.features}"]:
    """Decodes a grid of tokens."""
    time, *space = self.stride
    if time % 2:
      raise ValueError(
        f"Stride {time} in time must be even, so that f tokens give 1 + {time}k frames."
      )
    tokens, channels = x.shape[1], x.shape[-1]
    # Left to itself where tokens are cut, XLA made a gradient of the kernel that was wrong by its
    # own size (jax 0.10.2, 8 CPU devices, fsdp 2 x ulysses 4).
    x = constrain(x, "batch", *4 * (None,))
    # A cell is the product of one token, or of two where frames meet, with a [c, features] matrix.
    init = nn.initializers.normal(self.scale / channels**0.5)
    init = partitioned(init, None, None, None, "embed", "channels")
    shape = (time + 1, *space, channels, self.features)
    kernel = self.param("kernel", init, shape).astype(self.dtype)
    y = x.astype(self.dtype) @ rearrange(kernel, "t r s c d -> c (t r s d)")
    y = rearrange(y, "b f h w (t r s d) -> b f t (h r) (w s) d", t=time + 1, r=space[0], s=space[1])
    own = jnp.pad(y[:, :, :time], ((0, 0), (0, 1)) + ((0, 0),) * 4)
    spill = jnp.pad(y[:, :, time:], ((0, 0), (1, 0), (0, time - 1)) + ((0, 0),) * 3)
    y = rearrange(own + spill, "b f t h w d -> b (f t) h w d")
    first = time // 2
    y = y[:, first : first + (tokens - 1) * time + 1]
    bias_init = partitioned(nn.initializers.zeros, "channels")
    bias = self.param("bias", bias_init, (self.features,)).astype(self.dtype)
    return y + bias.reshape(1, 1, 1, 1, -1)
