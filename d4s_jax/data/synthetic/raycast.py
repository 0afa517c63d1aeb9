"""Casting rays, all frames at once: which surface each ray meets, and at which depth.

A ray's direction has length 1 along the camera's z axis, so that the multiple of the direction at
which it meets a surface is the z-depth.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from d4s_jax.data.synthetic.description import CEILING, FIRST_BODY, FLOOR, SKY, Body, Place
from d4s_jax.data.synthetic.shapes import SHAPES, dot

# Nothing nearer than this is seen.
_NEAR = np.float32(0.05)
# A direction's component below this is taken as this.
_PARALLEL = np.float32(1e-9)


@dataclasses.dataclass(frozen=True)
class Rays:
  """Rays through points of image planes.

  Attributes:
    frame: which camera.
    x: slope to the right, (pixel - cx) / fx.
    y: slope downwards, (pixel - cy) / fy.
  """

  frame: Int[np.ndarray, "r"]
  x: Float[np.ndarray, "r"]
  y: Float[np.ndarray, "r"]

  def __getitem__(self, index) -> "Rays":
    return Rays(self.frame[index], self.x[index], self.y[index])


@dataclasses.dataclass(frozen=True)
class Eyes:
  """Cameras in somebody's axes, one a frame.

  Attributes:
    axes: columns are the camera's axes.
    position: the camera's centre.
  """

  axes: Float[np.ndarray, "f 3 3"]
  position: Float[np.ndarray, "f 3"]

  def seen_from(
    self,
    rotation: Float[np.ndarray, "f 3 3"],
    center: Float[np.ndarray, "f 3"],
    half: Float[np.ndarray, "3"],
  ) -> "Eyes":
    """The same cameras in the axes of a moving solid, in units of its half extents."""
    inverse = np.swapaxes(rotation, 1, 2) / half[:, None]
    position = inverse @ (self.position - center)[..., None]
    return Eyes(inverse @ self.axes, position[..., 0])

  def rays(self, rays: Rays) -> tuple[Float[np.ndarray, "3 r"], Float[np.ndarray, "3 r"]]:
    """Origins and directions, by components."""
    table = np.concatenate([self.axes, self.position[..., None]], axis=2).astype(np.float32)
    right, down, ahead, origin = np.take(table.transpose(2, 1, 0), rays.frame, axis=2)
    right *= rays.x
    down *= rays.y
    right += down
    right += ahead
    return origin, right


@dataclasses.dataclass(frozen=True)
class Hits:
  """What rays meet.

  Attributes:
    depth: z-depth, metres.
    surface: index of a surface of the place, or FIRST_BODY plus the index of a solid.
    origin: the rays' origins in room axes.
    direction: the rays' directions in room axes.
  """

  depth: Float[np.ndarray, "r"]
  surface: UInt8[np.ndarray, "r"]
  origin: Float[np.ndarray, "3 r"]
  direction: Float[np.ndarray, "3 r"]

  def __getitem__(self, index) -> "Hits":
    return Hits(
      self.depth[index], self.surface[index], self.origin[:, index], self.direction[:, index]
    )


class Snapshots:
  """A scene as cameras see it, each at its time.

  Attributes:
    eyes: the cameras in room axes.
    bodies: the solids.
    rotations: `room_from_body` of each solid at each frame.
    body_eyes: the cameras in each solid's own axes and units.
  """

  def __init__(self, place: Place, bodies: list[Body], eyes: Eyes, times: Float[np.ndarray, "f"]):
    self.place, self.eyes = place, eyes
    self.bodies = bodies
    self.rotations, self.body_eyes, self._windows = [], [], []
    for body in bodies:
      rotation, center = body.motion.pose(times)
      self.rotations.append(rotation)
      self.body_eyes.append(eyes.seen_from(rotation, center, body.half))
      self._windows.append(_window(eyes, rotation, center, body.half))

  def trace(self, rays: Rays) -> Hits:
    """The first surface on each ray."""
    origin, direction = self.eyes.rays(rays)
    depth, surface = _trace_place(self.place, origin, direction)
    for index, (body, eyes, window) in enumerate(zip(self.bodies, self.body_eyes, self._windows)):
      inside = np.flatnonzero(_within(rays, window))
      enter = SHAPES[body.shape].enter(*eyes.rays(rays[inside]))
      nearer = (enter < depth[inside]) & (enter > _NEAR)
      inside = inside[nearer]
      depth[inside] = enter[nearer]
      surface[inside] = FIRST_BODY + index
    return Hits(depth, surface, origin, direction)


def _trace_place(place, origin, direction):
  """Where rays leave the box of the place, or meet the sky above it."""
  low, high = (x.astype(np.float32)[:, None] for x in (place.low, place.high))
  ahead = direction > 0
  leave = np.where(ahead, high, low)
  leave -= origin
  # A ray along a wall never leaves through it: far ahead, on the side that `leave` says.
  along = np.where(ahead, _PARALLEL, -_PARALLEL)
  leave /= np.where(np.abs(direction) < _PARALLEL, along, direction)
  depth, surface = leave[0].copy(), ahead[0].astype(np.uint8)
  for axis in (1, 2):
    nearer = leave[axis] < depth
    np.copyto(depth, leave[axis], where=nearer)
    np.copyto(surface, ahead[axis] + np.uint8(2 * axis), where=nearer)
  if place.sky is None:
    return depth, surface
  return _open_sky(place, origin, direction, leave[1], depth, surface)


def _open_sky(place, origin, direction, floor, depth, surface):
  """Takes away what is above the walls, and puts the sky, or the floor outside, there."""
  center = place.sky.center.astype(np.float32)[:, None]
  offset = origin - center
  squared = dot(direction, direction)
  middle = -dot(offset, direction) / squared
  nearest = offset + middle * direction
  dome = middle + np.sqrt((place.sky.radius**2 - dot(nearest, nearest)) / squared)
  over = (surface == CEILING) | (origin[1] + depth * direction[1] < place.low[1])
  outside = np.where(direction[1] > 0, floor, np.float32(np.inf))
  far = np.minimum(outside, dome)
  open_sky = over | (far < depth)
  depth = np.where(open_sky, far, depth)
  beyond = np.where(outside < dome, np.uint8(FLOOR), np.uint8(SKY))
  return depth.astype(np.float32), np.where(open_sky, beyond, surface)


def _window(eyes, rotation, center, half) -> Float[np.ndarray, "4 f"]:
  """Bounds (x low, x high, y low, y high) of a solid's image in slopes, at each frame."""
  signs = np.stack(np.meshgrid(*[[-1, 1]] * 3, indexing="ij"), axis=-1).reshape(8, 3)
  corners = (rotation[:, None] @ (signs * half)[..., None])[..., 0] + center[:, None]
  local = np.einsum("fji,fnj->nif", eyes.axes, corners - eyes.position[:, None])
  behind = (local[:, 2] < _NEAR).any(axis=0)
  slopes = local[:, :2] / np.maximum(local[:, 2:], _NEAR)
  low, high = slopes.min(axis=0), slopes.max(axis=0)
  # A solid that reaches behind the camera may be anywhere in its image.
  low, high = np.where(behind, -np.inf, low), np.where(behind, np.inf, high)
  return np.stack([low[0], high[0], low[1], high[1]]).astype(np.float32)


def _within(rays, window) -> Bool[np.ndarray, "r"]:
  x_low, x_high, y_low, y_high = np.take(window, rays.frame, axis=1)
  return (rays.x >= x_low) & (rays.x <= x_high) & (rays.y >= y_low) & (rays.y <= y_high)
