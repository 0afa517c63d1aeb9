"""The trunk of the LDRM: latents and camera maps to tokens that know both."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.layers.convolution import CausalConv3d, PatchConv3d
from d4s_jax.layers.embeddings import sinusoidal
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm
from d4s_jax.layers.partitioning import constrain
from d4s_jax.layers.transformer import Transformer
from d4s_jax.types import Cameras

POSITION_CHANNELS = 64
NOISE_CHANNELS = 256
STEM_CHANNELS = 64
# Latent frames in which a latent is looked for, relative to its own.
MATCHED_FRAMES = (-2, -1, 1, 2)
MATCH_CHANNELS = 32
# At first: a factor on cosines, and how far a match may lie, in latents.
MATCH_SHARPNESS, MATCH_DEVIATION = 20.0, 3.0
# Latents that are one unit of an offset.
MATCH_UNIT = 4.0
# A far point, as a multiple of the depth of a near one.
FAR = 1000.0


class Trunk(nn.Module):
  """Equally many latent and camera tokens, concatenated by channel, through a transformer.

  Attributes:
    width: of the tokens.
    depth: number of blocks.
    heads: attention heads.
    strides: frames, rows, columns of video a latent.
    patch: side of a token in latents.
    taps: how many intermediate results to return, evenly spaced, the last after the last block.
    stem: residual convolutions over latents before they are cut into patches; 0 for none.
    near: z-depth of a near point, for the stem; see `still_offsets`.
    dtype: compute dtype.
    remat: recompute the inside of a block in the backward pass instead of storing it.
  """

  width: int
  depth: int
  heads: int
  strides: tuple[int, int, int]
  patch: int
  taps: int
  stem: int = 0
  near: float = 0.4
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b f y x c"],
    maps: Float[Array, "b F H W k"],
    sigma: Float[Array, "b"],
    cameras: Cameras,
  ) -> tuple[Float[Array, "b f h w d"], list[Float[Array, "b f h w d"]]]:
    """Returns the tokens and the taps, from early to late, as grids.

    Args:
      latents: normalised latents.
      maps: camera maps of the video, one channel vector for each pixel.
      sigma: noise level in [0, 1] that a denoiser guessed the latents at; 0 for clean ones.
      cameras: those of the maps.

    Raises:
      ValueError: latents and camera maps do not belong to a video of one size.
    """
    self._check(latents.shape, maps.shape)
    time, *space = self.strides
    past = repeat(maps[:, 0], "b h w k -> b t h w k", t=time - 1)
    maps = jnp.concatenate([past, maps], axis=1)
    camera_patch = (time, *(stride * self.patch for stride in space))
    if self.stem:
      last = cameras[:, :: self.strides[0]]
      still = still_offsets(pinhole.resize(last, *latents.shape[2:4]), self.near)
      latents = Stem(self.stem, self.dtype, name="stem")(latents, still)
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


class Stem(nn.Module):
  """Latents and, beside them, convolutions of how they move and how they would if they stood still.

  Not of the paper, whose trunk sees more videos. Depth is how far a still thing moves along the
  line that the cameras allow, motion is what leaves that line: attention finds both late, and from
  tokens of several latents.

  Attributes:
    depth: number of residual convolutions.
    dtype: compute dtype.
  """

  depth: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, latents: Float[Array, "b f h w c"], still: Float[Array, "b f h w k"]
  ) -> Float[Array, "b f h w d"]:
    """Appends STEM_CHANNELS features to the latents; see `still_offsets`."""
    matches = Matching(self.dtype, name="matching")(latents)
    latents = latents.astype(self.dtype)
    x = jnp.concatenate([latents, matches.astype(self.dtype), still.astype(self.dtype)], axis=-1)
    x = dense(STEM_CHANNELS, None, "channels", dtype=self.dtype, name="in")(x)
    for level in range(self.depth):
      # One frame of the future and one of the past: a causal convolution, shifted by a frame.
      ahead = jnp.pad(jax.nn.gelu(x), ((0, 0), (0, 1)) + ((0, 0),) * 3)
      x = x + CausalConv3d(STEM_CHANNELS, dtype=self.dtype, name=f"refine_{level}")(ahead)[:, 1:]
    return jnp.concatenate([latents, LayerNorm(name="norm")(x)], axis=-1)


class Matching(nn.Module):
  """How far each latent has gone in frames before and after its own (soft argmax, as in GMFlow).

  A latent is compared with all of another frame; nearer ones are likelier. The cost grows with the
  square of the latents a frame.

  Attributes:
    dtype: compute dtype of the comparison.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, latents: Float[Array, "b f h w c"]) -> Float[Array, "b f h w k"]:
    """Returns for each of MATCHED_FRAMES the expected offset (x, y) in MATCH_UNIT and a certainty.

    The frame nearest to one outside the clip stands for it. Certainty is the sum of the squared
    probabilities: 1 for one match, 0 for none.
    """
    _, frames, rows, columns, _ = latents.shape
    x = dense(MATCH_CHANNELS, None, "channels", dtype=self.dtype, name="features")(latents)
    x = rearrange(x, "b f h w d -> b f (h w) d")
    x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    ones = nn.initializers.ones
    sharpness = MATCH_SHARPNESS * self.param("sharpness", ones, ())
    locality = self.param("locality", ones, ()) / (2 * MATCH_DEVIATION**2)
    place = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    place = place.astype(np.float32)
    distance = np.sum(np.square(place[:, None] - place[None]), axis=-1)

    found = []
    for shift in MATCHED_FRAMES:
      others = x[:, np.clip(np.arange(frames) + shift, 0, frames - 1)]
      logits = jnp.einsum("bfnd,bfmd->bfnm", x, others, preferred_element_type=jnp.float32)
      chances = jax.nn.softmax(sharpness * logits - locality * distance[None, None], axis=-1)
      offset = (chances @ place - place[None, None]) / MATCH_UNIT
      found += [offset, jnp.sum(jnp.square(chances), axis=-1, keepdims=True)]
    return rearrange(jnp.concatenate(found, axis=-1), "b f (h w) k -> b f h w k", h=rows)


