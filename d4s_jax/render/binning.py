"""Which splats touch which tile, front to back, in arrays of static size.

Sorting is what costs, and XLA sorts plain integers several times faster than pairs of key and
value. So keys and values share one unsigned 32-bit integer wherever they fit.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Int

from d4s_jax.render.projection import Splats

# Totals saturate here, far below the wrap of int32.
_SATURATION = 2**30
# Keys and values above this don't fit one integer.
_PACKED_LIMIT = 2**32
# Every view's list has a static length; the shortest of these fractions of the capacity that
# holds the intersections at hand is used, so that a generous capacity costs nothing.
_LADDER = (1 / 16, 1 / 4, 1)
# Lists up to this long are not worth another program.
_SHORT = 4096


@dataclasses.dataclass(frozen=True)
class Grid:
  """The tiles of an image: `rows` x `columns` squares of `tile` pixels, row by row."""

  height: int
  width: int
  tile: int

  @property
  def rows(self) -> int:
    """Tiles from top to bottom."""
    return -(-self.height // self.tile)

  @property
  def columns(self) -> int:
    """Tiles from left to right."""
    return -(-self.width // self.tile)

  @property
  def tiles(self) -> int:
    """Tiles of one view."""
    return self.rows * self.columns


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TileLists:
  """The splats of each tile of each view, front to back.

  Attributes:
    splats: view * n + splat, one tile after the other; every view has the same room.
    starts: where each tile's splats begin.
    counts: how many they are.
    overflow: intersections of each view that found no room.
  """

  splats: Int[Array, "entries"]
  starts: Int[Array, "lists"]
  counts: Int[Array, "lists"]
  overflow: Int[Array, "v"]


def default_capacity(splats: int, grid: Grid) -> int:
  """Room for 16 tiles a splat and some giants, or for everything where that is less."""
  return min(splats * grid.tiles, 16 * splats + 64 * grid.tiles)


def tile_lists(splats: Splats, grid: Grid, capacity: int) -> TileLists:
  """Lists the splats whose box touches a tile, for every tile of every view.

  Where a view has more intersections than `capacity`, those of its farthest splats are dropped.
  """
  order = _front_to_back(splats)
  first, size = _touched_tiles(splats, grid)
  by_depth = jnp.take_along_axis(jnp.concatenate([first, size], -1), order[..., None], axis=1)
  first, size = by_depth[..., :2], by_depth[..., 2:]
  ends = _running_total(size[..., 0] * size[..., 1])
  totals = ends[:, -1]

  lengths = [math.ceil(capacity * share) for share in _LADDER if share == 1 or capacity > _SHORT]
  level = sum((jnp.max(totals) > length).astype(jnp.int32) for length in lengths[:-1])
  views = jnp.arange(len(order), dtype=jnp.int32)[:, None]
  ids = order + views * order.shape[1]
  branches = [_binner(grid, length, capacity) for length in lengths]
  splats_of_tiles, bounds = jax.lax.switch(level, branches, ids, first, size, ends)
  return TileLists(
    splats=splats_of_tiles.reshape(-1),
    starts=(bounds[:, :-1] + views * capacity).reshape(-1),
    counts=(bounds[:, 1:] - bounds[:, :-1]).reshape(-1),
    overflow=jnp.maximum(totals - capacity, 0),
  )


def _front_to_back(splats: Splats) -> Int[Array, "v n"]:
  """Indices by rising depth, ties by index: a radix sort, as many bits a pass as fit."""
  # Positive floats order like their bit patterns.
  depths = jax.lax.bitcast_convert_type(splats.depths.astype(jnp.float32), jnp.uint32)
  count = depths.shape[1]
  index_bits = (count - 1).bit_length()
  digit_bits = 32 - index_bits
  position = jnp.broadcast_to(jnp.arange(count, dtype=jnp.uint32), depths.shape)
  mask = jnp.uint32(2**index_bits - 1)
  order = position
  for shift in range(0, 31, digit_bits):
    keys = jnp.take_along_axis(depths, order, axis=1) >> shift
    packed = jnp.sort((keys << index_bits) | position, axis=1)
    order = jnp.take_along_axis(order, packed & mask, axis=1)
  return order.astype(jnp.int32)


def _touched_tiles(splats: Splats, grid: Grid):
  """First tile (column, row) and number of columns and rows that hold a pixel of each box."""
  limits = jnp.asarray([[[grid.width, grid.height]]], splats.means.dtype)
  # Pixel i has its centre at i + 0.5; limits also keep the conversion to integers in range.
  first = jnp.ceil(splats.means - splats.extents - 0.5)
  last = jnp.floor(splats.means + splats.extents - 0.5)
  first = jnp.clip(first, 0, limits).astype(jnp.int32)
  last = jnp.clip(last, -1, limits - 1).astype(jnp.int32)
  seen = jnp.all((last >= first) & (splats.extents > 0), axis=-1, keepdims=True)
  first_tile = first // grid.tile
  return first_tile, jnp.where(seen, last // grid.tile - first_tile + 1, 0)


def _running_total(counts: Int[Array, "v n"]) -> Int[Array, "v n"]:
  """Inclusive running sum that stays at _SATURATION instead of wrapping."""
  rough = jnp.cumsum(counts.astype(jnp.float32), axis=1)
  return jnp.where(rough < _SATURATION, jnp.cumsum(counts, axis=1), _SATURATION)


def _binner(grid: Grid, length: int, capacity: int):
  """The function that lists at most `length` intersections for each view."""

  def bin_(ids, first, size, ends) -> tuple[Int[Array, "v capacity"], Int[Array, "v boundaries"]]:
    ranks, tiles = _intersections(first, size, ends, grid, length)
    index_bits = (ids.shape[1] - 1).bit_length()
    boundaries = jnp.arange(grid.tiles + 1, dtype=jnp.uint32)
    if (grid.tiles + 1) << index_bits <= _PACKED_LIMIT:
      packed = jnp.sort((tiles << index_bits) | ranks, axis=1)
      ranks = packed & jnp.uint32(2**index_bits - 1)
      tiles, boundaries = packed, boundaries << index_bits
    else:
      tiles, ranks = jax.lax.sort((tiles, ranks), num_keys=2)
    bounds = jax.vmap(lambda row: jnp.searchsorted(row, boundaries))(tiles)
    splats = jnp.take_along_axis(ids, ranks.astype(jnp.int32), axis=1, mode="clip")
    return jnp.pad(splats, ((0, 0), (0, capacity - length))), bounds.astype(jnp.int32)

  return bin_


def _intersections(first, size, ends, grid: Grid, length: int):
  """Depth rank and tile of the first `length` intersections of each view, nearest splats first.

  Slots behind the last intersection get the tile number `grid.tiles`.
  """
  starts = ends - size[..., 0] * size[..., 1]
  slots = jnp.arange(length, dtype=jnp.int32)
  # A splat's slots run from its start to its end: the number of starts passed tells whose it is.
  mark = jax.vmap(lambda row: jnp.zeros(length, jnp.int32).at[row].add(1, mode="drop"))
  ranks = jnp.cumsum(mark(starts), axis=1) - 1
  table = jnp.concatenate([first, size[..., :1], starts[..., None], ends[..., None]], -1)
  column, row, width, start, end = rearrange(
    jnp.take_along_axis(table, ranks[..., None], axis=1, mode="clip"), "v e c -> c v e"
  )
  local = slots[None] - start
  down = _divide(local, jnp.maximum(width, 1))
  tiles = (row + down) * grid.columns + column + local - down * width
  tiles = jnp.where(slots[None] < end, tiles, grid.tiles)
  return ranks.astype(jnp.uint32), tiles.astype(jnp.uint32)


def _divide(numerator, denominator) -> Int[Array, "..."]:
  """Integer quotient through floats, exact up to 2^22: integer division does not vectorise."""
  quotient = (numerator.astype(jnp.float32) + 0.5) / denominator.astype(jnp.float32)
  return jnp.floor(quotient).astype(jnp.int32)
