"""Camera paths by name or from a file, and the cameras they give a photograph or a scene."""

import dataclasses
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from d4s_jax.formats import images
from d4s_jax.formats import trajectories as files
from d4s_jax.formats.cameras import CameraPath
from d4s_jax.formats.trajectories import examine
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import poses, trajectories
from d4s_jax.pipeline import progress
from d4s_jax.types import Cameras

# Horizontal field of view, degrees, of a photograph of which nothing is known.
FOV = 60.0
# Frames of a named path where nothing says how many.
FRAMES = 49
_MOST_FRAMES = 100_000
# Height, pixels, below which a scene's size is multiplied: players don't show stamps well, and
# Gaussians can be drawn at any size.
_LOWEST = 256
# All pixels of a video: its colours, depth and opacity take 20 bytes each in memory.
_MOST_PIXELS = 500_000_000
# Side of a picture, as scene.json may have it.
_MOST_SIDE = 65536
# How far from square the pixels of a picture may be.
_SQUARE = 0.05


def check_pixels(frames: int, height: int, width: int) -> None:
  """Raises ValueError for a video that no memory or no scene.json holds."""
  if max(height, width) > _MOST_SIDE:
    raise ValueError(
      f"Pictures of {width} x {height} pixels; expected sides of at most {_MOST_SIDE}."
    )
  if frames * height * width > _MOST_PIXELS:
    raise ValueError(
      f"{frames} pictures of {width} x {height} pixels; expected at most {_MOST_PIXELS} pixels in"
      " all. Give a smaller height or fewer frames."
    )


def camera_path(source: str, frames: int | None = None, in_scene: bool = False) -> CameraPath:
  """The camera path that a user asks for, its frames evenly spaced in time.

  What is probably wrong with a file's is said.

  Args:
    source: a name in `geometry.trajectories.TRAJECTORIES`, with parameters or without
      ("orbit:degrees=90,radius=3"), or a file that `formats.trajectories` reads; a file of such a
      name is meant by "./orbit".
    frames: how many; None for those of the file, or FRAMES of a named path.
    in_scene: leave a file's path where it is, if it says that it belongs to a scene.

  Returns:
    The path; its first camera is the world origin else.

  Raises:
    ValueError: `source` is neither a name nor a file, the file is malformed, or a number makes no
      sense.
  """
  if frames is not None and not 1 <= frames <= _MOST_FRAMES:
    raise ValueError(f"A camera path of {frames} frames; expected 1 to {_MOST_FRAMES}.")
  preset = source.partition(":")[0] in trajectories.TRAJECTORIES
  if not preset and (file := pathlib.Path(source)).exists():
    shots = files.read(file)
    for line in examine.examine(shots).warnings:
      progress.say(f"WARNING: {file.name}: {line}.")
    path = files.to_path(shots, file.name, in_scene)
    # Key frames of the viewer are few.
    own = max(len(path.times), FRAMES if path.in_scene else 1)
    return path.resample(own if frames is None else frames)
  name, parameters = trajectories.parse(source)
  frames = FRAMES if frames is None else frames
  named = trajectories.trajectory(name, frames, **parameters)
  return CameraPath(named, np.linspace(0, 1, frames, dtype=np.float32))


def photograph(
  photo: Float[np.ndarray, "h w 3"],
  path: CameraPath,
  height: int,
  width: int,
  fov: float | None = None,
) -> tuple[Float[np.ndarray, "height width 3"], Cameras]:
  """The photograph as the models take it, and the cameras [f] of a path that starts from it.

  The largest centred window of the clip's aspect is cut out and resized; the intrinsics follow.

  Args:
    photo: RGB in [0, 1], of any size.
    path: where the camera goes.
    height: of the clip, pixels.
    width: of the clip, pixels.
    fov: horizontal field of view of the whole photograph, degrees. None for the intrinsics of the
      path, which are then taken to be the photograph's, or for FOV where it has none.

  Raises:
    ValueError: the field of view is out of range, or the intrinsics of the path are those of a
      picture of another aspect.
  """
  rows, columns, _ = photo.shape
  if fov is None and path.intrinsics is not None:
    size = np.array([[columns], [rows], [1]])
    intrinsics = path.intrinsics * size
    _check_square(intrinsics, f"The photograph has {columns} x {rows} pixels", "--fov=DEGREES")
  else:
    intrinsics = pinhole.intrinsics_from_fov(FOV if fov is None else fov, rows, columns)
    intrinsics = np.tile(intrinsics, (len(path.times), 1, 1))
  top, left, window_height, window_width = images.center_crop(rows, columns, height, width)
  offset = np.array([[0, 0, left], [0, 0, top], [0, 0, 0]])
  zoom = np.array([[width / window_width], [height / window_height], [1]])
  cameras = Cameras(
    world_from_camera=jnp.asarray(path.world_from_camera),
    intrinsics=jnp.asarray((intrinsics - offset) * zoom, jnp.float32),
    height=height,
    width=width,
  )
  return images.fit(photo, height, width), cameras


