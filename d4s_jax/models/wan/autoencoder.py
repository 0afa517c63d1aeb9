"""The causal 3D autoencoders of Wan 2.1 and 2.2: 1 + 4k frames, channel-last.

Their strides are 4 x 8 x 8 and 4 x 16 x 16. Video is in [-1, 1] here. The first frame is encoded
and decoded by itself, so a single image is a clip of one frame; every later frame sees only the
past. A clip computed in chunks is the same, as `layers.past` says, in the memory of a chunk.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.convolution import CausalConv3d
from d4s_jax.layers.normalization import ChannelNorm
from d4s_jax.layers.past import by_chunks, first_chunk
from d4s_jax.models.wan.blocks import (
  Downsample,
  MiddleBlock,
  ResidualBlock,
  Upsample,
  averaged,
  duplicated,
)

# The order of a patch's pixels among the channels is that of Wan 2.2.
_PATCHES = "b f h w (c pw ph)"


class WanAutoencoder(nn.Module):
  """Encoder and decoder; call the methods through `apply(..., method="encode")`.

  Attributes:
    base_dim: channels at full resolution.
    z_dim: latent channels.
    dim_mult: width of each level over `base_dim`; space halves between levels.
    num_res_blocks: residual blocks a level (the decoder has one more).
    temporal_downsample: which of the halvings of space halve time too.
    latents_mean: mean of each latent channel over the training data; empty for 0.
    latents_std: standard deviation of each latent channel; empty for 1.
    patch: pixels are gathered into patches of this size before the first level (1 in Wan 2.1).
    decoder_base_dim: channels at full resolution in the decoder; None for those of the encoder.
    residual: whether each level has a shortcut around it, as in Wan 2.2.
    chunk: latents to compute at a time; 0 for the whole clip.
    dtype: compute dtype.
  """

  base_dim: int = 96
  z_dim: int = 16
  dim_mult: Sequence[int] = (1, 2, 4, 4)
  num_res_blocks: int = 2
  temporal_downsample: Sequence[bool] = (False, True, True)
  latents_mean: Sequence[float] = ()
  latents_std: Sequence[float] = ()
  patch: int = 1
  decoder_base_dim: int | None = None
  residual: bool = False
  chunk: int = 0
  dtype: DTypeLike = jnp.float32

  @property
  def strides(self) -> tuple[int, int, int]:
    """Pixels a latent, in frames, rows and columns."""
    space = self.patch * 2 ** (len(self.dim_mult) - 1)
    return 2 ** sum(self.temporal_downsample), space, space

  def setup(self):
    """Makes the parts that `encode` and `decode` share with nobody."""
    inner, outer = self.base_dim, self.decoder_base_dim or self.base_dim
    time = tuple(self.temporal_downsample)
    self.encoder = Encoder(
      widths=tuple(inner * mult for mult in self.dim_mult),
      depth=self.num_res_blocks,
      time=time,
      features=2 * self.z_dim,
      residual=self.residual,
      dtype=self.dtype,
    )
    self.quant_conv = CausalConv3d(2 * self.z_dim, (1, 1, 1), self.dtype)
    self.post_quant_conv = CausalConv3d(self.z_dim, (1, 1, 1), self.dtype)
    self.decoder = Decoder(
      widths=tuple(outer * mult for mult in reversed(self.dim_mult)),
      depth=self.num_res_blocks + 1,
      time=time[::-1],
      features=3 * self.patch**2,
      residual=self.residual,
      dtype=self.dtype,
    )

  def __call__(self, video: Float[Array, "b F H W 3"]) -> Float[Array, "b F H W 3"]:
    """Encodes and decodes: touches every parameter."""
    return self.decode(self.encode(video)[0])

  def encode(
    self, video: Float[Array, "b F H W 3"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """Mean and log variance of the latents, float32, in normalised units."""
    x = rearrange(video, f"b f (h ph) (w pw) c -> {_PATCHES}", ph=self.patch, pw=self.patch)
    time = self.strides[0]
    latents = 1 + (x.shape[1] - 1) // time
    first = 1 + time * (self._first(latents) - 1)
    x = by_chunks(self.encoder, x, first, time * self.chunk)
    moments = self.quant_conv(x).astype(jnp.float32)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    offset, scale = self._statistics()
    log_variance = jnp.clip(log_variance, -30.0, 20.0)
    return (mean - offset) / scale, log_variance - 2.0 * jnp.log(scale)

  def decode(self, latents: Float[Array, "b f h w c"]) -> Float[Array, "b F H W 3"]:
    """Video, float32, nominally in [-1, 1] but not clipped, from normalised latents."""
    offset, scale = self._statistics()
    x = self.post_quant_conv(latents * scale + offset)
    x = by_chunks(self.decoder, x, self._first(x.shape[1]), self.chunk).astype(jnp.float32)
    return rearrange(x, f"{_PATCHES} -> b f (h ph) (w pw) c", ph=self.patch, pw=self.patch)

  def _first(self, latents: int) -> int:
    """Latents of the first chunk."""
    return first_chunk(latents, self.chunk) if self.chunk else latents

  def _statistics(self) -> tuple[Float[Array, "1 1 1 1 c"], Float[Array, "1 1 1 1 c"]]:
    mean = jnp.asarray(tuple(self.latents_mean) or (0.0,) * self.z_dim, jnp.float32)
    std = jnp.asarray(tuple(self.latents_std) or (1.0,) * self.z_dim, jnp.float32)
    if mean.shape != (self.z_dim,) or std.shape != (self.z_dim,):
      raise ValueError(
        f"latents_mean and latents_std have {mean.size} and {std.size} entries; expected one for"
        f" each of the {self.z_dim} latent channels, or none."
      )
    return mean.reshape(1, 1, 1, 1, -1), std.reshape(1, 1, 1, 1, -1)


class Encoder(nn.Module):
  """Video to latent moments.

  Attributes:
    widths: channels of each level.
    depth: residual blocks of each level.
    time: whether the halving after each level but the last halves time too.
    features: channels of the output.
    residual: whether each level has a shortcut around it.
    dtype: compute dtype.
  """

  widths: Sequence[int]
  depth: int
  time: Sequence[bool]
  features: int
  residual: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b F H W c"], begins: bool = True
  ) -> Float[Array, "b f h w d"]:
    """Encodes a clip, or the next chunk of one if it doesn't begin it."""
    x = CausalConv3d(self.widths[0], dtype=self.dtype, name="conv_in")(x)
    layer = 0  # Counts residual and resampling layers alike, as the weights of Wan 2.1 do.
    for level, width in enumerate(self.widths):
      last = level == len(self.widths) - 1
      shortcut = x
      for block in range(self.depth):
        name = f"down_{level}_block_{block}" if self.residual else f"down_{layer}"
        x = ResidualBlock(width, self.dtype, name=name)(x)
        layer += 1
      if not last:
        name = f"down_{level}_halve" if self.residual else f"down_{layer}"
        x = Downsample(self.time[level], self.dtype, name=name)(x, begins)
        layer += 1
      if self.residual:
        x = x + averaged(shortcut, width, *((1, 1) if last else (1 + self.time[level], 2)))
    x = MiddleBlock(self.dtype, name="middle")(x)
    x = jax.nn.silu(ChannelNorm(name="norm_out")(x))
    return CausalConv3d(self.features, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
  """Latents to video.

  Attributes:
    widths: channels of each level.
    depth: residual blocks of each level.
    time: whether the doubling after each level but the last doubles time too.
    features: channels of the output.
    residual: whether each level has a shortcut around it.
    dtype: compute dtype.
  """

  widths: Sequence[int]
  depth: int
  time: Sequence[bool]
  features: int
  residual: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w d"], begins: bool = True
  ) -> Float[Array, "b F H W c"]:
    """Decodes a clip, or the next chunk of one if it doesn't begin it."""
    x = CausalConv3d(self.widths[0], dtype=self.dtype, name="conv_in")(x)
    x = MiddleBlock(self.dtype, name="middle")(x)
    for level, width in enumerate(self.widths):
      shortcut = x
      for block in range(self.depth):
        x = ResidualBlock(width, self.dtype, name=f"up_{level}_block_{block}")(x)
      if level == len(self.widths) - 1:
        break
      time = self.time[level]
      if self.residual:
        # Published under another name than that of Wan 2.1.
        x = Upsample(width, time, self.dtype, name=f"up_{level}_double")(x, begins)
        x = x + duplicated(shortcut, width, 1 + time, 2, begins)
      else:
        x = Upsample(width // 2, time, self.dtype, name=f"up_{level}_resample")(x, begins)
    x = jax.nn.silu(ChannelNorm(name="norm_out")(x))
    return CausalConv3d(self.features, dtype=self.dtype, name="conv_out")(x)
