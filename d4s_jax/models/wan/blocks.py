"""What the autoencoders of Wan 2.1 and 2.2 are built of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.attention import attention
from d4s_jax.layers.convolution import CausalConv3d, FrameConv, convolve_taps, parameters
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import ChannelNorm
from d4s_jax.layers.past import preceded


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
  def __call__(self, x: Float[Array, "b F H W c"], begins: bool) -> Float[Array, "b f h w c"]:
    """Pads on the right and below only."""
    x = FrameConv(x.shape[-1], stride=2, padding=(0, 1), dtype=self.dtype, name="space")(x)
    return HalveTime(self.dtype, name="time")(x, begins) if self.time else x


class HalveTime(nn.Module):
  """Keeps the first frame; makes each later pair one frame that also sees the frame before."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b F h w c"], begins: bool) -> Float[Array, "b f h w c"]:
    """1 + 2k frames that begin a clip become 1 + k, later 2k become k."""
    channels = x.shape[-1]
    kernel, bias = parameters(self, (3, 1, 1, channels, channels))
    alone = x[:, : int(begins)]
    x = preceded(self, x, x[:, :0], keep=1)
    pairs = convolve_taps([x[:, 0:-1:2], x[:, 1::2], x[:, 2::2]], kernel, bias)
    return jnp.concatenate([alone.astype(pairs.dtype), pairs], axis=1)


class Upsample(nn.Module):
  """Doubles space and, if `time`, the frames after the first one.

  Attributes:
    features: channels of the output.
    time: whether to double time too.
    dtype: compute dtype.
  """

  features: int
  time: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"], begins: bool) -> Float[Array, "b F H W d"]:
    """Repeats the nearest pixel, then convolves."""
    if self.time:
      x = DoubleTime(self.dtype, name="time")(x, begins)
    x = repeat(x, "b f h w c -> b f (h two) (w too) c", two=2, too=2)
    return FrameConv(self.features, dtype=self.dtype, name="space")(x)


class DoubleTime(nn.Module):
  """Keeps the first frame; makes two of each later one."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"], begins: bool) -> Float[Array, "b F h w c"]:
    """1 + k frames that begin a clip become 1 + 2k, later k become 2k."""
    channels = x.shape[-1]
    kernel, bias = parameters(self, (3, 1, 1, channels, 2 * channels))
    # The first frame stands alone: what follows starts its own causal past, without it.
    alone, x = jnp.split(x, [int(begins)], axis=1)
    frames = x.shape[1]
    nothing = jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype)
    x = preceded(self, x, nothing, keep=2)
    x = convolve_taps([x[:, i : i + frames] for i in range(3)], kernel, bias)
    x = rearrange(x, "b f h w (s c) -> b (f s) h w c", s=2)
    return jnp.concatenate([alone.astype(x.dtype), x], axis=1)


def averaged(
  x: Float[Array, "b F H W c"], features: int, time: int, space: int
) -> Float[Array, "b f h w {features}"]:
  """What Wan 2.2 adds to the output of a level of its encoder: means of what went in.

  Patches of `time` frames and `space` x `space` pixels lie behind one another among the channels,
  of which each equal run is averaged. Zeros come before the first frame of a clip.

  Raises:
    ValueError: the channels don't fall into `features` runs.
  """
  channels = x.shape[-1] * time
  if channels % features:
    raise ValueError(f"{features} channels don't divide the {channels} of a shortcut.")
  x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
  # A run holds whole patches of pixels, so pooling comes first and moves least.
  x = nn.avg_pool(x, (space, space), (space, space))
  x = rearrange(x, "b (f t) h w c -> b f h w (c t)", t=time)
  return reduce(x, "b f h w (d run) -> b f h w d", "mean", d=features)


def duplicated(
  x: Float[Array, "b f h w c"], features: int, time: int, space: int, begins: bool
) -> Float[Array, "b F H W {features}"]:
  """What Wan 2.2 adds to the output of a level of its decoder: copies of what went in.

  The inverse of `averaged`, up to what the means lose; the first frame of a clip stays one.

  Raises:
    ValueError: the channels don't make whole numbers of copies.
  """
  channels = features * time * space**2
  if channels % x.shape[-1]:
    raise ValueError(f"{x.shape[-1]} channels don't divide the {channels} of a shortcut.")
  x = jnp.repeat(x, channels // x.shape[-1], axis=-1)
  patches = dict(t=time, r=space, s=space)
  x = rearrange(x, "b f h w (d t r s) -> b (f t) (h r) (w s) d", **patches)
  return x[:, time - 1 :] if begins else x
