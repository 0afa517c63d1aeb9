"""Camera paths as lines of numbers: RealEstate10K, TUM, KITTI; told apart by their columns.

RealEstate10K: a line with the video's address, then for each frame 19 numbers: timestamp in
microseconds, fx, fy, cx, cy (divided by width or height), two zeros, and the 3x4 matrix [R | t]
from world to camera, row by row. TUM: time in seconds, position, quaternion x y z w, from camera
to world. KITTI: the 3x4 matrix from camera to world. Camera axes are OpenCV's in all.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import cameras as ours
from d4s_jax.formats.trajectories.shots import Shots
from d4s_jax.geometry import poses, rotations
from d4s_jax.types import Cameras

_REALESTATE = 19
_KINDS = {_REALESTATE: "RealEstate10K", 8: "TUM", 12: "KITTI"}
# What other numbers of columns probably are, and what to do.
_ROWS = (
  " Are these matrices, a row a line? Write the 12 numbers of [R | t] in one line for each frame."
)
_REMEDIES = {
  3: _ROWS,
  4: _ROWS,
  9: " Are these rotations alone? A frame has a position too: 12 numbers, the rows of [R | t].",
  16: " Are these 4x4 matrices? Leave the last row, 0 0 0 1, out.",
}
# How far a quaternion's length may be from 1: files carry as few as four digits.
_LENGTH = 0.02


def read(contents: bytes, name: str) -> Shots:
  """Reads any of the three.

  Raises:
    ValueError: it is none of them, or malformed; the message names the line.
  """
  address, rows = frame_lines(contents, name)
  places = [f"{name}, line {line}" for line, _ in rows]
  columns = len(rows[0][1])
  if columns == _REALESTATE:
    table = [realestate_row(words, p) for (_, words), p in zip(rows, places)]
    return _realestate(table, places, address)
  if columns not in _KINDS:
    known = ", ".join(f"{count} ({kind})" for count, kind in _KINDS.items())
    raise ValueError(
      f"{places[0]}: {columns} columns; expected {known}.{_REMEDIES.get(columns, '')}"
    )
  table = np.stack([_row(words, columns, p) for (_, words), p in zip(rows, places)])
  return {8: _tum, 12: _kitti}[columns](table, places)


def frame_lines(contents: bytes, name: str) -> tuple[str, list[tuple[int, list[str]]]]:
  """The address of a video, or "", and line number and words of each frame, without comments.

  Raises:
    ValueError: it is no text, or has no frames or too many.
  """
  try:
    lines = contents.decode("utf-8-sig").splitlines()
  except UnicodeDecodeError:
    raise ValueError(f"{name}: neither JSON nor text; expected a file of cameras.") from None
  for i, line in enumerate(lines, 1):
    if mark := next((x for x in ",;" if line.count(x) > 5), None):
      raise ValueError(
        f"{name}, line {i}: numbers with {mark!r} between them; expected spaces. Replace each"
        f" {mark!r} by a space, and drop a line of names."
      )
  rows = [(i, line.split()) for i, line in enumerate(lines, 1) if line.strip()]
  rows = [(i, words) for i, words in rows if not words[0].startswith("#")]
  address = ""
  if rows and len(rows[0][1]) == 1:
    address, rows = rows[0][1][0], rows[1:]
  if not 1 <= len(rows) <= ours.MAX_FRAMES:
    raise ValueError(
      f"{name}: {len(rows)} frames; expected 1 to {ours.MAX_FRAMES} lines of 19 numbers after the "
      "video's address (RealEstate10K), of 8 (TUM) or 12 (KITTI), or JSON."
    )
  return address, rows


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
  row = _row(words, _REALESTATE, where)
  if not (row[1:3] > 0).all():
    raise ValueError(f"{where}: focal lengths {row[1:3].tolist()}; expected positive numbers.")
  intrinsics = np.array([[row[1], 0, row[3]], [0, row[2], row[4]], [0, 0, 1]])
  return RealestateRow(row[0], intrinsics, np.vstack([row[7:].reshape(3, 4), [0, 0, 0, 1]]))


def _row(words: list[str], columns: int, where: str) -> np.ndarray:
  if len(words) != columns:
    raise ValueError(
      f"{where}: {len(words)} columns; expected {columns}, as {_KINDS[columns]} has."
    )
  try:
    row = np.array([float(word) for word in words])
  except ValueError as error:
    raise ValueError(f"{where}: {error}; expected {columns} numbers.") from None
  if not np.isfinite(row).all():
    culprit = words[int(np.argmin(np.isfinite(row)))]
    raise ValueError(f"{where}: {culprit}; expected finite numbers.")
  return row


def _realestate(rows: list[RealestateRow], places: list[str], address: str) -> Shots:
  intrinsics = np.stack([row.intrinsics for row in rows])
  warnings = []
  if (intrinsics[:, :2] > 10).any():
    warnings.append("intrinsics look like pixels; RealEstate10K has shares of the width and height")
  matrices = [ours.rigid(row.camera_from_world, p) for row, p in zip(rows, places)]
  return Shots(
    "RealEstate10K text (camera_from_world, OpenCV axes)",
    poses.invert(np.stack(matrices)),
    np.array([row.timestamp for row in rows]),
    1e-6,
    intrinsics,
    warnings=tuple(warnings),
    dropped=("the video's address",) if address else (),
  )


def _tum(table: np.ndarray, places: list[str]) -> Shots:
  quaternions = table[:, [7, 4, 5, 6]]
  lengths = np.linalg.norm(quaternions, axis=1)
  wrong = int(np.argmax(np.abs(lengths - 1)))
  if abs(lengths[wrong] - 1) > _LENGTH:
    guess = "; Euler angles in degrees?" if lengths[wrong] > 2 else ""
    raise ValueError(
      f"{places[wrong]}: a quaternion of length {lengths[wrong]:.3g}{guess} Expected"
      " timestamp tx ty tz qx qy qz qw with a unit quaternion."
    )
  rotation = rotations.to_matrix(quaternions / lengths[:, None])
  warnings = []
  if np.abs(table[0, 4]) > 0.999 and len(table) > 1:
    warnings.append(
      "the first quaternion is half a turn about x: in the order w x y z it would be none, and"
      " OpenGL axes look like this too"
    )
  return Shots(
    "TUM text (world_from_camera)",
    poses.assemble(rotation, table[:, 1:4]),
    table[:, 0],
    1.0,
    warnings=tuple(warnings),
  )


def _kitti(table: np.ndarray, places: list[str]) -> Shots:
  bottom = [[0, 0, 0, 1]]
  matrices = [
    ours.rigid(np.vstack([row.reshape(3, 4), bottom]), p) for row, p in zip(table, places)
  ]
  return Shots("KITTI text (world_from_camera)", np.stack(matrices))


def encode_realestate(cameras: Cameras, seconds: Float[np.ndarray, "f"], address: str) -> str:
  """The text of a RealEstate10K file."""
  size = np.array([cameras.width, cameras.height, cameras.width, cameras.height])
  lenses = np.asarray(cameras.intrinsics, np.float64)[:, [0, 1, 0, 1], [0, 1, 2, 2]] / size
  inverse = poses.invert(np.asarray(cameras.world_from_camera, np.float64))[:, :3].reshape(-1, 12)
  lines = [address]
  for time, numbers, matrix in zip(seconds, lenses, inverse, strict=True):
    words = [f"{x:.9g}" for x in (*numbers, 0, 0, *matrix)]
    lines.append(" ".join([str(round(float(time) * 1e6)), *words]))
  return "\n".join([*lines, ""])


def encode_tum(cameras: Cameras, seconds: Float[np.ndarray, "f"]) -> str:
  """The text of a TUM file."""
  pose = np.asarray(cameras.world_from_camera, np.float64)
  xyzw = rotations.from_matrix(pose[:, :3, :3])[:, [1, 2, 3, 0]]
  rows = np.concatenate([np.asarray(seconds)[:, None], pose[:, :3, 3], xyzw], axis=1)
  lines = ["# timestamp tx ty tz qx qy qz qw"]
  return "\n".join([*lines, *(" ".join(f"{x:.9g}" for x in row) for row in rows.tolist()), ""])


def encode_kitti(cameras: Cameras) -> str:
  """The text of a KITTI file."""
  rows = np.asarray(cameras.world_from_camera, np.float64)[:, :3].reshape(-1, 12).tolist()
  return "\n".join([*(" ".join(f"{x:.9g}" for x in row) for row in rows), ""])
