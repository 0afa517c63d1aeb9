"""A world that can be looked at from anywhere, by rays: what the fixtures of datasets show.

It knows no axis convention: a world is whatever coordinates a dataset states, and a camera is its
centre and three unit vectors in them, towards the right, the lower and the far side of its picture.
Nothing here is of the package.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass
class Eye:
  """A pinhole camera.

  Attributes:
    center: in the world.
    right: unit vector of the picture's rows.
    down: unit vector of its columns.
    forward: unit vector into the picture.
    focal: pixels.
    middle: principal point (x, y), pixels.
    first: where the centre of the first pixel lies: 0.5, or 0 for those who count in whole numbers.
  """

  center: np.ndarray
  right: np.ndarray
  down: np.ndarray
  forward: np.ndarray
  focal: float
  middle: tuple[float, float]
  first: float = 0.5

  def rays(self, height, width):
    """Directions through pixel centres that go one unit forward, [h w 3]."""
    x, y = np.meshgrid(np.arange(width) + self.first, np.arange(height) + self.first)
    x, y = (x - self.middle[0]) / self.focal, (y - self.middle[1]) / self.focal
    return x[..., None] * self.right + y[..., None] * self.down + self.forward

  def see(self, points):
    """Pixels (x, y), in this camera's own counting, and depths of world points."""
    local = (np.asarray(points) - self.center) @ np.stack([self.right, self.down, self.forward], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
      return self.focal * local[..., :2] / local[..., 2:] + self.middle, local[..., 2]


def eye(center, forward, up, focal, middle, *, left_handed=False, first=0.5):
  """A camera that looks along `forward` with the vector `up` in its picture's upper half."""
  forward = np.asarray(forward, float) / np.linalg.norm(forward)
  # The right hand's rule, or the left one's where the axes are left-handed.
  right = np.cross(forward, up) * (-1 if left_handed else 1)
  right /= np.linalg.norm(right)
  down = np.cross(forward, right) * (-1 if left_handed else 1)
  return Eye(np.asarray(center, float), right, down, forward, float(focal), middle, first)


# A room of six unequal walls, with a ball in it, along the world's axes, whatever they mean.
LOW, HIGH = np.array([-7.0, -5.0, -4.0]), np.array([6.0, 8.0, 5.0])
BALL, RADIUS = np.array([1.0, 1.5, 0.7]), 0.9


def look(eye, height, width, scale=1.0, ball=BALL):
  """What an eye in the room sees.

  Args:
    eye: the camera; its centre is inside the room.
    height: pixels.
    width: pixels.
    scale: world units a metre: the room is that much larger.
    ball: centre of the ball in metres; None for none.

  Returns:
    Colours in [0, 1] [h w 3], depth along the camera's axis in metres [h w], what is hit in the
    world's units [h w 3], and where it is the ball [h w].
  """
  rays, origin = eye.rays(height, width), eye.center / scale
  ways = np.where(rays > 0, HIGH - origin, LOW - origin) / np.where(rays == 0, -1e-12, rays)
  distance = ways.min(-1)
  onto = np.zeros(distance.shape, bool)
  if ball is not None:
    squared, along = (rays**2).sum(-1), rays @ (ball - origin)
    under = along**2 - squared * (((ball - origin) ** 2).sum() - RADIUS**2)
    near = (along - np.sqrt(np.maximum(under, 0))) / squared
    onto = (under > 0) & (near > 0) & (near < distance)
    distance = np.where(onto, near, distance)
  points = origin + distance[..., None] * rays
  return (
    paint(points - (ball * onto[..., None] if ball is not None else 0), onto),
    distance,
    (scale * points),
    onto,
  )


def paint(points, onto=None):
  """A smooth texture in space, alike nowhere, so that a mirrored world can't be mistaken."""
  x, y, z = np.moveaxis(np.asarray(points), -1, 0)
  colors = np.stack(
    [
      0.5 + 0.4 * np.sin(1.3 * x + 0.5 * y + 0.2 * z),
      0.5 + 0.4 * np.sin(0.4 * x - 1.1 * y + 0.7 * z + 1),
      0.5 + 0.4 * np.sin(0.3 * x + 0.6 * y + 1.7 * z + 2),
    ],
    -1,
  )
  return colors if onto is None else np.where(onto[..., None], 1 - 0.7 * colors, colors)


def turn(degrees):
  """Cosine and sine."""
  return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def to_bytes(colors):
  return (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)
