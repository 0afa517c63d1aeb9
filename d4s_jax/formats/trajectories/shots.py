"""What a file of cameras says, in our conventions, and what had to be done to it."""

import dataclasses
import re

import numpy as np
from jaxtyping import Float

# Camera axes of OpenGL, Blender and nerfstudio (x right, y up, z backward) to ours, on the right.
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
# How far, as a share, aspects of pictures may differ: programs that undistort crop by a pixel.
_ASPECT = 0.01


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
    warnings: what is probably wrong with it.
    dropped: what is in the file and not in these fields.
    in_scene: the file says that its world is that of a scene.
  """

  format: str
  world_from_camera: Float[np.ndarray, "f 4 4"]
  times: Float[np.ndarray, "f"] | None = None
  seconds: float | None = None
  intrinsics: Float[np.ndarray, "f 3 3"] | None = None
  size: tuple[int, int] | None = None
  notes: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  dropped: tuple[str, ...] = ()
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


def one_size(sizes: list[tuple[int, int]], name: str) -> tuple[tuple[int, int], tuple[str, ...]]:
  """The height and width of the first picture, and a note if others have another size.

  Intrinsics are shares of each picture's own size, and so right for all of one aspect.

  Raises:
    ValueError: the aspects differ.
  """
  aspects = [width / height for height, width in sizes]
  if max(aspects) > (1 + _ASPECT) * min(aspects):
    odd = [sizes[aspects.index(x)] for x in (min(aspects), max(aspects))]
    shown = " and ".join(f"{width} x {height}" for height, width in odd)
    raise ValueError(
      f"{name}: pictures of {shown} pixels; expected one aspect. Keep the frames of one camera."
    )
  height, width = sizes[0]
  if len(set(sizes)) == 1:
    return sizes[0], ()
  return sizes[0], (f"pictures of several sizes are all taken for {width} x {height} pixels",)


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
