"""How Gaussians move: ten numbers for a Gaussian and a time (supplement, section 2.2)."""

from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from d4s_jax.geometry import deformation, rotations
from d4s_jax.layers.convolution import CausalConv3d
from d4s_jax.layers.embeddings import sinusoidal
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm, layer_norm
from d4s_jax.layers.partitioning import partitioned
from d4s_jax.models.deconvolution import Deconvolution

# Blocks of the trunk whose tokens the head sees.
TAPS = 4
# Sines and cosines of a time, together: from 8 periods a clip down to 1/8.
TIME_CHANNELS = 20


class DeformationHead(nn.Module):
  """Tokens after four blocks, fused over four resolutions, then read out at a time.

  What looks at space is computed once. Time enters after that, at each cell of the map for itself:
  the cell's features are modulated by its source time, mixed, modulated by every target time, and
  a 1x1 convolution makes the deformation. Nothing lies between the last modulation and the
  convolution, so a Gaussian's features are the coefficients of motions that are learnt functions of
  time, and all times take one matrix product. Cells do not mix, so only those asked for are
  computed. The convolution is zero at first: untrained or frozen, the head is the identity.

  Attributes:
    channels: width of the fused features.
    upsampling: frames, rows, columns of the map a token.
    dtype: compute dtype.
  """

  channels: int
  upsampling: tuple[int, int, int]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    taps: Sequence[Float[Array, "b f h w d"]],
    cells: Int[Array, "b n"],
    times: Float[Array, "b q"],
    detail: Float[Array, "b F H W e"] | None = None,
  ) -> Float[Array, "b q n 10"]:
    """Deformation of the Gaussians of some cells.

    Args:
      taps: tokens after four blocks, from early to late.
      cells: indices into the flattened map, frames before rows before columns.
      times: clip times in [0, 1].
      detail: features of each cell beside the tokens', see `models.stem`.

    Returns:
      dmu in metres and ds, both linear and unbounded, and between them dq, a unit quaternion.
    """
    fine, coarse = Pyramid(self.channels, self.upsampling, self.dtype, name="pyramid")(taps)
    _, frames, rows, columns, _ = fine.shape
    x = _gather(fine, cells)
    x = dense(self.channels, "channels", None, dtype=self.dtype, name="fine")(x)
    if detail is not None:
      cell = _gather(detail, cells)
      x = x + dense(self.channels, None, None, dtype=self.dtype, name="detail")(cell)
    x = x + _gather(coarse, _coarser(cells, fine.shape[1:4], coarse.shape[1:4]))

    clock = jnp.linspace(0.0, 1.0, frames)[None]
    source = TimeModulation(self.channels, self.dtype, name="source_time")(clock)[0]
    scale, shift = jnp.split(source[cells // (rows * columns)], 2, axis=-1)
    x = jax.nn.gelu(layer_norm(x).astype(self.dtype) * (1 + scale) + shift)
    x = dense(self.channels, "channels", None, dtype=self.dtype, name="mix")(x)

    x = layer_norm(x).astype(self.dtype)
    target = TimeModulation(self.channels, self.dtype, name="target_time")(times)
    return _activate(ModulatedProjection(deformation.CHANNELS, self.dtype, name="out")(x, target))


class ModulatedProjection(nn.Module):
  """A 1x1 convolution, zero at first, of features under the scale and shift of each time.

  Attributes:
    features: channels of the output.
    dtype: compute dtype.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n c"], modulation: Float[Array, "b q m"]
  ) -> Float[Array, "b q n {self.features}"]:
    """Projects x (1 + scale) + shift for each time; float32."""
    zeros = nn.initializers.zeros
    kernel_init = partitioned(zeros, "channels", None)
    kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features)).astype(self.dtype)
    bias = self.param("bias", partitioned(zeros, None), (self.features,))
    scale, shift = jnp.split(modulation, 2, axis=-1)
    # The scale of a time acts on the kernel, which is small, instead of on all cells.
    kernels = (1 + scale)[..., None] * kernel[None, None]
    x = x @ einops.rearrange(kernels, "b q c k -> b c (q k)")
    x = einops.rearrange(x, "b n (q k) -> b q n k", k=self.features)
    shift = (shift @ kernel).astype(jnp.float32) + bias.reshape(1, 1, -1)
    return x.astype(jnp.float32) + shift[:, :, None]


class Pyramid(nn.Module):
  """Fuses four taps from coarse to fine, early tokens at the finest level (as in DPT).

  Attributes:
    channels: width of the fused features.
    upsampling: frames, rows, columns of the map a token.
    dtype: compute dtype.
  """

  channels: int
  upsampling: tuple[int, int, int]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, taps: Sequence[Float[Array, "b f h w d"]]
  ) -> tuple[Float[Array, "b F H W k"], Float[Array, "b f y x c"]]:
    """Returns features of every cell of the map, a quarter as wide, and of half-token cells."""
    if len(taps) != TAPS:
      raise ValueError(f"{len(taps)} taps of the trunk; the deformation head fuses {TAPS}.")
    early, second, third, late = (
      LayerNorm(name=f"norm_{level}")(tap.astype(self.dtype)) for level, tap in enumerate(taps)
    )
    rows, columns = late.shape[2:4]

    def project(x, features, name):
      return dense(features, "embed", "channels", dtype=self.dtype, name=name)(x)

    def refine(x, name):
      return x + CausalConv3d(self.channels, (1, 3, 3), self.dtype, name=name)(jax.nn.gelu(x))

    x = nn.avg_pool(late, (1, 2, 2), (1, 2, 2), padding="SAME", count_include_pad=False)
    x = _enlarge(project(x, self.channels, "level_3"))[:, :, :rows, :columns]
    x = refine(x + project(third, self.channels, "level_2"), "refine_2")
    parts = project(second, 4 * self.channels, "level_1")
    parts = einops.rearrange(parts, "b f h w (r s c) -> b f (h r) (w s) c", r=2, s=2)
    x = refine(_enlarge(x) + parts, "refine_1")
    fine = Deconvolution(self.channels // 4, self.upsampling, dtype=self.dtype, name="level_0")
    return fine(early), x


class TimeModulation(nn.Module):
  """Scale and shift of the features from a time (adaptive layer normalisation).

  Not zero at first, as in adaLN-zero: the convolution after it is, and were both zero, motion could
  not depend on time before the convolution had left its zero.

  Attributes:
    channels: width of the features.
    dtype: compute dtype.
  """

  channels: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, times: Float[Array, "b q"]) -> Float[Array, "b q m"]:
    """Returns scale and shift, 2 x `channels`, of times in [0, 1]."""
    x = sinusoidal(16 * jnp.pi * times, TIME_CHANNELS, max_period=100.0)
    x = dense(self.channels, None, "channels", dtype=self.dtype, name="in")(x)
    return dense(2 * self.channels, "channels", None, dtype=self.dtype, name="out")(jax.nn.silu(x))


def _enlarge(x):
  return einops.repeat(x, "b f h w c -> b f (h r) (w s) c", r=2, s=2)


def _gather(grid, cells):
  flat = einops.rearrange(grid, "b f h w c -> b (f h w) c")
  return jnp.take_along_axis(flat, cells[..., None], axis=1)


def _coarser(cells, fine: tuple[int, ...], coarse: tuple[int, ...]):
  """The cell of a coarser grid of the same clip in which a cell lies.

  The first coarse frame is the first frame alone; each later one ends an equal run of frames.
  """
  frame, row, column = jnp.unravel_index(cells, fine)
  run = max((fine[0] - 1) // max(coarse[0] - 1, 1), 1)
  frame = (frame + run - 1) // run
  row, column = row * coarse[1] // fine[1], column * coarse[2] // fine[2]
  return (frame * coarse[1] + row) * coarse[2] + column


def _activate(raw: Float[Array, "b q n 10"]) -> Float[Array, "b q n 10"]:
  """Makes the quaternion a unit one around the identity."""
  identity = jnp.asarray([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
  turn = rotations.normalize(raw[..., 3:7] + identity)
  return jnp.concatenate([raw[..., :3], turn, raw[..., 7:]], axis=-1)
