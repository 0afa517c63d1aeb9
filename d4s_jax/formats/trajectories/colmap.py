"""Cameras as COLMAP's sparse model: cameras and images, as text or binary, in a folder.

Poses are camera_from_world with OpenCV axes, quaternions w x y z; pixel centres are at +0.5.
"""

import pathlib
import struct

import numpy as np

from d4s_jax.formats import cameras as ours
from d4s_jax.formats import checked
from d4s_jax.formats.trajectories.shots import Shots, lens, one_size, order_of
from d4s_jax.geometry import poses, rotations
from d4s_jax.types import Cameras

# Name and number of parameters by COLMAP's number; those after focal lengths and centre distort.
_MODELS = {
  0: ("SIMPLE_PINHOLE", 3),
  1: ("PINHOLE", 4),
  2: ("SIMPLE_RADIAL", 4),
  3: ("RADIAL", 5),
  4: ("OPENCV", 8),
  5: ("OPENCV_FISHEYE", 8),
}
_PINHOLE = 1
_PLAIN = ("SIMPLE_PINHOLE", "PINHOLE")
_LONGEST_NAME = 1000


def find(folder: pathlib.Path) -> pathlib.Path | None:
  """Where the model is in a folder: there, or in sparse/0 as COLMAP leaves it."""
  for place in (folder, folder / "sparse" / "0", folder / "sparse"):
    if any((place / f"images.{kind}").is_file() for kind in ("txt", "bin")):
      return place
  return None


def read(folder: pathlib.Path) -> Shots:
  """Reads a model, binary if there is one; images are put in the order of their names.

  Raises:
    ValueError: anything in it is malformed; the message names the file.
  """
  if (folder / "images.bin").is_file():
    kind, lenses = "binary", _cameras_bin(folder / "cameras.bin")
    rows = _images_bin(folder / "images.bin")
  else:
    kind, lenses = "text", _cameras_txt(folder / "cameras.txt")
    rows = _images_txt(folder / "images.txt")
  if not 1 <= len(rows) <= ours.MAX_FRAMES:
    raise ValueError(f"{folder}: {len(rows)} images; expected 1 to {ours.MAX_FRAMES}.")
  matrices, intrinsics, sizes, distorted = [], [], [], False
  for numbers, camera, name in rows:
    if camera not in lenses:
      raise ValueError(f"{folder}: image {name!r:.60} has camera {camera}, which is not listed.")
    model, size, values = lenses[camera]
    quaternion = numbers[:4]
    length = np.linalg.norm(quaternion)
    if not 0.98 < length < 1.02:
      raise ValueError(f"{folder}: image {name!r:.60} has a quaternion of length {length:.3g}.")
    rotation = rotations.to_matrix(quaternion / length)
    matrices.append(poses.assemble(rotation, numbers[4:7]))
    simple = model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
    fx, fy, cx, cy = values[[0, 0, 1, 2]] if simple else values[:4]
    if not (fx > 0 and fy > 0):
      raise ValueError(f"{folder}: camera {camera} has focal lengths {fx:g}, {fy:g}; not positive.")
    intrinsics.append(lens(fx, fy, cx, cy, *size))
    sizes.append(size)
    distorted |= model not in _PLAIN
  order, _ = order_of([name for *_, name in rows])
  size, notes = one_size([sizes[i] for i in order], str(folder))
  return Shots(
    f"COLMAP {kind} model (camera_from_world, OpenCV axes)",
    poses.invert(np.stack(matrices))[order],
    intrinsics=np.stack(intrinsics)[order],
    size=size,
    notes=notes + (("the lens's distortion is left out",) if distorted else ()),
    dropped=("names of pictures",),
  )


def _lines(path: pathlib.Path) -> list[tuple[str, list[str]]]:
  contents = checked.read_bytes(path, ours.MAX_BYTES, "COLMAP model")
  try:
    lines = contents.decode("utf-8").splitlines()
  except UnicodeDecodeError:
    raise ValueError(f"{path} is no text; expected COLMAP's.") from None
  return [
    (f"{path.name}, line {i}", line.split())
    for i, line in enumerate(lines, 1)
    if not line.startswith("#")
  ]


def _cameras_txt(path: pathlib.Path) -> dict[int, tuple[str, tuple[int, int], np.ndarray]]:
  found = {}
  counts = dict(_MODELS.values())
  for place, words in _lines(path):
    if not words:
      continue
    if len(words) < 4 or words[1] not in counts or len(words) != 4 + counts[words[1]]:
      raise ValueError(
        f"{place}: expected id, model, width, height and parameters of {', '.join(counts)}."
      )
    try:
      number, width, height = int(words[0]), int(words[2]), int(words[3])
      values = np.array([float(x) for x in words[4:]])
    except ValueError as error:
      raise ValueError(f"{place}: {error}.") from None
    found[number] = (words[1], _size(height, width, place), _finite(values, place))
  return found