def through_scene(
  path: CameraPath, first: Cameras, height: int | None = None, width: int | None = None
) -> Cameras:
  """The cameras [f] that draw a scene along a path.

  Args:
    path: where the camera goes; its intrinsics are used if it has any, else those of `first`.
    first: the camera that took the scene's photograph, without leading axes.
    height: of the pictures, pixels; None for the scene's, or a multiple that is 256 at least.
    width: likewise; None for the one that keeps pixels square.

  Raises:
    ValueError: a size is not positive or too large, or both are given and don't fit the path's
      intrinsics.
  """
  for name, value in (("height", height), ("width", width)):
    if value is not None and value < 1:
      raise ValueError(f"Pictures of {name} {value}; expected at least 1 pixel.")
  lenses = path.intrinsics
  if lenses is None:
    own = np.asarray(first.intrinsics) / np.array([[first.width], [first.height], [1]])
    lenses = np.tile(own, (len(path.times), 1, 1))
  frames, aspect = len(path.times), float(lenses[0, 1, 1] / lenses[0, 0, 0])
  if height is None:
    height = enlarged(first).height if width is None else max(1, round(width / aspect))
  if width is None:
    width = max(1, round(height * aspect))
  check_pixels(frames, height, width)
  intrinsics = lenses * np.array([[width], [height], [1]])
  _check_square(intrinsics, f"The pictures have {width} x {height} pixels", "only one of the sizes")
  return Cameras(
    world_from_camera=jnp.asarray(path.world_from_camera),
    intrinsics=jnp.asarray(intrinsics, jnp.float32),
    height=height,
    width=width,
  )


def enlarged(cameras: Cameras) -> Cameras:
  """The same cameras for pictures of a whole multiple of the size, at least 256 pixels high."""
  factor = max(1, math.ceil(_LOWEST / cameras.height))
  return pinhole.resize(cameras, cameras.height * factor, cameras.width * factor)


def along(cameras: Cameras, times: Float[Any, "f"], query: Float[np.ndarray, "t"]) -> Cameras:
  """The cameras [t] that a path [f] has at any times, in NumPy; it stands still before and after.

  Args:
    cameras: the path.
    times: clip time of each of its cameras, rising.
    query: clip times.
  """
  times, query = np.asarray(times), np.asarray(query, np.float32)
  flat = np.asarray(cameras.intrinsics).reshape(-1, 9)
  lenses = np.stack([np.interp(query, times, column) for column in flat.T], axis=-1)
  found = poses.interpolate(np.asarray(cameras.world_from_camera), times, query)
  return dataclasses.replace(
    cameras,
    world_from_camera=np.asarray(found, np.float32),
    intrinsics=lenses.reshape(-1, 3, 3).astype(np.float32),
  )


def repeated(cameras: Cameras, index: int, count: int) -> Cameras:
  """One of the cameras, `count` times: it stands still."""
  return cameras[np.full(count, index)]


def around(
  cameras: Cameras, index: int, distance: float, offsets: Float[np.ndarray, "v 3"]
) -> Cameras:
  """Cameras beside one of a path, all looking at the point it sees at `distance`.

  Args:
    cameras: the path.
    index: which of its cameras.
    distance: metres to the point.
    offsets: where they stand, in that camera's axes, as shares of `distance`.
  """
  eyes = distance * offsets
  target = np.broadcast_to(np.array([0, 0, distance]), eyes.shape)
  local = poses.look_at(eyes, target, np.broadcast_to([0.0, -1.0, 0.0], eyes.shape))
  middle = repeated(cameras, index, len(offsets))
  moved = poses.compose(np.asarray(middle.world_from_camera), local)
  return dataclasses.replace(middle, world_from_camera=jnp.asarray(moved, jnp.float32))


def _check_square(intrinsics: Float[np.ndarray, "f 3 3"], picture: str, remedy: str) -> None:
  """Refuses a lens whose pixels are not square: it belongs to a picture of another aspect."""
  ratio = intrinsics[:, 1, 1] / intrinsics[:, 0, 0]
  worst = float(ratio[np.argmax(np.abs(np.log(ratio)))])
  if abs(math.log(worst)) > _SQUARE:
    raise ValueError(
      f"{picture}, to which the trajectory's intrinsics don't fit: the pixels would be"
      f" {worst:.2f} times as wide as high. Give {remedy}."
    )
