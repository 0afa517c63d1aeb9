"""Surfaces from depth pictures: a truncated signed distance field (Curless and Levoy 1996).

Only the voxels near a surface are looked at; which they are depends on the data, so that they are
found on the host.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.types import Cameras

# Sides of the blocks, in voxels, of which only those near a surface are looked at.
_BLOCK = 4
# So many places are looked at in one call, whose numbers then stay near the processor.
_CALL = 2**14
# What is told with less trust than this, in all pictures, is unknown.
_TRUST = 0.1
# Depths of neighbours are averaged as long as they differ less, as a share.
_SMOOTH = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
  """Signed distances on a grid.

  Attributes:
    distance: to the nearest surface over the truncation, in [-1, 1], positive outside; 1 where
      nothing was seen.
    seen: whether any picture tells the distance.
    low: world position of the first voxel's centre, metres.
    voxel: metres from one voxel to the next.
  """

  distance: Float[np.ndarray, "x y z"]
  seen: Bool[np.ndarray, "x y z"]
  low: Float[np.ndarray, "3"]
  voxel: float


def bounds(
  found: Float[np.ndarray, "n 3"], voxels: int, share: float
) -> tuple[np.ndarray, float, tuple[int, int, int]]:
  """A grid around points: first voxel, metres a voxel, voxels a side (multiples of the block).

  Args:
    found: points on the surface.
    voxels: along the longest side.
    share: of the points along each axis that may stay outside at either end.

  Raises:
    ValueError: the points lie in one place.
  """
  low, high = np.quantile(found, (share, 1 - share), axis=0)
  voxel = float((high - low).max() / voxels)
  if not voxel > 0:
    raise ValueError(f"All that is seen lies at {low}, which is no surface; expected more points.")
  # Room for the truncation at both ends.
  low, high = low - _BLOCK * voxel, high + _BLOCK * voxel
  x, y, z = (int(-(-size // (_BLOCK * voxel))) * _BLOCK for size in high - low)
  return low, voxel, (x, y, z)


def points(depth: Float[np.ndarray, "v h w"], cameras: Cameras) -> Float[np.ndarray, "n 3"]:
  """World positions of the pixels with a finite depth above 0, of every other row and column.

  Args:
    depth: z-depth, metres.
    cameras: of the pictures, [v]; their arrays are NumPy's.
  """
  # The centre of the first pixel of four is half a pixel from the left in those of twice the size.
  halved = np.array([[0.5], [0.5], [1]], np.float32)
  shift = np.array([[0, 0, 0.25], [0, 0, 0.25], [0, 0, 0]], np.float32)
  half = dataclasses.replace(cameras, intrinsics=cameras.intrinsics * halved + shift)
  coarse = np.asarray(depth[:, ::2, ::2], np.float32)
  half = dataclasses.replace(half, height=coarse.shape[1], width=coarse.shape[2])
  known = np.isfinite(coarse) & (coarse > 0)
  return np.asarray(_unproject(np.where(known, coarse, 0), half))[known]


def without_edges(depth: Float[np.ndarray, "v h w"], jump: float) -> Float[np.ndarray, "v h w"]:
  """Depth with 0 on both sides of every step: blended pixels there belong to no surface.

  Args:
    depth: z-depth; 0 where unknown, infinite where there is nothing.
    jump: difference of neighbours, as a share of the nearer one, that is a step.
  """
  kept = np.array(depth)
  for axis in (1, 2):
    first = [slice(None)] * 3
    second = [slice(None)] * 3
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    a, b = depth[tuple(first)], depth[tuple(second)]
    with np.errstate(invalid="ignore"):
      step = np.abs(a - b) > jump * np.minimum(a, b)
    kept[tuple(first)][step] = 0
    kept[tuple(second)][step] = 0
  return kept


def fuse(
  depth: Float[np.ndarray, "v h w"],
  cameras: Cameras,
  low: Float[np.ndarray, "3"],
  voxel: float,
  shape: tuple[int, int, int],
  truncation: float = 4.0,
  found: Float[np.ndarray, "n 3"] | None = None,
) -> Field:
  """Fuses pictures into one field; each tells the voxels from `truncation` behind its surface on.

  Only blocks of voxels are told that hold a point, or have one within two voxels: there the surface
  is.

  Args:
    depth: z-depth in metres; 0 where unknown, infinite where there is nothing.
    cameras: of the pictures, [v]; their arrays are NumPy's.
    low: position of the first voxel.
    voxel: metres from one to the next.
    shape: voxels a side, multiples of 4.
    truncation: in voxels; distances are shares of it.
    found: `points` of the pictures, if they are at hand.
  """
  found = points(depth, cameras) if found is None else found
  near = _near(found, low, voxel, shape)
  sides = np.array(shape) // _BLOCK
  inner = np.stack(np.meshgrid(*[np.arange(_BLOCK)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
  corners = np.stack(np.unravel_index(near, sides), axis=-1) * _BLOCK
  centres = (low + voxel * corners).astype(np.float32)[:, None] + np.float32(voxel) * inner
  pictures = jax.device_put((depth, cameras.world_from_camera, cameras.intrinsics))
  sums = _in_calls(_accumulate, centres.reshape(-1, 3), pictures, truncation * voxel)
  total, weight = (x.reshape(-1, len(inner)) for x in sums)
  distance = np.ones((sides.prod(), len(inner)), np.float32)
  distance[near] = np.where(weight > _TRUST, total / np.maximum(weight, _TRUST), 1)
  seen = np.zeros(distance.shape, bool)
  seen[near] = weight > _TRUST

  def grid(blocks):
    order = "(x y z) (i j k) -> (x i) (y j) (z k)"
    return rearrange(blocks, order, **dict(zip("xyz", sides)), i=_BLOCK, j=_BLOCK)

  return Field(grid(distance), grid(seen), low, voxel)


def paint(
  places: Float[np.ndarray, "n 3"],
  depth: Float[np.ndarray, "v h w"],
  images: Float[np.ndarray, "v h w 3"],
  cameras: Cameras,
  reach: float,
) -> Float[np.ndarray, "n 3"]:
  """Colours of points on the surface: the mean of the pictures that see them; black if none does.

  Args:
    places: world positions.
    depth: z-depth in metres; 0 where unknown, infinite where there is nothing.
    images: colours in [0, 1].
    cameras: of the pictures, [v]; their arrays are NumPy's.
    reach: metres before or behind the surface up to which a picture sees the point.
  """
  planes = rearrange(images, "v h w c -> v c h w")
  pictures = jax.device_put((depth, cameras.world_from_camera, cameras.intrinsics, planes))
  *tint, seen = _in_calls(_look, places, pictures, reach)
  return np.stack(tint, axis=-1) / np.maximum(seen, 1)[:, None]


_unproject = jax.jit(pinhole.unproject)


def _in_calls(function, places: Float[np.ndarray, "n 3"], pictures, reach: float):
  """What `function` tells of each place, so many at a time that it is compiled once."""
  count = len(places)
  padded = np.zeros((-(-max(count, 1) // _CALL) * _CALL, 3), np.float32)
  padded[:count] = places
  calls = [
    function(x, *pictures, np.float32(reach)) for x in np.split(padded, len(padded) // _CALL)
  ]
  return [np.concatenate(x)[:count] for x in zip(*jax.device_get(calls))]


@jax.jit
def _look(places, depth, poses, intrinsics, images, reach):
  """Sums over the pictures that see each place: red, green, blue, and how many these are."""

  def add(sums, picture):
    depth, pose, lens, image = picture
    z, column, row, inside = _seen_at(places.T, pose, lens, depth.shape)
    height, width = depth.shape
    row = jnp.clip(jnp.floor(row), 0, height - 1).astype(jnp.int32)
    at = row * width + jnp.clip(jnp.floor(column), 0, width - 1).astype(jnp.int32)
    front = depth.ravel()[at]
    close = (inside & (front > 0) & (jnp.abs(front - z) < reach)).astype(jnp.float32)
    told = [*(channel.ravel()[at] for channel in image), 1.0]
    return [total + close * value for total, value in zip(sums, told)], None

  start = [jnp.zeros(len(places))] * 4
  return jax.lax.scan(add, start, (depth, poses, intrinsics, images))[0]


def _seen_at(places, pose, lens, size):
  """Of places [3 n]: z-depth, column, row, and whether the picture reaches there."""
  height, width = size
  away = [places[axis] - pose[axis, 3] for axis in range(3)]
  x, y, z = (sum(pose[axis, i] * away[axis] for axis in range(3)) for i in range(3))
  column = lens[0, 0] * x / jnp.maximum(z, 1e-6) + lens[0, 2]
  row = lens[1, 1] * y / jnp.maximum(z, 1e-6) + lens[1, 2]
  inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
  return z, column, row, inside


@jax.jit
def _accumulate(centres, depth, poses, intrinsics, reach):
  """Sums over the pictures, of each voxel: distances, and how much they are trusted.

  Components are apart, so that XLA makes vector loops of them.
  """
  places = centres.T

  def add(sums, picture):
    depth, pose, lens = picture
    total, weight = sums
    z, column, row, inside = _seen_at(places, pose, lens, depth.shape)
    found = _between(depth, column - 0.5, row - 0.5)
    ahead = found - z
    told = inside & (found > 0) & (ahead > -reach)
    # What a picture says of what lies behind its surface counts the less the further behind.
    trust = jnp.where(told, jnp.minimum(1 + ahead / reach, 1), 0)
    return (total + trust * jnp.minimum(ahead / reach, 1), weight + trust), None

  zero = jnp.zeros(len(centres))
  return jax.lax.scan(add, (zero, zero), (depth, poses, intrinsics))[0]


def _between(depth, column, row):
  """Depth between four pixel centres, where all are near the nearest one, else that itself."""
  height, width = depth.shape
  left = jnp.floor(jnp.clip(column, 0, width - 2))
  top = jnp.floor(jnp.clip(row, 0, height - 2))
  x, y = jnp.clip(column - left, 0, 1), jnp.clip(row - top, 0, 1)
  flat, start = depth.ravel(), top.astype(jnp.int32) * width + left.astype(jnp.int32)
  a, b, c, d = (flat[start + offset] for offset in (0, 1, width, width + 1))
  nearest = jnp.where(x < 0.5, jnp.where(y < 0.5, a, c), jnp.where(y < 0.5, b, d))
  mean = (1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d)
  spread = sum(jnp.abs(corner - nearest) < _SMOOTH * nearest for corner in (a, b, c, d))
  return jnp.where(spread == 4, mean, nearest)


def _near(found, low, voxel: float, shape) -> np.ndarray:
  """Flat indices of all blocks that hold a point, or have one within two voxels."""
  marked = np.zeros(np.array(shape) // 2 + 2, bool)
  # Cells of two voxels a side, with a border that keeps what lies outside apart.
  cells = np.floor(np.float32(0.5 / voxel) * (found - np.float32(low))).astype(np.int32) + 1
  cells = cells[((cells > 0) & (cells < np.array(marked.shape) - 1)).all(axis=1)]
  marked[tuple(cells.T)] = True
  for axis in range(3):
    marked = marked | np.roll(marked, 1, axis) | np.roll(marked, -1, axis)
  order, half = "(x i) (y j) (z k) -> (x y z) (i j k)", _BLOCK // 2
  inside = rearrange(marked[1:-1, 1:-1, 1:-1], order, i=half, j=half, k=half)
  return np.flatnonzero(inside.any(axis=1))
