"""Camera paths from and to files.

Two formats are read, told apart by their contents:

RealEstate10K text: a line with the video's address, then for each frame 19 numbers: timestamp,
fx, fy, cx, cy (divided by width or height), two zeros, and the 3x4 matrix [R | t] from world to
camera, row by row, OpenCV axes.

Our JSON: {"version": 1, "height": 480, "width": 640, "frames": [{"world_from_camera": 4x4 rows,
"intrinsics": 3x3 rows in pixels of that size, or "fov": horizontal field of view in degrees,
"time": ...}, ...]}. Intrinsics (or fov) and time are given for all frames or for none.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

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


@dataclasses.dataclass(frozen=True, eq=False)
class CameraPath:
  """A camera's way through a clip.

  Attributes:
    world_from_camera: rigid poses, OpenCV axes; metres where the file says metres.
    times: strictly rising from 0 to 1; a single frame has time 0.
    intrinsics: fx and cx divided by the image's width, fy and cy by its height; None if the file
      does not tell.
  """

  world_from_camera: Float[np.ndarray, "f 4 4"]
  times: Float[np.ndarray, "f"]
  intrinsics: Float[np.ndarray, "f 3 3"] | None = None

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


def read_trajectory(path: str | os.PathLike) -> CameraPath:
  """Reads a camera path and makes its first camera the world origin.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is neither format, or anything in it is malformed; the message names the line or
      field and what was expected.
  """
  name = pathlib.Path(path).name
  contents = checked.read_bytes(path, MAX_BYTES, "camera path")
  if contents.lstrip()[:1] == b"{":
    frames = decode(checked.parse(contents, name), name)
    matrices, times, intrinsics = frames.world_from_camera, frames.times, frames.intrinsics
    if intrinsics is not None:
      intrinsics = intrinsics / np.array([[frames.width], [frames.height], [1.0]])
  else:
    matrices, times, intrinsics = _read_realestate(contents, name)
  return CameraPath(
    poses.relative_to(matrices, matrices[0]).astype(np.float32),
    _unit_times(times, len(matrices), name),
    None if intrinsics is None else intrinsics.astype(np.float32),
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
  top = checked.fields(value, where, ("version", "height", "width", "frames"))
  check_version(top["version"], VERSION, where)
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
  )


def check_version(value: Any, newest: int, where: str) -> None:
  """Refuses a format version this package does not know."""
  version = checked.integer(value, f"{where}: version", 1, 2**31)
  if version > newest:
    raise ValueError(
      f"{where}: version {version}, but this d4s_jax reads versions up to {newest}; upgrade it."
    )


def rigid(matrix: Float[np.ndarray, "4 4"], where: str) -> Float[np.ndarray, "4 4"]:
  """The rigid motion nearest to a matrix that is one up to the digits of a file.

  Raises:
    ValueError: it mirrors, scales or shears, or its last row is not 0 0 0 1.
  """
  rotation = matrix[:3, :3]
  if not np.array_equal(matrix[3], [0, 0, 0, 1]):
    raise ValueError(f"{where}: last row {matrix[3].tolist()}; expected [0, 0, 0, 1].")
  error = np.abs(rotation @ rotation.T - np.eye(3)).max()
  if not error < _ROTATION_TOLERANCE:
    raise ValueError(
      f"{where}: not a rotation (R R^T is off the identity by {error:.2g}); expected orthonormal "
      "columns. Divide a scale out of the matrix."
    )
  left, _, right = np.linalg.svd(rotation)
  if np.linalg.det(left @ right) < 0:
    raise ValueError(
      f"{where}: a mirror image (determinant -1), not a rotation; expected right-handed axes, "
      "x right, y down, z forward."
    )
  cleaned = matrix.copy()
  cleaned[:3, :3] = left @ right
  return cleaned


def _intrinsics(frame: dict[str, Any], place: str, height: int, width: int) -> np.ndarray:
  if "intrinsics" not in frame:
    fov = checked.number(frame["fov"], f"{place}.fov", 1, 179)
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


def _read_realestate(contents: bytes, name: str):
  """World-from-camera matrices, timestamps and normalised intrinsics of a RealEstate10K file."""
  lines = realestate_lines(contents, name)
  rows = [realestate_row(words, f"{name}, line {line}") for line, words in lines]
  matrices = [
    poses.invert(rigid(row.camera_from_world, f"{name}, line {line}"))
    for (line, _), row in zip(lines, rows)
  ]
  intrinsics = np.stack([row.intrinsics for row in rows])
  return np.stack(matrices), np.array([row.timestamp for row in rows]), intrinsics


def realestate_lines(contents: bytes, name: str) -> list[tuple[int, list[str]]]:
  """Line number and words of each frame of a RealEstate10K file.

  Raises:
    ValueError: it is no text, or has no frames or too many.
  """
  try:
    lines = contents.decode("utf-8").splitlines()
  except UnicodeDecodeError:
    raise ValueError(
      f"{name}: neither JSON nor text; expected our camera JSON or RealEstate10K text."
    ) from None
  rows = [(i, line.split()) for i, line in enumerate(lines, 1) if line.strip()]
  if rows and len(rows[0][1]) == 1:  # The address of the video.
    rows = rows[1:]
  if not 1 <= len(rows) <= MAX_FRAMES:
    raise ValueError(
      f"{name}: {len(rows)} frames; expected 1 to {MAX_FRAMES} lines of 19 numbers after the "
      "video's address (RealEstate10K), or our camera JSON."
    )
  return rows


class RealestateRow(NamedTuple):
  """A line of a RealEstate10K file.

  Attributes:
    timestamp: microseconds.
    intrinsics: fx and cx divided by the width, fy and cy by the height.
    camera_from_world: as it is in the file, not checked to be rigid.
  """

  timestamp: float
  intrinsics: Float[np.ndarray, "3 3"]
  camera_from_world: Float[np.ndarray, "4 4"]


def realestate_row(words: list[str], where: str) -> RealestateRow:
  """Reads the words of a line.

  Raises:
    ValueError: they are not 19 finite numbers with positive focal lengths.
  """
  if len(words) != 19:
    raise ValueError(
      f"{where}: {len(words)} columns; expected 19: timestamp fx fy cx cy 0 0 and a 3x4 matrix."
    )
  try:
    row = np.array([float(word) for word in words])
  except ValueError as error:
    raise ValueError(f"{where}: {error}; expected 19 numbers.") from None
  if not np.isfinite(row).all():
    culprit = words[int(np.argmin(np.isfinite(row)))]
    raise ValueError(f"{where}: {culprit}; expected finite numbers.")
  if not (row[1:3] > 0).all():
    raise ValueError(f"{where}: focal lengths {row[1:3].tolist()}; expected positive numbers.")
  intrinsics = np.array([[row[1], 0, row[3]], [0, row[2], row[4]], [0, 0, 1]])
  return RealestateRow(row[0], intrinsics, np.vstack([row[7:].reshape(3, 4), [0, 0, 0, 1]]))


def _unit_times(times: np.ndarray | None, count: int, name: str) -> np.ndarray:
  if times is None:
    return np.linspace(0, 1, count, dtype=np.float32)
  steps = np.diff(times)
  if not (steps > 0).all():
    late = int(np.argmin(steps > 0)) + 1
    raise ValueError(
      f"{name}: frame {late} has time {times[late]:g} after {times[late - 1]:g}; expected rising "
      "times. Sort the frames and drop repeated ones."
    )
  span = times[-1] - times[0]
  return ((times - times[0]) / (span if count > 1 else 1)).astype(np.float32)
