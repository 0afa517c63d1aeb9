"""The chunks of time over which the autoencoder of CogVideoX takes its group statistics.

The published model is run over chunks of 8 frames (2 latents) and carries the causal past of its
convolutions from one to the next. To a convolution that is the same as the whole clip at once; to a
group normalisation it is not: each chunk is normalised by itself. That is part of the model: chunks
of another length make another, worse video. However many of them are computed at a time, the
normalisation goes by these.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.convolution import CausalConv3d
from d4s_jax.layers.partitioning import partitioned


@dataclasses.dataclass(frozen=True)
class Chunks:
  """How a clip falls into chunks: the first takes what is left over by the others.

  Attributes:
    count: number of chunks, the same at every resolution of time.
    length: frames of each chunk but the first.
    begins: whether the first chunk is that of the clip, whose first frame stands alone in time.
  """

  count: int
  length: int
  begins: bool = True

  @classmethod
  def of(cls, frames: int, length: int, begins: bool = True) -> "Chunks":
    """The chunks of a clip or a part of one; what is shorter than two chunks is a single one."""
    return cls(max(frames // length, 1), length, begins)

  def halved(self) -> "Chunks":
    """After time was halved."""
    return dataclasses.replace(self, length=self.length // 2)

  def doubled(self) -> "Chunks":
    """After time was doubled."""
    return dataclasses.replace(self, length=self.length * 2)

  def first(self, frames: int) -> int:
    """Frames of the first chunk of `frames` in all."""
    return frames - (self.count - 1) * self.length


class ChunkNorm(nn.Module):
  """Group normalisation of each chunk by itself, in float32, with a learnt scale and bias.

  Attributes:
    groups: of channels.
  """

  groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"], chunks: Chunks) -> Float[Array, "b f h w c"]:
    """Normalises; the result has the dtype of `x`."""
    channels = x.shape[-1]
    scale = self.param("scale", partitioned(nn.initializers.ones, "channels"), (channels,))
    bias = self.param("bias", partitioned(nn.initializers.zeros, "channels"), (channels,))
    first = chunks.first(x.shape[1])
    parts = [_normalized(x[:, :first], 1, self.groups)]
    if chunks.count > 1:
      parts.append(_normalized(x[:, first:], chunks.count - 1, self.groups))
    normal = jnp.concatenate(parts, axis=1)
    shape = (1, 1, 1, 1, -1)
    return (normal * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


def _normalized(x: Float[Array, "b f h w c"], count: int, groups: int) -> Float[Array, "b f h w c"]:
  """Zero mean and unit variance in each of `count` equal chunks and each group of channels."""
  x = rearrange(x.astype(jnp.float32), "b (n f) h w (g c) -> b n f h w g c", n=count, g=groups)
  over = "b n f h w g c -> b n 1 1 1 g 1"
  centred = x - reduce(x, over, "mean")
  normal = centred * jax.lax.rsqrt(reduce(jnp.square(centred), over, "mean") + 1e-6)
  return rearrange(normal, "b n f h w g c -> b (n f) h w (g c)")


class SpatialNorm(nn.Module):
  """Group normalisation whose result is scaled and shifted by what the latents say at each place.

  Attributes:
    groups: of channels.
    dtype: compute dtype.
  """

  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b F H W d"], latents: Float[Array, "b f h w c"], chunks: Chunks
  ) -> Float[Array, "b F H W d"]:
    """Normalises `x`; the latents are those of the same chunks at their own resolution."""

    def told(name):
      conv = CausalConv3d(x.shape[-1], (1, 1, 1), self.dtype, name=name)
      return enlarge(conv(latents), x.shape[1:4], chunks.begins)

    return ChunkNorm(self.groups, name="norm")(x, chunks) * told("scale") + told("shift")


def enlarge(
  x: Float[Array, "b f h w c"], size: tuple[int, ...], begins: bool
) -> Float[Array, "b F H W c"]:
  """Nearest neighbour to frames, rows, columns `size`; a clip's first frame stays one in time."""
  frames, rows, columns = x.shape[1:4]
  x = repeat(
    x,
    "b f h w c -> b f (h r) (w s) c",
    r=size[1] // rows,
    s=size[2] // columns,
  )
  alone = int(begins)
  if frames == alone:
    return x
  rest = repeat(x[:, alone:], "b f h w c -> b (f t) h w c", t=(size[0] - alone) // (frames - alone))
  return jnp.concatenate([x[:, :alone], rest], axis=1)
