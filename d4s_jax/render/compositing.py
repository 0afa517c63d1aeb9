"""Alpha compositing of tile lists, and its gradient, in memory of the size of the images.

Tiles are taken in blocks of similar list length, lists in chunks; a loop runs over the chunks that
a block has, and ends early where all its pixels are opaque. A chunk is a dense array [j k p]: j
tiles, k splats, p pixels of a tile. The loops carry [j p] arrays, and the backward pass recomputes
each chunk, from the last to the first, instead of reading it back.
"""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Shaped

from d4s_jax.render.binning import Grid, TileLists
from d4s_jax.render.projection import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE

# Splats in a chunk, in groups: the running products are taken inside groups, then over groups.
_CHUNK, _GROUP = 16, 4
# Pixels in a block of tiles: enough to feed the cores, few enough for their caches.
_BLOCK_PIXELS = 16384
# exp of this is 0 in float32.
_EXP_ZERO = -1e4

_einsum = functools.partial(jnp.einsum, precision="highest")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
  """Tiles that are drawn together: their lists, and the pixel of their upper left corners."""

  starts: Int[Array, "j"]
  counts: Int[Array, "j"]
  corners: Int[Array, "j 2"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def composite(
  grid: Grid, table: Float[Array, "n 10"], lists: TileLists
) -> Float[Array, "tiles 5 p"]:
  """Red, green, blue, depth and 1, summed with the weights of alpha compositing.

  Args:
    grid: the tiles of a view.
    table: a row for each splat: x, y, conic a, b, c, opacity, red, green, blue, depth.
    lists: the rows that touch each tile.
  """
  return _composite_forward(grid, table, lists)[0]


def _composite_forward(grid, table, lists):
  order, blocks = _blocks(grid, lists)
  layers, stops, entries = jax.lax.map(
    lambda block: _draw(grid, table, lists.splats, block), blocks
  )
  layers = _scatter(order, layers, len(lists.counts))
  return layers, (table, lists.splats, blocks, order, stops, entries)


def _composite_backward(grid, residuals, gradient):
  table, splats, blocks, order, stops, entries = residuals
  gradient = _gather(order, gradient)

  def step(table_gradient, block):
    return _draw_transposed(grid, table, splats, table_gradient, *block), None

  xs = (blocks, stops, entries, gradient)
  return jax.lax.scan(step, jnp.zeros_like(table), xs)[0], None


composite.defvjp(_composite_forward, _composite_backward)


def _blocks(grid: Grid, lists: TileLists):
  """Sorts tiles by list length, so that those of a block finish together; pads the last block."""
  tiles = len(lists.counts)
  size = min(tiles, max(1, _BLOCK_PIXELS // grid.tile**2))
  order = jnp.argsort(-lists.counts, stable=True).astype(jnp.int32)
  order = jnp.pad(order, (0, -tiles % size), constant_values=tiles)
  order = rearrange(order, "(i j) -> i j", j=size)
  tile = order % grid.tiles
  corners = jnp.stack([tile % grid.columns, tile // grid.columns], -1) * grid.tile
  starts, counts = (_gather(order, array) for array in (lists.starts, lists.counts))
  return order, _Block(starts=starts, counts=counts, corners=corners)


def _gather(order: Int[Array, "i j"], array: Shaped[Array, "tiles *x"]) -> Shaped[Array, "i j *x"]:
  """Tiles to blocks, zeros in the padding."""
  return array.at[order].get(mode="fill", fill_value=0)


def _scatter(order, array, tiles: int):
  """Blocks to tiles."""
  empty = jnp.zeros((tiles, *array.shape[2:]), array.dtype)
  return empty.at[order].set(array, mode="drop", unique_indices=True)


def _draw(grid, table, splats, block: _Block):
  """Draws a block of tiles.

  Returns:
    The layers [j 5 p]; the chunk in which each pixel stopped [j p]; the transmittance with which it
    entered that chunk [j p].
  """
  pixels = _pixels(grid, block)
  chunks = -(-jnp.max(block.counts) // _CHUNK)
  clear = jnp.ones((len(block.counts), grid.tile**2), table.dtype)

  def unfinished(state):
    chunk, transmittance, *_ = state
    return (chunk < chunks) & jnp.any(transmittance > MIN_TRANSMITTANCE)

  def step(state):
    chunk, transmittance, layers, stop, entry = state
    running = transmittance > MIN_TRANSMITTANCE
    stop, entry = jnp.where(running, chunk, stop), jnp.where(running, transmittance, entry)
    rows, _ = _read(table, splats, block, chunk)
    alphas = _alphas(rows, pixels)
    before = transmittance[:, None] * _exclusive(1 - alphas, operator.mul, 1)
    after = before * (1 - alphas)
    weights = jnp.where(after > MIN_TRANSMITTANCE, before * alphas, 0)
    layers += _einsum("jck,jkp->jcp", rearrange(_values(rows), "j k c -> j c k"), weights)
    return chunk + 1, after[:, -1], layers, stop, entry

  layers = jnp.zeros((len(clear), 5, clear.shape[1]), table.dtype)
  stop = jnp.zeros(clear.shape, jnp.int32)
  state = (jnp.int32(0), clear, layers, stop, clear)
  _, _, layers, stop, entry = jax.lax.while_loop(unfinished, step, state)
  return layers, stop, entry


def _draw_transposed(grid, table, splats, table_gradient, block: _Block, stop, entry, gradient):
  """Adds the gradient of one block to that of the table, last chunk first.

  With w_k = T_k alpha_k the weights and g_k the gradient of the sums along splat k's values,
  d/d alpha_k = T_k g_k - (sum of w_i g_i behind k) / (1 - alpha_k).
  """
  pixels = _pixels(grid, block)
  chunks = jnp.minimum(-(-jnp.max(block.counts) // _CHUNK), jnp.max(stop) + 1)

  def step(state):
    chunk, transmittance, behind, table_gradient = state
    rows, ids = _read(table, splats, block, chunk)
    alphas = _alphas(rows, pixels)
    through = _exclusive(1 - alphas, operator.mul, 1)
    # Undo this chunk; where the pixel stopped in it, or behind, start from what was kept.
    start = transmittance / (through[:, -1] * (1 - alphas[:, -1]))
    start = jnp.where(chunk < stop, start, jnp.where(chunk == stop, entry, 0))
    before = start[:, None] * through
    # Before its last chunk a pixel has not stopped, whatever the division's rounding says.
    drawn = (before * (1 - alphas) > MIN_TRANSMITTANCE) | (chunk < stop)[:, None]
    drawn &= alphas > 0
    weights = jnp.where(drawn, before * alphas, 0)
    along = _einsum("jkc,jcp->jkp", _values(rows), gradient)
    shares = weights * along
    hidden = behind[:, None] + _exclusive(shares, operator.add, 0, reverse=True)
    alpha_gradient = before * along - hidden / (1 - alphas)
    # Of sigma in alpha = opacity exp(-sigma); the cap on alpha stops it.
    sigma_gradient = jnp.where(drawn & (alphas < MAX_ALPHA), -alphas * alpha_gradient, 0)
    values_gradient = _einsum("jkp,jcp->jkc", weights, gradient)[..., :4]
    shape_gradient = _shape_gradient(grid, rows, block, sigma_gradient)
    rows_gradient = jnp.concatenate([shape_gradient, values_gradient], -1)
    table_gradient = table_gradient.at[ids].add(rows_gradient, mode="promise_in_bounds")
    return chunk - 1, start, behind + jnp.sum(shares, axis=1), table_gradient

  nothing = jnp.zeros_like(entry)
  state = (chunks - 1, nothing, nothing, table_gradient)
  return jax.lax.while_loop(lambda state: state[0] >= 0, step, state)[-1]


def _read(table, splats, block: _Block, chunk):
  """Rows [j k 10] of the chunk's splats and their numbers; beyond a list's end the opacity is 0."""
  slots = chunk * _CHUNK + jnp.arange(_CHUNK, dtype=jnp.int32)[None]
  live = slots < block.counts[:, None]
  ids = splats.at[block.starts[:, None] + slots].get(mode="clip")
  rows = table.at[ids].get(mode="promise_in_bounds")
  return rows.at[..., 5].multiply(live), ids


def _values(rows: Float[Array, "j k 10"]) -> Float[Array, "j k 5"]:
  """What is summed: colour, depth and 1."""
  return jnp.concatenate([rows[..., 6:], jnp.ones_like(rows[..., :1])], -1)


def _offsets(grid) -> Float[np.ndarray, "2 p"]:
  """Columns x and rows y of a tile's pixel centres from its corner."""
  y, x = np.mgrid[: grid.tile, : grid.tile] + 0.5
  return np.stack([x.ravel(), y.ravel()]).astype(np.float32)


def _pixels(grid, block: _Block) -> tuple[Float[Array, "j 1 p"], Float[Array, "j 1 p"]]:
  """Columns x and rows y of the block's pixel centres."""
  corners = rearrange(block.corners.astype(jnp.float32), "j xy -> xy j 1 1")
  x, y = rearrange(_offsets(grid), "xy p -> xy 1 1 p")
  return corners[0] + x, corners[1] + y


def _alphas(rows: Float[Array, "j k 10"], pixels) -> Float[Array, "j k p"]:
  """Opacity of each splat at each pixel; 0 where it is skipped.

  Everything is decided before the exponential: XLA keeps that and repeats what comes after it in
  each of its uses.
  """
  x, y, a, b, c, opacity = (rows[..., i, None] for i in range(6))
  dx, dy = x - pixels[0], y - pixels[1]
  sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
  exponent = jnp.log(opacity) - sigma
  seen = (sigma >= 0) & (exponent >= math.log(MIN_ALPHA))
  return jnp.minimum(jnp.exp(jnp.where(seen, exponent, _EXP_ZERO)), MAX_ALPHA)


def _shape_gradient(grid, rows, block, gradient: Float[Array, "j k p"]) -> Float[Array, "j k 6"]:
  """Gradient of x, y, conic and opacity from that of sigma.

  sigma is a quadratic form of dx, dy, so all of it follows from the moments of the gradient
  over the tile's pixels: one matrix product.
  """
  px, py = _offsets(grid) - grid.tile / 2
  basis = np.stack([np.ones_like(px), px, py, px * px, px * py, py * py])
  moments = _einsum("jkp,mp->jkm", gradient, jnp.asarray(basis, jnp.float32))
  one, mx, my, mxx, mxy, myy = (moments[..., i] for i in range(6))
  a, b, c, opacity = (rows[..., i] for i in range(2, 6))
  x, y = (rows[..., i] - block.corners[:, None, i] - grid.tile / 2 for i in range(2))
  dx, dy = x * one - mx, y * one - my
  dxx = x * x * one - 2 * x * mx + mxx
  dxy = x * y * one - x * my - y * mx + mxy
  dyy = y * y * one - 2 * y * my + myy
  faint = -one / jnp.where(opacity > 0, opacity, 1)
  return jnp.stack([a * dx + b * dy, b * dx + c * dy, dxx / 2, dxy, dyy / 2, faint], -1)


def _exclusive(values: Float[Array, "j k p"], combine, identity, *, reverse: bool = False):
  """Combines, for each k, all values before it (with `reverse`, behind it), itself left out."""
  groups = rearrange(values, "j (g k) p -> j g k p", k=_GROUP)
  inside = _exclusive_along(groups, 2, combine, identity, reverse)
  end = 0 if reverse else -1
  whole = combine(inside[:, :, end], groups[:, :, end])
  outside = _exclusive_along(whole, 1, combine, identity, reverse)
  return rearrange(combine(inside, outside[:, :, None]), "j g k p -> j (g k) p")


def _exclusive_along(values, axis: int, combine, identity, reverse: bool):
  """`_exclusive` along a short axis, as one loop without dependencies: it vectorises."""
  length = values.shape[axis]
  position = jnp.arange(length).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
  total = jnp.full_like(values, identity)
  for i in range(length):
    value = jax.lax.slice_in_dim(values, i, i + 1, axis=axis)
    counted = position < i if reverse else position > i
    total = combine(total, jnp.where(counted, value, identity))
  return total
