"""The renderer for every platform: static shapes, plain XLA, its own backward pass.

Splats are projected, listed tile by tile (`binning`) and composited (`compositing`). All views go
through one list of tiles. Memory depends on the number of Gaussians, of intersections and of
pixels, never on a product of them. On a CPU or a TPU equal inputs give equal bits, gradients
included.
"""

from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from d4s_jax.render import binning, projection
from d4s_jax.render.binning import Grid
from d4s_jax.render.compositing import composite
from d4s_jax.types import Cameras, Gaussians

# Indices are int32.
_MOST_ENTRIES = 2**31 - 1
# Images up to this many pixels wide and high get small tiles: less is computed in vain around
# small splats, and the lists are still short.
_SMALL_IMAGE = 128


def rasterize(
  gaussians: Gaussians,
  cameras: Cameras,
  *,
  capacity: int | None = None,
  antialiased: bool = False,
  blur: float = projection.BLUR,
) -> tuple[Float[Array, "v h w 5"], Int[Array, "v"]]:
  """Draws Gaussians [v n] into cameras [v].

  Args:
    gaussians: one set for each camera; float32.
    cameras: one for each set.
    capacity: the most Gaussian-tile intersections of one view; `binning.default_capacity` if None.
    antialiased: as in `projection.project`.
    blur: likewise.

  Returns:
    Colour, depth and 1, each summed with the weights of alpha compositing, and the number of
    intersections of each view that were dropped for want of room.
  """
  height, width = cameras.height, cameras.width
  tile = 8 if max(height, width) <= _SMALL_IMAGE else 16
  grid = Grid(height=height, width=width, tile=tile)
  views, count = gaussians.opacities.shape
  if 0 in (views, count, height, width):  # Nothing to index.
    return jnp.zeros((views, height, width, 5)), jnp.zeros(views, jnp.int32)
  splats = projection.project(gaussians, cameras, antialiased=antialiased, blur=blur)
  room = capacity or binning.default_capacity(count, grid)
  room = min(room, count * grid.tiles)
  if views * max(room, count) > _MOST_ENTRIES:
    raise ValueError(
      f"{views} views with room for {room} intersections each; tiled counts to {_MOST_ENTRIES}."
      " Draw fewer views at once, or give a smaller capacity."
    )
  lists = binning.tile_lists(splats, grid, room)
  table = jnp.concatenate(
    [
      splats.means,
      splats.conics,
      splats.opacities[..., None],
      splats.colours,
      splats.depths[..., None],
    ],
    -1,
  )
  tiles: Any = composite(grid, rearrange(table, "v n c -> (v n) c"), lists)
  layers = rearrange(
    tiles,
    "(v row column) c (y x) -> v (row y) (column x) c",
    v=views,
    row=grid.rows,
    y=tile,
  )
  return layers[:, :height, :width], lists.overflow