def _images_txt(path: pathlib.Path):
  rows = []
  # Every second line lists points, and may be empty.
  lines = _lines(path)
  while lines and not lines[-1][1]:
    lines.pop()
  for place, words in lines[::2]:
    if len(words) < 10:
      raise ValueError(f"{place}: {len(words)} columns; expected id, 4 + 3 numbers, camera, name.")
    try:
      numbers, camera = np.array([float(x) for x in words[1:8]]), int(words[8])
    except ValueError as error:
      raise ValueError(f"{place}: {error}.") from None
    rows.append((_finite(numbers, place), camera, " ".join(words[9:])))
  return rows


class _Reader:
  """Numbers off a bounded file, one after another."""

  def __init__(self, path: pathlib.Path):
    self._name, self._start = path.name, 0
    self._contents = checked.read_bytes(path, ours.MAX_BYTES, "COLMAP model")

  def take(self, kind: str) -> tuple:
    try:
      found = struct.unpack_from("<" + kind, self._contents, self._start)
    except struct.error:
      raise ValueError(f"{self._name} is cut off; copy it anew.") from None
    self._start += struct.calcsize("<" + kind)
    return found

  def skip(self, size: int) -> None:
    if self._start + size > len(self._contents):
      raise ValueError(f"{self._name} is cut off; copy it anew.")
    self._start += size

  def name(self) -> str:
    end = self._contents.find(b"\0", self._start, self._start + _LONGEST_NAME)
    if end < 0:
      raise ValueError(f"{self._name}: a name that doesn't end; expected COLMAP's binary.")
    text = self._contents[self._start : end].decode("utf-8", "replace")
    self._start = end + 1
    return text


def _cameras_bin(path: pathlib.Path):
  reader, found = _Reader(path), {}
  (count,) = reader.take("Q")
  for _ in range(min(count, ours.MAX_FRAMES)):
    number, model, width, height = reader.take("iiQQ")
    if model not in _MODELS:
      raise ValueError(f"{path.name}: camera model {model}; expected one of {[*_MODELS]}.")
    name, parameters = _MODELS[model]
    values = np.array(reader.take(f"{parameters}d"))
    found[number] = (name, _size(height, width, path.name), _finite(values, path.name))
  return found


def _images_bin(path: pathlib.Path):
  reader, rows = _Reader(path), []
  (count,) = reader.take("Q")
  if count > ours.MAX_FRAMES:
    raise ValueError(f"{path.name}: {count} images; expected at most {ours.MAX_FRAMES}.")
  for _ in range(count):
    _, *numbers, camera = reader.take("i7di")
    name = reader.name()
    (points,) = reader.take("Q")
    reader.skip(24 * points)
    rows.append((_finite(np.array(numbers), path.name), camera, name))
  return rows


def _size(height: int, width: int, place: str) -> tuple[int, int]:
  if not (1 <= height <= ours.MAX_SIDE and 1 <= width <= ours.MAX_SIDE):
    raise ValueError(f"{place}: {width} x {height} pixels; expected 1 to {ours.MAX_SIDE}.")
  return height, width


def _finite(values: np.ndarray, place: str) -> np.ndarray:
  if not np.isfinite(values).all():
    raise ValueError(f"{place}: NaN or infinity; expected finite numbers.")
  return values


def encode(cameras: Cameras, binary: bool) -> dict[str, bytes]:
  """The three files of a model by name; there are no points in it."""
  inverse = poses.invert(np.asarray(cameras.world_from_camera, np.float64))
  turns = rotations.from_matrix(inverse[:, :3, :3])
  lenses = np.asarray(cameras.intrinsics, np.float64)[:, [0, 1, 0, 1], [0, 1, 2, 2]]
  unique, which = np.unique(lenses, axis=0, return_inverse=True)
  which = which.reshape(-1)
  names = [f"frame_{index + 1:05}.png" for index in range(len(inverse))]
  numbers = np.concatenate([turns, inverse[:, :3, 3]], axis=1)
  if binary:
    camera_file = struct.pack("<Q", len(unique)) + b"".join(
      struct.pack("<iiQQ4d", i, _PINHOLE, cameras.width, cameras.height, *row)
      for i, row in enumerate(unique, 1)
    )
    image_file = struct.pack("<Q", len(names)) + b"".join(
      struct.pack("<i7di", i, *row, which[i - 1] + 1) + name.encode() + b"\0" + struct.pack("<Q", 0)
      for i, (row, name) in enumerate(zip(numbers, names), 1)
    )
    empty = struct.pack("<Q", 0)
    return {"cameras.bin": camera_file, "images.bin": image_file, "points3D.bin": empty}
  size = f"{cameras.width} {cameras.height}"
  rows = [
    f"{i} PINHOLE {size} " + " ".join(f"{x:.12g}" for x in row) for i, row in enumerate(unique, 1)
  ]
  images = [
    f"{i} " + " ".join(f"{x:.12g}" for x in row) + f" {which[i - 1] + 1} {name}\n"
    for i, (row, name) in enumerate(zip(numbers, names), 1)
  ]
  heads = {
    "cameras.txt": ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]", *rows],
    "images.txt": ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", *images],
    "points3D.txt": ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"],
  }
  return {name: "\n".join([*lines, ""]).encode() for name, lines in heads.items()}
