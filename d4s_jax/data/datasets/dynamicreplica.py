"""DynamicReplica: synthetic rooms with people and animals, stereo, with depth and tracks.

One list of annotations for each split, gzipped JSON. Cameras are those of PyTorch3D: row vectors,
x left, y up; depth is half precision whose bits are stored as 16-bit PNG. Tracks are files of
`torch.save`, one for each frame of the left camera, in the world of the cameras.
"""

import dataclasses
import functools
import json
import pathlib
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble, gather
from d4s_jax.data.datasets.scene import Dataset, Scene, View, known, make_tracks
from d4s_jax.formats import checked
from d4s_jax.formats.json_lists import read_list
from d4s_jax.formats.rasters import read_levels
from d4s_jax.formats.torch_tensors import read_tensors
from d4s_jax.types import Tracks

_SPLITS = {"train": "train", "valid": "heldout", "test": "heldout"}
# PyTorch3D's camera axes point left and up, OpenCV's right and down.
_FLIP = np.array([-1.0, -1.0, 1.0])
_NEAREST = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class _Entry:
  """One annotated frame: what is needed of it, in little memory."""

  number: int
  time: float
  size: tuple[int, int]
  image: str
  depth: str
  scale: float
  mask: str
  tracks: str
  camera: tuple[float, ...]  # R by rows, T, focal length, principal point
  isotropic: bool


class DynamicReplica(Dataset):
  """`train|valid|test/frame_annotations_SPLIT.jgz` and what it lists; or that file in the root."""

  def _find(self) -> Iterable[str]:
    lists = [
      path
      for folder in files.folders(self.root, 1, self.problems)
      for path in sorted(folder.glob("frame_annotations_*.jgz"))
    ]
    # The frames of each scene as compressed JSON: hundreds of thousands in all, which every worker
    # process holds.
    self._scenes: dict[str, bytes] = {}
    self._bases: dict[str, tuple[pathlib.Path, str]] = {}
    for path in lists:
      split = path.name.removeprefix("frame_annotations_").removesuffix(".jgz")
      if split not in _SPLITS:  # "real" has no truth
        continue
      try:
        self._read(path, split)
      except ValueError as error:  # what was read before the damage stays
        self.problems.append(str(error))
    if not self._scenes:
      reason = f" {self.problems[0]}" if self.problems else ""
      raise ValueError(
        f"{self.root} holds no train/frame_annotations_train.jgz with scenes; expected"
        f" DynamicReplica.{reason}"
      )
    return self._scenes

  def _read(self, path: pathlib.Path, split: str) -> None:
    problems = Problems()
    scenes: dict[str, dict[str, list[_Entry]]] = {}
    try:
      self._collect(path, split, problems, scenes)
    finally:  # what was read before damage stays
      for name, cameras in scenes.items():
        self._scenes[name], self._bases[name] = _packed(cameras), (path.parent, path.name)
      self.problems.extend(problems.all())

  def _collect(
    self,
    path: pathlib.Path,
    split: str,
    problems: Problems,
    scenes: dict[str, dict[str, list[_Entry]]],
  ) -> None:
    for number, value in enumerate(read_list(path)):
      try:
        sequence, camera, entry = _entry(value, f"{path}, entry {number}")
      except ValueError as error:
        problems.add(f"bad entries in {path.name}", f"{error} It is left out.")
        continue
      scenes.setdefault(f"{split}/{sequence}", {}).setdefault(camera, []).append(entry)

  def official(self, name: str) -> str | None:
    """By the list."""
    return _SPLITS[name.partition("/")[0]]

  def open(self, name: str) -> Scene:
    """A scene."""
    problems = Problems()
    base, stated = self._bases[name]
    where = f"{base / stated}, {name}"
    cameras = [
      functools.partial(_view, base, where, camera, entries, problems)
      for camera, entries in sorted(_unpacked(self._scenes[name]).items())
    ]
    return gather(name, cameras, problems)


def _packed(cameras: dict[str, list[_Entry]]) -> bytes:
  plain = {name: [dataclasses.astuple(x) for x in entries] for name, entries in cameras.items()}
  return zlib.compress(json.dumps(plain).encode())


def _unpacked(contents: bytes) -> dict[str, list[_Entry]]:
  def entry(row: list[Any]) -> _Entry:
    values: Any = (tuple(x) if isinstance(x, list) else x for x in row)
    return _Entry(*values)

  cameras = json.loads(zlib.decompress(contents))
  return {name: [entry(row) for row in rows] for name, rows in cameras.items()}


def _view(
  base: pathlib.Path, where: str, camera: str, entries: list[_Entry], problems: Problems
) -> View:
  height, width = entries[0].size
  entries = [entry for entry in entries if _inside(base, where, entry, problems)]
  shots, by_number = [], {entry.number: entry for entry in entries}
  for entry in entries:
    pose, lens = _camera(entry)
    shots.append(
      Shot(
        number=entry.number,
        time=entry.time,
        world_from_camera=pose,
        intrinsics=lens if entry.size == (height, width) else np.full((3, 3), np.nan),
        image=base / entry.image,
        where=f"{where}, {camera} frame {entry.number}",
      )
    )
  view = assemble(camera, shots, height, width, problems)

  def listed(kind: str) -> dict[int, pathlib.Path]:
    names = {entry.number: getattr(entry, kind) for entry in entries}
    paths = {number: base / name for number, name in names.items() if name}
    return {number: path for number, path in paths.items() if path.is_file()}

  def depth(index: int, path: pathlib.Path) -> np.ndarray:
    levels = read_levels(path)
    if levels.dtype != np.uint16:
      raise ValueError(f"{path} has 8 bits; expected depth of 16 bits. Fetch it again.")
    # The bits are those of half-precision numbers.
    metres = levels.view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
      metres = np.where(metres > _NEAREST, metres, 0)
      return known(metres * by_number[int(view.numbers[index])].scale)

  tracked = listed("tracks")

  def tracks(index: Int[np.ndarray, "g"]) -> Tracks:
    return _tracks([tracked.get(int(number)) for number in view.numbers[index]])

  return dataclasses.replace(
    view,
    depth=files.maps(view, listed("depth"), depth, "depth", problems),
    instances=files.maps(
      view,
      listed("mask"),
      lambda _, path: (read_levels(path) > 0).astype(np.int32),
      "foreground",
      problems,
    ),
    tracks=tracks if tracked else None,
  )


