"""What a file of cameras says, in our conventions, and what had to be done to it."""

import dataclasses
import re

import numpy as np
from jaxtyping import Float

# Camera axes of OpenGL, Blender and nerfstudio (x right, y up, z backward) to ours, on the right.
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclasses.dataclass(frozen=True, eq=False)
class Shots:
  """Cameras of a file, in float64.

  Attributes:
    format: what the file is, for people.
    world_from_camera: rigid poses, OpenCV axes of the camera, in the file's world and unit.
    times: of each, in the file's unit; None if it tells none.
    seconds: how many one unit of `times` is; None if the file doesn't say.
    intrinsics: fx and cx divided by the image's width, fy and cy by its height; None if it tells
      none.
    size: height and width of the images, pixels; None if it tells none.
    notes: what was done or left out in reading.
    in_scene: the file says that its world is that of a scene.
  """

  format: str
  world_from_camera: Float[np.ndarray, "f 4 4"]
  times: Float[np.ndarray, "f"] | None = None
  seconds: float | None = None
  intrinsics: Float[np.ndarray, "f 3 3"] | None = None
  size: tuple[int, int] | None = None
  notes: tuple[str, ...] = ()
  in_scene: bool = False


def lens(fx, fy, cx, cy, height, width) -> Float[np.ndarray, "*f 3 3"]:
  """Normalised intrinsics from numbers, or arrays of them, in pixels."""
  fx, fy, cx, cy, height, width = np.broadcast_arrays(
    *map(np.float64, (fx, fy, cx, cy, height, width))
  )
  matrix = np.zeros((*fx.shape, 3, 3))
  matrix[..., 0, 0], matrix[..., 0, 2] = fx / width, cx / width
  matrix[..., 1, 1], matrix[..., 1, 2] = fy / height, cy / height
  matrix[..., 2, 2] = 1
  return matrix


def order_of(names: list[str]) -> tuple[np.ndarray, bool]:
  """The order of files by name, numbers by value, and whether it differs from the given one."""
  if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
    return np.arange(len(names)), False
  keys = [
    [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d{1,18})", x)]
    for x in names
  ]
  order = sorted(range(len(names)), key=keys.__getitem__)
  return np.array(order), order != list(range(len(names)))
