"""Where the tokens of CogVideoX are: rotary, sine-cosine and learnt positions of a video's grid."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from d4s_jax.layers.embeddings import rotary_grid
from d4s_jax.layers.partitioning import partitioned

# Rows and columns of the 2B model's sine-cosine positions are this much closer than 1.
_SPACE_SCALE = 1.875

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]


def grid_positions(
  frames: int, rows: int, columns: int, trained: tuple[int, int] | None = None
) -> Axes:
  """Positions along frames, rows and columns, float64.

  Args:
    frames: tokens along time; they are counted.
    rows: tokens of a column.
    columns: tokens of a row.
    trained: rows and columns of the grid that the model was trained on. A grid of another size is
      laid over its middle, as large as its shape allows. None: rows and columns are counted.
  """
  if trained is None:
    return np.arange(frames), np.arange(rows), np.arange(columns)
  height, width = trained
  if rows / columns > height / width:
    height, width = height, round(height / rows * columns)
  else:
    height, width = round(width / columns * rows), width
  top, left = round((trained[0] - height) / 2), round((trained[1] - width) / 2)
  # The end scales with the corner too: the published models were trained on this very formula.
  last = (top + height) * (rows - 1) / rows, (left + width) * (columns - 1) / columns
  return np.arange(frames), np.linspace(top, last[0], rows), np.linspace(left, last[1], columns)


def rotary_positions(
  axes: Axes, head_dim: int
) -> tuple[Float[Array, "n {head_dim}//2"], Float[Array, "n {head_dim}//2"]]:
  """Cosines and sines: a quarter of the channels for time, the rest for rows and columns.

  Raises:
    ValueError: 16 doesn't divide `head_dim`.
  """
  if head_dim % 16:
    raise ValueError(
      f"Head dimension {head_dim} can't hold rotary positions; use a multiple of 16."
    )
  return rotary_grid(axes, (head_dim // 8, head_dim // 16 * 3, head_dim // 16 * 3))


def sine_positions(axes: Axes, dim: int) -> Float[Array, "n {dim}"]:
  """The positions of the 2B model, to be added to its tokens: time, columns, rows.

  Raises:
    ValueError: 16 doesn't divide `dim`.
  """
  if dim % 16:
    raise ValueError(f"Width {dim} can't hold sine-cosine positions; use a multiple of 16.")
  frames, rows, columns = axes
  grid = len(frames), len(rows), len(columns)
  time = _waves(frames, dim // 4)[:, None, None]
  across = _waves(columns / _SPACE_SCALE, dim // 8 * 3)[None, None, :]
  down = _waves(rows / _SPACE_SCALE, dim // 8 * 3)[None, :, None]
  parts = [np.broadcast_to(x, (*grid, x.shape[-1])) for x in (time, across, down)]
  table = np.concatenate(parts, axis=-1).astype(np.float32)
  return jnp.asarray(rearrange(table, "f h w d -> (f h w) d"))


def _waves(positions: np.ndarray, dim: int) -> np.ndarray:
  """Sines, then cosines, at dim / 2 frequencies."""
  angles = np.outer(positions, 10000.0 ** (-np.arange(dim // 2) / (dim // 2)))
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


class LearnedPositions(nn.Module):
  """The table of 5B-I2V that is added to its tokens.

  It is read between its entries for a picture of another shape, where the rotary positions are;
  at the published size these are its entries. A longer clip or text than its own is refused.

  Attributes:
    text_length: tokens of text.
    grid: frames, rows, columns of video tokens.
    dim: width.
  """

  text_length: int
  grid: tuple[int, int, int]
  dim: int

  @nn.compact
  def __call__(
    self, axes: Axes, text_length: int
  ) -> tuple[Float[Array, "1 l {self.dim}"], Float[Array, "1 n {self.dim}"]]:
    """What to add to the tokens of the text and of the video.

    Raises:
      ValueError: the table has no entries for so many frames or so long a text.
    """
    count = self.text_length + math.prod(self.grid)
    small = partitioned(nn.initializers.normal(0.02), None, "embed")
    table = self.param("table", small, (count, self.dim))
    frames = len(axes[0])
    if frames > self.grid[0] or text_length > self.text_length:
      raise ValueError(
        f"{frames} latent frames and {text_length} tokens of text; this model has learnt positions"
        f" for at most {self.grid[0]} and {self.text_length}."
      )
    text, video = table[:text_length], table[self.text_length :]
    video = video.reshape(*self.grid, self.dim)[:frames]
    for axis, places in ((1, axes[1]), (2, axes[2])):
      video = _between(video, places, axis)
    return text[None], rearrange(video, "f h w (d one) -> one (f h w) d", one=1)


def _between(
  table: Float[Array, "f h w d"], places: np.ndarray, axis: int
) -> Float[Array, "f i j d"]:
  """Linear interpolation along an axis; exact at whole places."""
  below = np.clip(np.floor(places).astype(int), 0, table.shape[axis] - 1)
  above = np.minimum(below + 1, table.shape[axis] - 1)
  part = (places - below).astype(np.float32).reshape((-1,) + (1,) * (3 - axis))
  part = part.reshape((1,) * axis + part.shape)
  return jnp.take(table, below, axis) * (1 - part) + jnp.take(table, above, axis) * part
