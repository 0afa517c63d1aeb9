"""Camera paths from and to files of several programs, told apart by their contents.

Read: our JSON (`formats.cameras`), also within scene.json, RealEstate10K, TUM and KITTI text,
nerfstudio's transforms.json and camera_path.json, cameras.json of 3DGS, COLMAP models. Written: all
but the 3DGS one. What a format can't hold stands in its row of WRITERS.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import atomic, checked
from d4s_jax.formats import cameras as ours
from d4s_jax.formats.cameras import CameraPath
from d4s_jax.formats.trajectories import colmap, nerfstudio, text
from d4s_jax.formats.trajectories.shots import Shots
from d4s_jax.formats.visible import write_bytes
from d4s_jax.geometry import poses
from d4s_jax.types import Cameras


def read(path: str | os.PathLike) -> Shots:
  """Reads cameras as they stand in a file, or in the folder of a COLMAP model.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no format that is known, or anything in it is malformed; the message names
      the line or field and what was expected.
  """
  path = pathlib.Path(path)
  shots = _read(path)
  ours.check_proportion(shots.world_from_camera, shots.intrinsics, path.name)
  return shots


def _read(path: pathlib.Path) -> Shots:
  if path.is_dir():
    place = colmap.find(path)
    if place is None:
      raise ValueError(
        f"{path} is a folder without images.txt or images.bin of COLMAP; expected those, or a file"
        " of cameras. The path of a scene is in its scene.json."
      )
    return colmap.read(place)
  if path.name in ("images.txt", "images.bin") and path.exists():
    return colmap.read(path.parent)
  contents = checked.read_bytes(path, ours.MAX_BYTES, "camera path")
  first = contents.lstrip()[:1]
  if first not in (b"{", b"["):
    return text.read(contents, path.name)
  value = checked.parse(contents, path.name)
  if isinstance(value, list):
    return nerfstudio.read_cameras(value, path.name)
  if "camera_path" in value:
    return nerfstudio.read_camera_path(value, path.name)
  if isinstance(value.get("trajectory"), dict):  # The description of a scene.
    return _read_ours(value["trajectory"], f"{path.name}: trajectory")
  frames = value.get("frames")
  if isinstance(frames, list) and any("transform_matrix" in x for x in frames if type(x) is dict):
    return nerfstudio.read_transforms(value, path.name)
  return _read_ours(value, path.name)


def _read_ours(value: Any, name: str) -> Shots:
  frames = ours.decode(value, name)
  intrinsics, size = frames.intrinsics, (frames.height, frames.width)
  if intrinsics is not None:
    intrinsics = intrinsics / np.array([[frames.width], [frames.height], [1.0]])
  kind = "d4s_jax JSON (world_from_camera, OpenCV axes)"
  pose, times = frames.world_from_camera, frames.times
  return Shots(kind, pose, times, None, intrinsics, size, in_scene=frames.in_scene)


def read_trajectory(path: str | os.PathLike, in_scene: bool = False) -> CameraPath:
  """Reads a camera path and makes its first camera the world origin.

  Args:
    path: the file, or the folder of a COLMAP model.
    in_scene: leave the path where it is if it says that it belongs to a scene.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: as `read` says, or its times don't rise.
  """
  return to_path(read(path), pathlib.Path(path).name, in_scene)


def to_path(shots: Shots, name: str, in_scene: bool = False) -> CameraPath:
  """The path of a file that was read; see `read_trajectory`."""
  matrices, intrinsics = shots.world_from_camera, shots.intrinsics
  if not (in_scene and shots.in_scene):
    matrices = poses.relative_to(matrices, matrices[0])
  return CameraPath(
    matrices.astype(np.float32),
    unit_times(shots.times, len(matrices), name),
    None if intrinsics is None else intrinsics.astype(np.float32),
    shots.in_scene,
  )


def unit_times(times: np.ndarray | None, count: int, name: str) -> np.ndarray:
  """Times from 0 to 1, evenly spaced where none are given.

  Raises:
    ValueError: they don't rise.
  """
  if times is None:
    return np.linspace(0, 1, count, dtype=np.float32)
  # Halves, so that no difference is too large; in float32, as all that follows has them.
  halves = np.asarray(times, np.float64) / 2
  span = halves[-1] - halves[0] if count > 1 else 1
  unit = ((halves - halves[0]) / (span or 1)).astype(np.float32)
  rising = (np.diff(halves) > 0) & (np.diff(unit) > 0)
  if not rising.all():
    late = int(np.argmin(rising)) + 1
    raise ValueError(
      f"{name}: frame {late} has time {times[late]:g} after {times[late - 1]:g}; expected rising"
      " times, by more than 1e-7 of the whole. Sort the frames and drop repeated ones."
    )
  return unit


class Writer(NamedTuple):
  """How cameras [f] are written, and what their file doesn't hold.

  Attributes:
    suffix: of the file; "" for a folder.
    write: (path, cameras, clip times, frames a second) -> None.
    lost: for people.
    lenses: whether the file holds intrinsics, so that they have to be known.
  """

  suffix: str
  write: Callable[[pathlib.Path, Cameras, np.ndarray, float], None]
  lost: str
  lenses: bool = True


def _json(path: pathlib.Path, value: Any) -> None:
  write_bytes(path, json.dumps(value, indent=1).encode())


def _model(binary: bool):
  def write(path: pathlib.Path, cameras: Cameras, times: np.ndarray, fps: float) -> None:
    del times, fps
    with atomic.new_folder(path) as folder:
      for name, contents in colmap.encode(cameras, binary).items():
        (folder / name).write_bytes(contents)

  return write


def _seconds(times: Float[np.ndarray, "f"], fps: float) -> np.ndarray:
  """Clip times as seconds, at so many frames a second on average."""
  return np.asarray(times, np.float64) * (len(times) - 1) / fps


WRITERS = {
  "cameras": Writer(
    ".json", lambda p, c, t, f: ours.write_trajectory(p, c, t), "frame rate, digits beyond float32"
  ),
  "transforms": Writer(
    ".json", lambda p, c, t, f: _json(p, nerfstudio.encode_transforms(c, t)), "frame rate"
  ),
  "camera-path": Writer(
    ".json",
    lambda p, c, t, f: _json(p, nerfstudio.encode_camera_path(c, f)),
    "uneven times, fx beside fy, centres off the middle",
  ),
  "colmap": Writer("", _model(binary=False), "times, digits beyond the twelfth"),
  "colmap-binary": Writer("", _model(binary=True), "times"),
  "realestate10k": Writer(
    ".txt",
    lambda p, c, t, f: write_bytes(
      p, text.encode_realestate(c, _seconds(t, f), "https://example.com/").encode()
    ),
    "picture size, digits beyond the ninth",
  ),
  "tum": Writer(
    ".txt",
    lambda p, c, t, f: write_bytes(p, text.encode_tum(c, _seconds(t, f)).encode()),
    "intrinsics, picture size, digits beyond the ninth",
    lenses=False,
  ),
  "kitti": Writer(
    ".txt",
    lambda p, c, t, f: write_bytes(p, text.encode_kitti(c).encode()),
    "times, intrinsics, picture size, digits beyond the ninth",
    lenses=False,
  ),
}
