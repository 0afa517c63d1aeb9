"""The trunk of the LDRM: latents and camera maps to tokens that know both."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.convolution import PatchConv3d
from d4s_jax.layers.embeddings import sinusoidal
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm
from d4s_jax.layers.partitioning import constrain
from d4s_jax.layers.transformer import Transformer

POSITION_CHANNELS = 64
NOISE_CHANNELS = 256


class Trunk(nn.Module):
  """Equally many latent and camera tokens, concatenated by channel, through a transformer.

  Attributes:
    width: of the tokens.
    depth: number of blocks.
    heads: attention heads.
    strides: frames, rows, columns of video a latent.
    patch: side of a token in latents.
    taps: how many intermediate results to return, evenly spaced, the last after the last block.
    dtype: compute dtype.
    remat: what of a block the backward pass computes again, a name in `layers.transformer.REMAT`.
  """

  width: int
  depth: int
  heads: int
  strides: tuple[int, int, int]
  patch: int
  taps: int
  dtype: DTypeLike = jnp.float32
  remat: str = "products"

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b f y x c"],
    maps: Float[Array, "b F H W k"],
    sigma: Float[Array, "b"],
    seen: Float[Array, "b F y x s"] | None = None,
  ) -> tuple[Float[Array, "b f h w d"], list[Float[Array, "b f h w d"]]]:
    """Returns the tokens and the taps, from early to late, as grids.

    Args:
      latents: normalised latents.
      maps: camera maps of the video, one channel vector for each pixel.
      sigma: noise level in [0, 1] that a denoiser guessed the latents at; 0 for clean ones.
      seen: features of each frame of the video at the size of the latents, see `models.stem`.

    Raises:
      ValueError: latents and camera maps do not belong to a video of one size.
    """
    self._check(latents.shape, maps.shape)
    time, *space = self.strides
    camera_patch = (time, *(stride * self.patch for stride in space))
    maps = _with_past(maps, time)
    if seen is not None:
      frames = rearrange(_with_past(seen, time), "b (f t) y x s -> b f y x (t s)", t=time)
      latents = jnp.concatenate([latents.astype(self.dtype), frames], axis=-1)
    video = self._tokens(latents, (1, self.patch, self.patch), "latents")
    camera = self._tokens(maps, camera_patch, "cameras")
    grid = video.shape[1:4]

    x = jnp.concatenate([video, camera], axis=-1)
    x = dense(self.width, "channels", "embed", dtype=self.dtype, name="merge")(x)
    place = sinusoidal(100 * jnp.asarray(_centres(grid)), POSITION_CHANNELS, max_period=1000.0)
    place = rearrange(place, "f h w a c -> 1 f h w (a c)")
    x = x + dense(self.width, None, "embed", dtype=self.dtype, name="position")(place)
    x = x + self._noise(sigma)[:, None, None, None]
    x = constrain(rearrange(x, "b f h w d -> b (f h w) d"), "batch", "tokens", None)

    stack = Transformer(self.depth, self.heads, self.dtype, self.remat, name="transformer")
    x, hidden = stack(x)
    after = [-(-self.depth * tap // self.taps) - 1 for tap in range(1, self.taps + 1)]
    return _grid(x, grid), [_grid(hidden[block], grid) for block in after]

  def _tokens(self, x, patch, name):
    x = PatchConv3d(self.width, patch, self.dtype, name=f"{name}_patch")(x)
    # Or XLA cuts channels as the kernel lies, and gathers whole camera maps for it.
    x = constrain(x, "batch", *4 * (None,))
    return LayerNorm(name=f"{name}_norm")(x)

  def _noise(self, sigma):
    """Embedding of the noise level, none before training."""
    x = sinusoidal(1000 * sigma, NOISE_CHANNELS)
    x = jax.nn.silu(dense(self.width, None, "embed", dtype=self.dtype, name="noise_in")(x))
    zeros = nn.initializers.zeros
    return dense(self.width, "embed", None, dtype=self.dtype, kernel_init=zeros, name="noise_out")(
      x
    )

  def _check(self, latents, maps):
    time, rows, columns = self.strides
    frames, height, width = latents[1:4]
    video = (1 + time * (frames - 1), rows * height, columns * width)
    if maps[1:4] != video:
      raise ValueError(
        f"Latents of {frames}x{height}x{width} belong to a video of "
        f"{video[0]}x{video[1]}x{video[2]}, but the cameras are for "
        f"{maps[1]}x{maps[2]}x{maps[3]} (frames x height x width); latent and camera tokens must "
        "be equally many."
      )
    if height % self.patch or width % self.patch:
      raise ValueError(
        f"Latents of {height}x{width} can't be cut into patches of {self.patch}x{self.patch}; use "
        f"a video whose sides are multiples of {rows * self.patch} and {columns * self.patch}."
      )


def _with_past(x, time: int):
  """The first frame repeated in front, so that it falls on the first latent frame alone."""
  return jnp.concatenate([repeat(x[:, 0], "b h w k -> b t h w k", t=time - 1), x], axis=1)


def _grid(tokens, grid):
  frames, height, width = grid
  return rearrange(tokens, "b (f h w) d -> b f h w d", f=frames, h=height, w=width)


def _centres(grid: tuple[int, ...]) -> Float[np.ndarray, "f h w 3"]:
  """Centres of the tokens in a unit cube: the same place at every resolution."""
  axes = [(np.arange(size, dtype=np.float32) + 0.5) / size for size in grid]
  return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
