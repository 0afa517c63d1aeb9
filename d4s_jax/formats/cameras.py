"""Camera paths, and our JSON of them (`formats.trajectories` has those of other programs).

{"version": 1, "height": 480, "width": 640, "frames": [{"world_from_camera": 4x4 rows,
"intrinsics": 3x3 rows in pixels of that size, or "fov": horizontal field of view in degrees,
"time": ...}, ...]}. Intrinsics (or fov) and time are given for all frames or for none. With
"world": "scene", as the viewer saves it, the path belongs where it is in a scene that there is
already; else its first camera is what counts as the origin.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from d4s_jax.formats import atomic, checked
from d4s_jax.geometry import AnyArray, poses
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.types import Cameras

VERSION = 1
MAX_BYTES = 32 * 2**20
MAX_FRAMES = 20_000
MAX_SIDE = 65_536

# How far R^T R of a file may be from the identity: files carry as few as four digits.
_ROTATION_TOLERANCE = 1e-2
# Units of a camera from the origin, along an axis. Metres from the Earth's centre are below 1e7.
_FARTHEST = 1e9
# Widths or heights of the picture that its focal length and centre may be off from one.
_LENS = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class CameraPath:
  """A camera's way through a clip.

  Attributes:
    world_from_camera: rigid poses, OpenCV axes; metres where the file says metres.
    times: strictly rising from 0 to 1; a single frame has time 0.
    intrinsics: fx and cx divided by the image's width, fy and cy by its height; None if the file
      does not tell.
    in_scene: the file says that its world is that of a scene.
  """

  world_from_camera: Float[np.ndarray, "f 4 4"]
  times: Float[np.ndarray, "f"]
  intrinsics: Float[np.ndarray, "f 3 3"] | None = None
  in_scene: bool = False

  def resample(self, frames: int) -> "CameraPath":
    """The same way in `frames` poses, evenly spaced in time."""
    times = np.linspace(0, 1, frames, dtype=np.float32)
    intrinsics = self.intrinsics
    if intrinsics is not None:
      flat = intrinsics.reshape(-1, 9)
      columns = [np.interp(times, self.times, flat[:, i]) for i in range(9)]
      intrinsics = np.stack(columns, axis=-1).reshape(-1, 3, 3).astype(np.float32)
    return CameraPath(
      poses.interpolate(self.world_from_camera, self.times, times), times, intrinsics
    )


def write_trajectory(
  path: str | os.PathLike, cameras: Cameras, times: Float[AnyArray, "f"] | None = None
) -> None:
  """Writes cameras [f] as our JSON, poses and intrinsics unchanged."""
  encoded = json.dumps(encode(cameras, times), indent=1)
  with atomic.replacing(path) as temporary:
    temporary.write_text(encoded, encoding="utf-8")


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
  """Our JSON as it stands: float64, world and times as in the file, intrinsics in pixels."""

  world_from_camera: Float[np.ndarray, "f 4 4"]
  times: Float[np.ndarray, "f"] | None
  intrinsics: Float[np.ndarray, "f 3 3"] | None
  height: int
  width: int
  in_scene: bool = False


def encode(cameras: Cameras, times: Float[AnyArray, "f"] | None = None) -> dict[str, Any]:
  """The JSON object of cameras [f]."""
  matrices, intrinsics = (
    np.asarray(array, np.float32).tolist()
    for array in (cameras.world_from_camera, cameras.intrinsics)
  )
  frames = [{"world_from_camera": m, "intrinsics": k} for m, k in zip(matrices, intrinsics)]
  if times is not None:
    for frame, time in zip(frames, np.asarray(times, np.float32).tolist(), strict=True):
      frame["time"] = time
  size = {"height": cameras.height, "width": cameras.width}
  return {"version": VERSION, **size, "frames": frames}


def decode(value: Any, where: str) -> Frames:
  """Checks the JSON object and every field in it.

  Raises:
    ValueError: the first thing that is malformed, by the name of its field.
  """
  top = checked.fields(value, where, ("version", "height", "width", "frames"), ("world",))
  check_version(top["version"], VERSION, where)
  if top.get("world", "scene") != "scene":
    raise ValueError(f"{where}: world: {top['world']!r:.60}; expected 'scene', or no such field.")
  height = checked.integer(top["height"], f"{where}: height", 1, MAX_SIDE)
  width = checked.integer(top["width"], f"{where}: width", 1, MAX_SIDE)
  matrices, intrinsics, times = [], [], []
  for index, frame in enumerate(checked.items(top["frames"], f"{where}: frames", MAX_FRAMES)):
    place = f"{where}: frames[{index}]"
    checked.fields(frame, place, ("world_from_camera",), ("intrinsics", "fov", "time"))
    matrix = checked.numbers(frame["world_from_camera"], f"{place}.world_from_camera", (4, 4))
    matrices.append(rigid(matrix, f"{place}.world_from_camera"))
    if "intrinsics" in frame or "fov" in frame:
      intrinsics.append(_intrinsics(frame, place, height, width))
    if "time" in frame:
      times.append(checked.number(frame["time"], f"{place}.time"))
  for name, found in (("intrinsics or fov", intrinsics), ("time", times)):
    if len(found) not in (0, len(matrices)):
      raise ValueError(
        f"{where}: {len(found)} of {len(matrices)} frames have {name}; expected all or none."
      )
  return Frames(
    np.stack(matrices),
    np.array(times) if times else None,
    np.stack(intrinsics) if intrinsics else None,
    height,
    width,
    "world" in top,
  )


def check_version(value: Any, newest: int, where: str) -> None:
  """Refuses a format version this package does not know."""
  version = checked.integer(value, f"{where}: version", 1, 2**31)
  if version > newest:
    raise ValueError(
      f"{where}: version {version}, but this d4s_jax reads versions up to {newest}; upgrade it."
    )


def check_proportion(
  world_from_camera: Float[np.ndarray, "f 4 4"],
  intrinsics: Float[np.ndarray, "f 3 3"] | None,
  where: str,
) -> None:
  """Refuses cameras that no computation holds.

  Args:
    world_from_camera: their poses.
    intrinsics: fx and cx divided by the image's width, fy and cy by its height, if known.
    where: for the message.

  Raises:
    ValueError: one is out of all proportion.
  """
  far = np.abs(world_from_camera[:, :3, 3]).max(axis=1)
  if far.max() > _FARTHEST:
    raise ValueError(
      f"{where}: frame {far.argmax()} is {far.max():.3g} units from the origin; expected at"
      f" most {_FARTHEST:.0e}. Is the file damaged?"
    )
  if intrinsics is None:
    return
  focal, centre = intrinsics[:, [0, 1], [0, 1]], intrinsics[:, :2, 2]
  with np.errstate(divide="ignore", over="ignore"):
    most = np.max([focal, 1 / focal, np.abs(centre)], axis=(0, 2))
  if not most.max() <= _LENS:
    worst = most.argmax()
    raise ValueError(
      f"{where}: frame {worst} has focal lengths {focal[worst]} and a centre {centre[worst]},"
      f" in widths and heights of its picture; expected none beyond {_LENS:.0e}. Is the file"
      " damaged?"
    )


def rigid(matrix: Float[np.ndarray, "4 4"], where: str) -> Float[np.ndarray, "4 4"]:
  """The rigid motion nearest to a matrix that is one up to the digits of a file.

  Raises:
    ValueError: it mirrors, scales or shears, or its last row is not 0 0 0 1.
  """
  cleaned, sound = nearest_rigid(matrix[None])
  if sound[0]:
    return cleaned[0]
  rotation = matrix[:3, :3]
  if not np.array_equal(matrix[3], [0, 0, 0, 1]):
    turned = np.array_equal(matrix[:, 3], [0, 0, 0, 1])
    guess = " The matrix is transposed (row vectors, as in Unreal and DirectX)." if turned else ""
    raise ValueError(f"{where}: last row {matrix[3].tolist()}; expected [0, 0, 0, 1].{guess}")
  product = rotation @ rotation.T
  error = np.abs(product - np.eye(3)).max()
  if not error < _ROTATION_TOLERANCE:
    scale = np.sqrt(max(np.trace(product) / 3, 0.0))
    even = scale > 0 and np.abs(product / scale**2 - np.eye(3)).max() < _ROTATION_TOLERANCE
    what = f"it is scaled by {scale:.4g}" if even else "it shears, or scales unevenly"
    raise ValueError(
      f"{where}: not a rotation ({what}; R R^T is off the identity by {error:.2g}); expected"
      " orthonormal columns. Divide a scale out of the matrix."
    )
  raise ValueError(
    f"{where}: a mirror image (determinant -1: left-handed axes, as in Unity and Unreal), not a "
    "rotation; expected right-handed axes, x right, y down, z forward."
  )


def nearest_rigid(
  matrices: Float[np.ndarray, "f 4 4"],
) -> tuple[Float[np.ndarray, "f 4 4"], Bool[np.ndarray, "f"]]:
  """The rigid motions nearest to matrices, and which of these were such up to a file's digits."""
  rotations = matrices[:, :3, :3]
  with np.errstate(invalid="ignore", over="ignore"):
    error = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    sound = (error < _ROTATION_TOLERANCE) & (matrices[:, 3] == [0, 0, 0, 1]).all(1)
    sound &= np.isfinite(matrices).all((1, 2))
    sound &= np.linalg.det(np.where(sound[:, None, None], rotations, np.eye(3))) > 0
  left, _, right = np.linalg.svd(np.where(sound[:, None, None], rotations, np.eye(3)))
  cleaned = np.array(matrices)
  cleaned[sound, :3, :3] = (left @ right)[sound]
  return cleaned, sound


def _intrinsics(frame: dict[str, Any], place: str, height: int, width: int) -> np.ndarray:
  if "intrinsics" not in frame:
    fov = checked.number(frame["fov"], f"{place}.fov", *pinhole.FOV_RANGE)
    return pinhole.intrinsics_from_fov(fov, height, width).astype(np.float64)
  if "fov" in frame:
    raise ValueError(f"{place}: both intrinsics and fov; expected one of them.")
  matrix = checked.numbers(frame["intrinsics"], f"{place}.intrinsics", (3, 3))
  (fx, _, _), (_, fy, _), _ = matrix
  pattern = matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]]
  if not (fx > 0 and fy > 0 and np.array_equal(pattern, [0, 0, 0, 0, 1])):
    raise ValueError(
      f"{place}.intrinsics: {matrix.tolist()}; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
      "pixels with positive focal lengths."
    )
  return matrix