def still_offsets(cameras: Cameras, near: float) -> Float[Array, "b f h w k"]:
  """How far a latent would go in MATCHED_FRAMES were it a still point far away, or at depth `near`.

  Args:
    cameras: of the latent frames, at the size of the latents.
    near: z-depth in the unit of the cameras' positions.

  Returns:
    For each of the frames the offset (x, y) in MATCH_UNIT of the far and of the near point, bounded
    to the image's own size; 0 where the frame is outside the clip and its end stands for it.
  """
  frames, rows, columns = cameras.world_from_camera.shape[1], cameras.height, cameras.width
  grid = jnp.asarray(pinhole.pixel_grid(rows, columns)).reshape(1, 1, -1, 2)
  found = []
  for shift in MATCHED_FRAMES:
    others = cameras[:, np.clip(np.arange(frames) + shift, 0, frames - 1)]
    for depth in (FAR * near, near):
      points = pinhole.unproject(
        jnp.full((*cameras.world_from_camera.shape[:2], rows, columns), depth), cameras
      )
      pixels, _ = pinhole.project(rearrange(points, "b f h w c -> b f (h w) c"), others)
      found.append(jnp.clip(pixels - grid, -max(rows, columns), max(rows, columns)) / MATCH_UNIT)
  return rearrange(jnp.concatenate(found, axis=-1), "b f (h w) k -> b f h w k", h=rows)


def _grid(tokens, grid):
  frames, height, width = grid
  return rearrange(tokens, "b (f h w) d -> b f h w d", f=frames, h=height, w=width)


def _centres(grid: tuple[int, ...]) -> Float[np.ndarray, "f h w 3"]:
  """Centres of the tokens in a unit cube: the same place at every resolution."""
  axes = [(np.arange(size, dtype=np.float32) + 0.5) / size for size in grid]
  return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
