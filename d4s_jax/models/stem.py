"""What convolutions find in the decoded video, for tokens and heads to see beside the latents.

Not of the paper, whose trunk sees more videos. Depth is how far a still thing moves along the line
that the cameras allow, motion is what leaves that line: attention finds both late, and from tokens
of several latents. And a token covers many pixels: outlines are in the video.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.layers.convolution import CausalConv3d, FrameConv
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm
from d4s_jax.models.deconvolution import Deconvolution
from d4s_jax.types import Cameras

CHANNELS = 32
# Frames in which a cell is looked for, relative to its own.
MATCHED_FRAMES = (-4, -1, 1, 4)
# At first: a factor on cosines, and how far a match may lie, in cells.
MATCH_SHARPNESS, MATCH_DEVIATION = 20.0, 3.0
# Cells that are one unit of an offset.
MATCH_UNIT = 4.0
# A far point, as a multiple of the depth of a near one.
FAR = 1000.0


class Stem(nn.Module):
  """Convolutions of what is seen, how it moves, and how it would if it stood still.

  Attributes:
    depth: number of residual convolutions.
    cell: rows, columns of pixels of a feature: those of a latent.
    near: z-depth of a near point; see `still_offsets`.
    dtype: compute dtype.
  """

  depth: int
  cell: tuple[int, int]
  near: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, video: Float[Array, "b f H W 3"], cameras: Cameras
  ) -> Float[Array, "b f y x k"]:
    """CHANNELS features of each frame of a video, nominally in [0, 1]."""
    cells = _cells(video, self.cell).astype(self.dtype)
    still = still_offsets(pinhole.resize(cameras, *cells.shape[2:4]), self.near)
    matches = Matching(self.dtype, name="matching")(cells)
    x = jnp.concatenate([cells, matches.astype(self.dtype), still.astype(self.dtype)], axis=-1)
    x = dense(CHANNELS, None, None, dtype=self.dtype, name="in")(x)
    for level in range(self.depth):
      # One frame of the future and one of the past: a causal convolution, shifted by a frame.
      ahead = jnp.pad(jax.nn.gelu(x), ((0, 0), (0, 1)) + ((0, 0),) * 3)
      x = x + CausalConv3d(CHANNELS, dtype=self.dtype, name=f"refine_{level}")(ahead)[:, 1:]
    return LayerNorm(name="norm")(x)


class Matching(nn.Module):
  """How far each cell has gone in frames before and after its own (soft argmax, as in GMFlow).

  A cell is compared with all of another frame; nearer ones are likelier. The cost grows with the
  square of the cells a frame.

  Attributes:
    dtype: compute dtype of the comparison.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, cells: Float[Array, "b f h w c"]) -> Float[Array, "b f h w k"]:
    """Returns for each of MATCHED_FRAMES the expected offset (x, y) in MATCH_UNIT and a certainty.

    The frame nearest to one outside the clip stands for it. Certainty is the sum of the squared
    probabilities: 1 for one match, 0 for none.
    """
    _, frames, rows, columns, _ = cells.shape
    x = FrameConv(CHANNELS, dtype=self.dtype, name="features")(cells)
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
      others = x[:, _shifted(frames, shift)]
      logits = jnp.einsum("bfnd,bfmd->bfnm", x, others, preferred_element_type=jnp.float32)
      chances = jax.nn.softmax(sharpness * logits - locality * distance[None, None], axis=-1)
      offset = (chances @ place - place[None, None]) / MATCH_UNIT
      found += [offset, jnp.sum(jnp.square(chances), axis=-1, keepdims=True)]
    return rearrange(jnp.concatenate(found, axis=-1), "b f (h w) k -> b f h w k", h=rows)


class Detail(nn.Module):
  """Tokens, which know the scene, with the stem's features and the pixels, at each cell of the map.

  Attributes:
    upsampling: frames, rows, columns of the map a token.
    fine: rows, columns of the map a feature of the stem.
    dtype: compute dtype.
  """

  upsampling: tuple[int, int, int]
  fine: tuple[int, int]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Float[Array, "b f h w d"],
    seen: Float[Array, "b F y x s"],
    video: Float[Array, "b F Y X 3"],
  ) -> Float[Array, "b F H W k"]:
    """CHANNELS features of each cell."""
    x = Deconvolution(CHANNELS, self.upsampling, dtype=self.dtype, name="tokens")(tokens)
    rows, columns = self.fine
    seen = dense(rows * columns * CHANNELS, None, None, dtype=self.dtype, name="seen")(seen)
    x = x + rearrange(seen, "b f y x (r s c) -> b f (y r) (x s) c", r=rows, s=columns)
    cell = video.shape[2] // x.shape[2], video.shape[3] // x.shape[3]
    pixels = _cells(video, cell).astype(self.dtype)
    x = x + dense(CHANNELS, None, None, dtype=self.dtype, name="pixels")(pixels)
    for level in range(2):
      conv = FrameConv(CHANNELS, dtype=self.dtype, name=f"refine_{level}")
      x = x + conv(jax.nn.gelu(x))
    return LayerNorm(name="norm")(x)


def still_offsets(cameras: Cameras, near: float) -> Float[Array, "b f h w k"]:
  """How far a cell would go in MATCHED_FRAMES were it a still point far away, or at depth `near`.

  Args:
    cameras: of the frames, at the size of the cells' grid.
    near: z-depth in the unit of the cameras' positions.

  Returns:
    For each of the frames the offset (x, y) in MATCH_UNIT of the far and of the near point, bounded
    to the image's own size. For a frame outside the clip its end stands.
  """
  frames, rows, columns = cameras.world_from_camera.shape[1], cameras.height, cameras.width
  grid = jnp.asarray(pinhole.pixel_grid(rows, columns)).reshape(1, 1, -1, 2)
  found = []
  for shift in MATCHED_FRAMES:
    others = cameras[:, _shifted(frames, shift)]
    for depth in (FAR * near, near):
      points = pinhole.unproject(
        jnp.full((*cameras.world_from_camera.shape[:2], rows, columns), depth), cameras
      )
      pixels, _ = pinhole.project(rearrange(points, "b f h w c -> b f (h w) c"), others)
      found.append(jnp.clip(pixels - grid, -max(rows, columns), max(rows, columns)) / MATCH_UNIT)
  return rearrange(jnp.concatenate(found, axis=-1), "b f (h w) k -> b f h w k", h=rows)


def _shifted(frames: int, shift: int) -> np.ndarray:
  """Numbers of the frames so many later, the first or last where there is none."""
  return np.clip(np.arange(frames) + shift, 0, frames - 1)


def _cells(video, cell: tuple[int, int]):
  """The pixels of each cell side by side, in [-1, 1]."""
  rows, columns = cell
  return rearrange(2 * video - 1, "b f (y r) (x s) c -> b f y x (r s c)", r=rows, s=columns)