def _inside(base: pathlib.Path, where: str, entry: _Entry, problems: Problems) -> bool:
  """Whether a frame's files are in the dataset; it is noted if one is not."""
  try:
    for name in (entry.image, entry.depth, entry.mask, entry.tracks):
      files.within(base, base / name, where)
  except ValueError as error:
    problems.add("frames whose files lead out", f"{error} The frame is left out.")
    return False
  return True


def _camera(entry: _Entry) -> tuple[np.ndarray, np.ndarray]:
  """Pose and intrinsics in pixels."""
  numbers = np.array(entry.camera)
  rotation, translation = numbers[:9].reshape(3, 3), numbers[9:12]
  height, width = entry.size
  # Row vectors, x_camera = x_world R + T: the columns of R are the camera's axes in the world.
  axes = rotation * _FLIP
  pose = np.eye(4)
  pose[:3, :3], pose[:3, 3] = axes, -axes @ (translation * _FLIP)
  unit = np.full(2, min(height, width) / 2)
  if not entry.isotropic:
    unit = np.array([width / 2, height / 2])
  (fx, fy), (cx, cy) = numbers[12:14] * unit, np.array([width, height]) / 2 - numbers[14:16] * unit
  return pose, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _tracks(paths: list[pathlib.Path | None]) -> Tracks:
  """Tracks over frames, from the file of each; a missing file leaves its frame unknown."""
  frames = [None if path is None else _frame(path) for path in paths]
  count = next((len(points) for frame in frames if frame for points, _ in [frame]), 0)
  points = np.full((count, len(paths), 3), np.nan, np.float32)
  visible = np.zeros((count, len(paths)), bool)
  for column, (path, frame) in enumerate(zip(paths, frames)):
    if frame is None:
      continue
    if len(frame[0]) != count:
      raise ValueError(f"{path} has {len(frame[0])} points and others {count}. Fetch it again.")
    points[:, column], visible[:, column] = frame
  return make_tracks(points, visible, np.asarray(np.isfinite(points).all(-1)))


def _frame(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """World positions [n 3] and visibility [n] of a frame's file."""
  stored = read_tensors(path)
  wanted = ("traj_3d_world", "verts_inds_vis")
  points, visible = (stored.get(key) if isinstance(stored, dict) else None for key in wanted)
  if not (
    isinstance(points, np.ndarray)
    and isinstance(visible, np.ndarray)
    and points.ndim == 2
    and points.shape == (len(visible), 3)
    and visible.ndim == 1
  ):
    raise ValueError(f"{path} lacks {wanted[0]} [n, 3] or {wanted[1]} [n]. Fetch it again.")
  return points, visible > 0


def _entry(value: Any, where: str) -> tuple[str, str, _Entry]:
  """Sequence, camera and frame of an annotation."""

  def get(*keys: str) -> Any:
    found = value
    for key in keys:
      found = found.get(key) if isinstance(found, dict) else None
    return found

  def path(kind: str) -> str:
    name = get(kind, "path")
    return "" if name is None else checked.text(name, f"{where}: {kind}.path", 1000)

  def numbers(key: str, shape: tuple[int, ...]) -> list[float]:
    place = f"{where}: viewpoint.{key}"
    return checked.numbers(get("viewpoint", key), place, shape).ravel().tolist()

  kind = get("viewpoint", "intrinsics_format")
  if kind not in ("ndc_isotropic", "ndc_norm_image_bounds"):
    raise ValueError(
      f"{where}: viewpoint.intrinsics_format {kind!r:.40}; expected ndc_isotropic or"
      " ndc_norm_image_bounds."
    )
  height, width = checked.numbers(get("image", "size"), f"{where}: image.size", (2,)).tolist()
  scale = get("depth", "scale_adjustment")
  entry = _Entry(
    number=checked.integer(value.get("frame_number"), f"{where}: frame_number", 0, 10**7),
    time=checked.number(value.get("frame_timestamp"), f"{where}: frame_timestamp"),
    size=(int(height), int(width)),
    image=path("image"),
    depth=path("depth"),
    scale=1.0 if scale is None else checked.number(scale, f"{where}: depth.scale_adjustment"),
    mask=path("mask"),
    tracks=path("trajectories"),
    camera=tuple(
      numbers("R", (3, 3))
      + numbers("T", (3,))
      + numbers("focal_length", (2,))
      + numbers("principal_point", (2,))
    ),
    isotropic=kind == "ndc_isotropic",
  )
  names = (
    checked.text(value.get(key), f"{where}: {key}", 200) for key in ("sequence_name", "camera_name")
  )
  sequence, camera = names
  # "009850-3_obj_source_left": one scene has both cameras.
  return sequence.removesuffix(f"_source_{camera}"), camera, entry
