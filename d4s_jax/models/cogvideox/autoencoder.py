"""The causal 3D autoencoder of CogVideoX: 1 + 4k frames, strides 4 x 8 x 8, channel-last.

Video is in [-1, 1] here. The first frame has a latent of its own, so a single image is a clip of
one frame. Convolutions see only the past; group statistics are those of a chunk of frames (see
`chunks`), so a frame depends on the others of its chunk too, and the latent of an image alone is
near that of the same image at the start of a clip, not equal to it.

A clip computed whole and one computed chunk by chunk are the same, as `layers.past` says, and what
diffusers makes of it. Where the number of latents is even, diffusers decodes four frames of the
first one; here it is one frame, as it was encoded.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import reduce
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.convolution import CausalConv3d, FrameConv
from d4s_jax.layers.past import by_chunks, first_chunk
from d4s_jax.models.cogvideox.chunks import ChunkNorm, Chunks, SpatialNorm, enlarge

# Latents of a chunk: what the published model was trained with.
_CHUNK = 2


class CogVideoXAutoencoder(nn.Module):
  """Encoder and decoder; call the methods through `apply(..., method="encode")`.

  Attributes:
    widths: channels of each level; space halves between levels.
    z_dim: latent channels.
    num_res_blocks: residual blocks a level (the decoder has one more).
    temporal_levels: how many halvings of space, the first ones, halve time too; in the decoder it
      is again the first doublings that double time.
    groups: of channels, for the normalisations.
    scale: what latents are multiplied by (`scaling_factor` as published).
    inverted: whether the transformer was trained with latents of photographs that are divided by
      `scale` (`invert_scale_latents` as published). Nothing here does so; the backbone sees to it.
    chunk: latents to compute at a time, a multiple of 2; 0 for the whole clip.
    dtype: compute dtype.
  """

  widths: Sequence[int] = (128, 256, 256, 512)
  z_dim: int = 16
  num_res_blocks: int = 3
  temporal_levels: int = 2
  groups: int = 32
  scale: float = 0.7
  inverted: bool = False
  chunk: int = 0
  dtype: DTypeLike = jnp.float32

  @property
  def strides(self) -> tuple[int, int, int]:
    """Pixels a latent, in frames, rows and columns."""
    space = 2 ** (len(self.widths) - 1)
    return 2**self.temporal_levels, space, space

  def setup(self):
    """Makes the parts that `encode` and `decode` share with nobody."""
    levels = len(self.widths) - 1
    time = tuple(level < self.temporal_levels for level in range(levels))
    widths, depth = tuple(self.widths), self.num_res_blocks
    self.encoder = Encoder(widths, depth, time, self.groups, 2 * self.z_dim, self.dtype)
    self.decoder = Decoder(widths[::-1], depth + 1, time, self.groups, self.dtype)

  def __call__(self, video: Float[Array, "b F H W 3"]) -> Float[Array, "b F H W 3"]:
    """Encodes and decodes: touches every parameter."""
    return self.decode(self.encode(video)[0])

  def encode(
    self, video: Float[Array, "b F H W 3"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """Mean and log variance of the latents, float32, in normalised units."""
    moments = self._by_chunks(self.encoder, video, self.strides[0]).astype(jnp.float32)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    log_variance = jnp.clip(log_variance, -30.0, 20.0)
    return mean * self.scale, log_variance + 2.0 * jnp.log(self.scale)

  def decode(self, latents: Float[Array, "b f h w c"]) -> Float[Array, "b F H W 3"]:
    """Video, float32, nominally in [-1, 1] but not clipped, from normalised latents."""
    return self._by_chunks(self.decoder, latents / self.scale, 1).astype(jnp.float32)

  def _by_chunks(
    self, coder: nn.Module, x: Float[Array, "b f h w c"], stride: int
  ) -> Float[Array, "b F H W d"]:
    """Runs a coder of `stride` frames a latent."""
    if self.chunk % _CHUNK:
      raise ValueError(
        f"chunk is {self.chunk}; expected a multiple of {_CHUNK} latents, over which the published"
        " model normalises, or 0 for the whole clip."
      )
    length = self.chunk * stride
    first = first_chunk(x.shape[1], length) if length else x.shape[1]
    return by_chunks(coder, x, first, length)


class Encoder(nn.Module):
  """Video to latent moments; `time[i]` says whether the halving after level i halves time."""

  widths: Sequence[int]
  depth: int
  time: Sequence[bool]
  groups: int
  features: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b F H W c"], begins: bool = True
  ) -> Float[Array, "b f h w d"]:
    """Encodes a clip, or the next chunks of one if they don't begin it."""
    chunks = Chunks.of(x.shape[1], _CHUNK * 2 ** sum(self.time), begins)
    x = _convolution(self.widths[0], self.dtype, "conv_in")(x)

    def block(x, width, name):
      return ResidualBlock(width, self.groups, self.dtype, name=name)(x, None, chunks)

    for level, width in enumerate(self.widths):
      for i in range(self.depth):
        x = block(x, width, f"down_{level}_block_{i}")
      if level < len(self.widths) - 1:
        if self.time[level]:
          alone = int(begins)
          pairs = reduce(x[:, alone:], "b (f two) h w c -> b f h w c", "mean", two=2)
          x = jnp.concatenate([x[:, :alone], pairs], axis=1)
          chunks = chunks.halved()
        name = f"down_{level}_resample"
        x = FrameConv(width, stride=2, padding=(0, 1), dtype=self.dtype, name=name)(x)
    for i in range(2):
      x = block(x, self.widths[-1], f"middle_block_{i}")
    x = jax.nn.silu(ChunkNorm(self.groups, name="norm_out")(x, chunks))
    return _convolution(self.features, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
  """Latents to video; `time[i]` says whether the doubling after level i doubles time."""

  widths: Sequence[int]
  depth: int
  time: Sequence[bool]
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, latents: Float[Array, "b f h w c"], begins: bool = True
  ) -> Float[Array, "b F H W 3"]:
    """Decodes a clip, or the next chunks of one if they don't begin it."""
    chunks = Chunks.of(latents.shape[1], _CHUNK, begins)
    x = _convolution(self.widths[0], self.dtype, "conv_in")(latents)

    def block(x, width, name):
      return ResidualBlock(width, self.groups, self.dtype, name=name)(x, latents, chunks)

    for i in range(2):
      x = block(x, self.widths[0], f"middle_block_{i}")
    for level, width in enumerate(self.widths):
      for i in range(self.depth):
        x = block(x, width, f"up_{level}_block_{i}")
      if level < len(self.widths) - 1:
        frames, rows, columns = x.shape[1:4]
        if self.time[level]:
          frames = 2 * frames - int(begins)
          chunks = chunks.doubled()
        x = enlarge(x, (frames, 2 * rows, 2 * columns), begins)
        x = FrameConv(width, dtype=self.dtype, name=f"up_{level}_resample")(x)
    x = SpatialNorm(self.groups, self.dtype, name="norm_out")(x, latents, chunks)
    return _convolution(3, self.dtype, "conv_out")(jax.nn.silu(x))


class ResidualBlock(nn.Module):
  """Two normalised causal convolutions beside a shortcut."""

  features: int
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b f h w c"],
    latents: Float[Array, "b i j k z"] | None,
    chunks: Chunks,
  ) -> Float[Array, "b f h w d"]:
    """Changes only the number of channels; given latents, they steer the normalisations."""
    shortcut = x
    if x.shape[-1] != self.features:
      shortcut = CausalConv3d(self.features, (1, 1, 1), self.dtype, name="shortcut")(x)
    for i in (1, 2):
      if latents is None:
        x = ChunkNorm(self.groups, name=f"norm{i}")(x, chunks)
      else:
        x = SpatialNorm(self.groups, self.dtype, name=f"norm{i}")(x, latents, chunks)
      x = _convolution(self.features, self.dtype, f"conv{i}")(jax.nn.silu(x))
    return x + shortcut


def _convolution(features: int, dtype: DTypeLike, name: str) -> CausalConv3d:
  return CausalConv3d(features, dtype=dtype, repeat_first=True, name=name)
