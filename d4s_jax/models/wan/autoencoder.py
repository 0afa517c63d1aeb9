"""The causal 3D autoencoder of Wan 2.1: 1 + 4k frames, strides 4 x 8 x 8, channel-last.

Video is in [-1, 1] here. The first frame is encoded and decoded by itself, so a single image is a
clip of one frame; every later frame sees only the past.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.attention import attention
from d4s_jax.layers.convolution import CausalConv3d, FrameConv, convolve_taps, parameters
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import ChannelNorm

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
  dtype: DTypeLike = jnp.float32

  @property
  def strides(self) -> tuple[int, int, int]:
    """Pixels a latent, in frames, rows and columns."""
    space = self.patch * 2 ** (len(self.dim_mult) - 1)
    return 2 ** sum(self.temporal_downsample), space, space

  def setup(self):
    """Makes the parts that `encode` and `decode` share with nobody."""
    widths = [self.base_dim * mult for mult in self.dim_mult]
    depth, time, dtype = self.num_res_blocks, tuple(self.temporal_downsample), self.dtype
    self.encoder = Encoder(widths, depth, time, 2 * self.z_dim, dtype)
    self.quant_conv = CausalConv3d(2 * self.z_dim, (1, 1, 1), dtype)
    self.post_quant_conv = CausalConv3d(self.z_dim, (1, 1, 1), dtype)
    self.decoder = Decoder(widths[::-1], depth + 1, time[::-1], 3 * self.patch**2, dtype)

  def __call__(self, video: Float[Array, "b F H W 3"]) -> Float[Array, "b F H W 3"]:
    """Encodes and decodes: touches every parameter."""
    return self.decode(self.encode(video)[0])

  def encode(
    self, video: Float[Array, "b F H W 3"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """Mean and log variance of the latents, float32, in normalised units."""
    x = rearrange(video, f"b f (h ph) (w pw) c -> {_PATCHES}", ph=self.patch, pw=self.patch)
    moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    offset, scale = self._statistics()
    log_variance = jnp.clip(log_variance, -30.0, 20.0)
    return (mean - offset) / scale, log_variance - 2.0 * jnp.log(scale)

  def decode(self, latents: Float[Array, "b f h w c"]) -> Float[Array, "b F H W 3"]:
    """Video, float32, nominally in [-1, 1] but not clipped, from normalised latents."""
    offset, scale = self._statistics()
    x = self.decoder(self.post_quant_conv(latents * scale + offset)).astype(jnp.float32)
    return rearrange(x, f"{_PATCHES} -> b f (h ph) (w pw) c", ph=self.patch, pw=self.patch)

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
  """Video to latent moments; `time[i]` says whether the halving after level i halves time."""

  widths: Sequence[int]
  depth: int
  time: Sequence[bool]
  features: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b F H W c"]) -> Float[Array, "b f h w d"]:
    """Encodes a whole clip."""
    x = CausalConv3d(self.widths[0], dtype=self.dtype, name="conv_in")(x)
    layer = 0  # Counts residual and resampling layers alike, as the published weights do.
    for level, width in enumerate(self.widths):
      for _ in range(self.depth):
        x = ResidualBlock(width, self.dtype, name=f"down_{layer}")(x)
        layer += 1
      if level < len(self.widths) - 1:
        x = Downsample(self.time[level], self.dtype, name=f"down_{layer}")(x)
        layer += 1
    x = MiddleBlock(self.dtype, name="middle")(x)
    x = jax.nn.silu(ChannelNorm(name="norm_out")(x))
    return CausalConv3d(self.features, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
  """Latents to video; `time[i]` says whether the doubling after level i doubles time."""

  widths: Sequence[int]
  depth: int
  time: Sequence[bool]
  features: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w d"]) -> Float[Array, "b F H W c"]:
    """Decodes a whole clip."""
    x = CausalConv3d(self.widths[0], dtype=self.dtype, name="conv_in")(x)
    x = MiddleBlock(self.dtype, name="middle")(x)
    for level, width in enumerate(self.widths):
      for block in range(self.depth):
        x = ResidualBlock(width, self.dtype, name=f"up_{level}_block_{block}")(x)
      if level < len(self.widths) - 1:
        x = Upsample(self.time[level], self.dtype, name=f"up_{level}_resample")(x)
    x = jax.nn.silu(ChannelNorm(name="norm_out")(x))
    return CausalConv3d(self.features, dtype=self.dtype, name="conv_out")(x)


class MiddleBlock(nn.Module):
  """Residual block, attention within each frame, residual block."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    """Keeps the shape."""
    channels = x.shape[-1]
    x = ResidualBlock(channels, self.dtype, name="block_0")(x)
    x = FrameAttention(self.dtype, name="attention")(x)
    return ResidualBlock(channels, self.dtype, name="block_1")(x)


class ResidualBlock(nn.Module):
  """Two normalised causal convolutions beside a shortcut."""

  features: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w d"]:
    """Changes only the number of channels."""
    shortcut = x
    if x.shape[-1] != self.features:
      shortcut = CausalConv3d(self.features, (1, 1, 1), self.dtype, name="shortcut")(x)
    for i in (1, 2):
      x = jax.nn.silu(ChannelNorm(name=f"norm{i}")(x))
      x = CausalConv3d(self.features, dtype=self.dtype, name=f"conv{i}")(x)
    return x + shortcut


class FrameAttention(nn.Module):
  """Single-head self-attention over the pixels of each frame."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    """Keeps the shape."""
    batch, _, height, _, channels = x.shape
    y = rearrange(ChannelNorm(name="norm")(x), "b f h w c -> (b f) (h w) c")
    y = dense(3 * channels, None, "channels", dtype=self.dtype, name="query_key_value")(y)
    q, k, v = rearrange(y, "n p (t one c) -> t n p one c", t=3, one=1)
    y = attention(q, k, v)[:, :, 0]
    y = dense(channels, "channels", None, dtype=self.dtype, name="out")(y)
    return x + rearrange(y, "(b f) (h w) c -> b f h w c", b=batch, h=height)


class Downsample(nn.Module):
  """Halves space and, if `time`, the frames after the first one."""

  time: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b F H W c"]) -> Float[Array, "b f h w c"]:
    """Pads on the right and below only."""
    x = FrameConv(x.shape[-1], stride=2, padding=(0, 1), dtype=self.dtype, name="space")(x)
    return HalveTime(self.dtype, name="time")(x) if self.time else x


class HalveTime(nn.Module):
  """Keeps the first frame; makes each later pair one frame that also sees the frame before."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b F h w c"]) -> Float[Array, "b f h w c"]:
    """1 + 2k frames become 1 + k."""
    channels = x.shape[-1]
    kernel, bias = parameters(self, (3, 1, 1, channels, channels))
    taps = [x[:, 0:-1:2], x[:, 1::2], x[:, 2::2]]
    return jnp.concatenate([x[:, :1], convolve_taps(taps, kernel, bias)], axis=1)


class Upsample(nn.Module):
  """Doubles space, halves the channels and, if `time`, doubles the frames after the first one."""

  time: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b F H W d"]:
    """Repeats the nearest pixel, then convolves."""
    channels = x.shape[-1]
    if self.time:
      # The first frame stands alone: what follows starts its own causal past, without it.
      rest = CausalConv3d(2 * channels, (3, 1, 1), self.dtype, name="time")(x[:, 1:])
      rest = rearrange(rest, "b f h w (s c) -> b (f s) h w c", s=2)
      x = jnp.concatenate([x[:, :1].astype(rest.dtype), rest], axis=1)
    x = repeat(x, "b f h w c -> b f (h two) (w too) c", two=2, too=2)
    return FrameConv(channels // 2, dtype=self.dtype, name="space")(x)
