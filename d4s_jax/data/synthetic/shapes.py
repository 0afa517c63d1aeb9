"""Convex solids in their own axes, scaled to half extents of one: where rays enter, and normals.

Axes are those of a standing solid: y points down, so a cylinder's and a cone's axis is y, and the
cone's tip is at y = -1. Points and rays are given by components, `[3 r]`, because NumPy is fastest
on contiguous ones. A ray that misses enters at infinity; rays start outside.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Vectors = Float[np.ndarray, "3 r"]
Scalars = Float[np.ndarray, "r"]

_TINY = np.float32(1e-12)
_MISS = np.float32(np.inf)


@dataclasses.dataclass(frozen=True)
class Shape:
  """A kind of solid.

  Attributes:
    enter: (origins, directions) -> the multiple of the direction at which a ray enters.
    normal: points on the surface -> outward normals of any length.
  """

  enter: Callable[[Vectors, Vectors], Scalars]
  normal: Callable[[Vectors], Vectors]


def dot(a: Float[np.ndarray, "c r"], b: Float[np.ndarray, "c r"]) -> Scalars:
  """Inner products over the components."""
  total = a[0] * b[0]
  for x, y in zip(a[1:], b[1:]):
    total += x * y
  return total


def _enter_sphere(origin, direction):
  squared = dot(direction, direction)
  middle = -dot(origin, direction) / squared
  # The squared distance between ray and centre, from the nearest point itself: as a difference of
  # squares it would lose the digits that decide whether a far ball is hit.
  nearest = origin + middle * direction
  inside = 1 - dot(nearest, nearest)
  return np.where(inside > 0, middle - np.sqrt(np.maximum(inside, 0) / squared), _MISS)


def _enter_box(origin, direction):
  enter, leave = _slabs(origin, direction)
  enter, leave = enter.max(axis=0), leave.min(axis=0)
  return np.where(enter < leave, enter, _MISS)


def _enter_cylinder(origin, direction):
  (low,), (high,) = _slabs(origin[1:2], direction[1:2])
  flat = direction[::2]
  squared = np.maximum(dot(flat, flat), _TINY)
  middle = -dot(origin[::2], flat) / squared
  nearest = origin[::2] + middle * flat
  inside = 1 - dot(nearest, nearest)
  half = np.sqrt(np.maximum(inside, 0) / squared)
  enter, leave = np.maximum(middle - half, low), np.minimum(middle + half, high)
  return np.where((inside > 0) & (enter < leave), enter, _MISS)


def _enter_cone(origin, direction):
  # From the ray's point nearest to the centre: the roots of a far start lose their digits.
  middle = -dot(origin, direction) / dot(direction, direction)
  origin = origin + middle * direction
  # The side is x^2 + z^2 = ((y + 1) / 2)^2 for y from -1 to 1.
  radius, widening = (origin[1] + 1) / 2, direction[1] / 2
  flat_origin, flat = origin[::2], direction[::2]
  a = dot(flat, flat) - widening * widening
  a = np.where(np.abs(a) < _TINY, _TINY, a)
  b = dot(flat_origin, flat) - radius * widening
  c = dot(flat_origin, flat_origin) - radius * radius
  root = np.sqrt(np.maximum(b * b - a * c, 0))
  exists = b * b > a * c
  base = (1 - origin[1]) / _nonzero(direction[1])
  at_base = flat_origin + base * flat
  enter = np.where(dot(at_base, at_base) < 1, base, _MISS)
  for side in ((-b - root) / a, (-b + root) / a):
    on_side = exists & (np.abs(origin[1] + side * direction[1]) < 1)
    enter = np.minimum(enter, np.where(on_side, side, _MISS))
  return enter + middle


def _slabs(origin, direction):
  """Where rays enter and leave -1 <= coordinate <= 1, for each coordinate."""
  inverse = 1 / _nonzero(direction)
  middle, half = -origin * inverse, np.abs(inverse)
  return middle - half, middle + half


def _nonzero(values):
  return np.where(np.abs(values) < _TINY, _TINY, values)


def _box_normal(points):
  size = np.abs(points)
  return np.where(size == size.max(axis=0), points, 0)


def _cylinder_normal(points):
  flat = np.abs(points[1]) ** 2 > dot(points[::2], points[::2])
  return np.stack([np.where(flat, 0, points[0]), flat * points[1], np.where(flat, 0, points[2])])


def _cone_normal(points):
  base = points[1] > 0.999
  side = -(points[1] + 1) / 4
  x, z = np.where(base, 0, points[0]), np.where(base, 0, points[2])
  return np.stack([x, np.where(base, 1, side), z])


SHAPES = {
  "sphere": Shape(_enter_sphere, lambda points: points),
  "box": Shape(_enter_box, _box_normal),
  "cylinder": Shape(_enter_cylinder, _cylinder_normal),
  "cone": Shape(_enter_cone, _cone_normal),
}
