"""MatrixCity: a synthetic city from the air and from its streets, still, with depth.

Pictures are single photographs. A street's were taken along it, so they are cut into sweeps where
the camera jumps or turns, and each sweep is a scene. Poses are camera-to-world of OpenGL axes (x
right, y up, z back) in two kinds of file: `transforms.json` beside the pictures (rotations times
0.01, metres), and those of `pose/`, the paper's splits (in units of 100 m), which list pictures of
several folders, whose numbers begin anew in each. Depth is in centimetres, antialiased, so that it
is wrong on outlines.
"""

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble
from d4s_jax.data.datasets.scene import Dataset, Scene, known
from d4s_jax.formats import checked
from d4s_jax.formats.rasters import read_exr

_MOST_BYTES = 512 * 2**20
_UNIT = 100.0
# Steps longer than so many usual ones, or turns by more degrees, are jumps.
_STEP, _TURN = 2.0, 30.0
_FEWEST = 2
# Where 16 bits end, centimetres: sky, and whatever is far.
_HALF_END = 65000.0


class _Block(NamedTuple):
  """A file of cameras, in order of the pictures' folders and numbers.

  Attributes:
    numbers: of the frames.
    poses: OpenCV axes, metres; not checked.
    pictures: of the frames; one of two places.
    angle: horizontal field of view, radians.
    problems: of frames that are left out.
  """

  numbers: Int[np.ndarray, "f"]
  poses: Float[np.ndarray, "f 4 4"]
  pictures: list[pathlib.Path]
  angle: float
  problems: tuple[str, ...]


class MatrixCity(Dataset):
  """`small_city/street/train/BLOCK/transforms.json` and `0000.png`; `small_city_depth/...exr`."""

  def _find(self) -> Iterable[str]:
    self._sweeps: dict[str, tuple[pathlib.Path, int, int]] = {}
    raw = [folder / "transforms.json" for folder in self._folders("transforms.json")]
    posed = [
      path
      for folder in self._folders("pose")
      for block in files.folders(folder / "pose", 1, self.problems)
      for path in sorted(block.glob("transforms_*.json"))
    ]
    # Files of pose/ overlap each other, and list what has cameras of its own beside it.
    listed: dict[pathlib.Path, set[int]] = collections.defaultdict(set)
    sweeps: collections.Counter[pathlib.Path] = collections.Counter()
    for path in (*raw, *posed):
      try:
        block = _read(path, self.root)
      except (OSError, ValueError) as error:
        self.problems.append(f"{error} The block is left out.")
        continue
      self.problems.extend(block.problems)
      folders, numbers = [x.parent for x in block.pictures], block.numbers.tolist()
      runs = [(folder, number in listed[folder]) for folder, number in zip(folders, numbers)]
      for (folder, again), run in itertools.groupby(range(len(runs)), runs.__getitem__):
        frames = list(run)
        for start, stop in () if again else _cut(block.poses[frames]):
          name = f"{folder.relative_to(self.root).as_posix()}/{sweeps[folder]:05d}"
          self._sweeps[name] = path, frames[start], frames[stop - 1] + 1
          sweeps[folder] += 1
      for folder, number in zip(folders, numbers):
        listed[folder].add(number)
    if not self._sweeps:
      reason = f" {self.problems[0]}" if self.problems else ""
      raise ValueError(
        f"{self.root} holds no BLOCK/transforms.json or pose/BLOCK/transforms_train.json with"
        f" cameras in a row; expected MatrixCity, unpacked.{reason}"
      )
    return self._sweeps

  def _folders(self, mark: str) -> Iterator[pathlib.Path]:
    return files.folders_with(self.root, mark, 5, self.problems)

  def group(self, name: str) -> str:
    """The block: the folder of the pictures."""
    return name.rpartition("/")[0]

  def official(self, name: str) -> str | None:
    """By the folder."""
    parts = {part.removesuffix("_dense").rpartition("_")[2] for part in name.split("/")}
    return "heldout" if "test" in parts else "train" if "train" in parts else None

  def open(self, name: str) -> Scene:
    """A sweep."""
    path, start, stop = self._sweeps[name]
    block, problems = _read(path, self.root), Problems()
    pictures = [_unpacked(picture) for picture in block.pictures[start:stop]]
    there = [picture for picture in pictures if picture.is_file()]
    height, width = files.picture_size(there, pictures[0].parent, problems)
    focal = 0.5 * width / math.tan(0.5 * block.angle)
    lens = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    # Numbers of a sweep may jump; its time is the order of its frames.
    shots = [
      Shot(
        number=int(number),
        time=float(place),
        world_from_camera=pose,
        intrinsics=lens,
        image=picture,
        where=f"{path}, {picture.parent.name} frame {number}",
      )
      for place, (number, pose, picture) in enumerate(
        zip(block.numbers[start:stop], block.poses[start:stop], pictures)
      )
    ]
    view = assemble("camera", shots, height, width, problems)
    depths = _depths(self.root, dict(zip(block.numbers[start:stop].tolist(), pictures)))
    depth = files.maps(view, depths, _depth, "depth", problems)
    return Scene(
      name=name,
      views=(dataclasses.replace(view, depth=depth),),
      metric=True,
      dynamic=False,
      timed=False,
      problems=problems.all(),
    )


@functools.lru_cache(maxsize=16)
def _read(path: pathlib.Path, root: pathlib.Path) -> _Block:
  """Reads a file of cameras; the last ones are kept, for the many sweeps of each."""
  where = str(path)
  top = checked.parse(checked.read_bytes(path, _MOST_BYTES, "cameras"), where, nan=True)
  if not isinstance(top, dict) or not isinstance(top.get("frames"), list) or not top["frames"]:
    raise ValueError(f"{where}: expected an object with frames. Fetch it again.")
  angle = checked.number(top.get("camera_angle_x"), f"{where}: camera_angle_x", 0.01, 3.1)
  rows, problems = [], Problems()
  for index, frame in enumerate(top["frames"]):
    place = f"{where}: frames[{index}]"
    try:
      number, pose, picture = _frame(frame, place, path)
      rows.append((number, pose, files.within(root, picture, place)))
    except ValueError as error:
      problems.add(f"bad frames in {path}", f"{error} The frame is left out.")
  if not rows:
    raise ValueError(f"{where}: no frame can be used. The first reason: {problems[0]}")
  # In order of their numbers, which is that of the sweeps. Paths compare slowly.
  rows.sort(key=lambda row: (str(row[2].parent), row[0]))
  numbers, poses, pictures = zip(*rows)
  return _Block(np.array(numbers), np.stack(poses), list(pictures), angle, problems.all())


def _frame(frame: Any, where: str, path: pathlib.Path) -> tuple[int, np.ndarray, pathlib.Path]:
  """Number, pose and picture of a frame; a pose that can't be is NaN."""
  frame = frame if isinstance(frame, dict) else {}
  raw = "rot_mat" in frame
  try:
    matrix = checked.numbers(frame.get("rot_mat" if raw else "transform_matrix"), where, (4, 4))
  except ValueError:
    matrix = np.full((4, 4), np.nan)
  if raw:
    number = checked.integer(frame.get("frame_index"), f"{where}.frame_index", 0, 10**8)
    picture = path.parent / f"{number:04d}.png"
  else:
    picture = path.parent / checked.text(frame.get("file_path"), f"{where}.file_path", 1000)
    digits = re.fullmatch(r"(\d{1,9})\.png", picture.name)
    if digits is None:
      raise ValueError(
        f"{where}.file_path: {picture.name!r:.60}; expected a name such as 0001.png."
      )
    number = int(digits.group(1))
  pose = np.eye(4)
  # Which kind a file is, its determinant tells: rotations of one are a hundredth.
  small = abs(np.linalg.det(matrix[:3, :3])) < 1e-3
  pose[:3, :3] = matrix[:3, :3] * ((100.0 if small else 1.0) * np.array([1, -1, -1]))
  pose[:3, 3] = matrix[:3, 3] * (1.0 if small else _UNIT)
  return number, pose, picture


def _cut(poses: np.ndarray) -> Iterator[tuple[int, int]]:
  """Ranges of frames between which the camera neither jumps nor turns."""
  steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1)
  traces = np.einsum("fij,fij->f", poses[1:, :3, :3], poses[:-1, :3, :3])
  turns = np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
  usual = np.nanmedian(steps) if len(steps) else 0.0
  # A pose that isn't known cuts nothing: its frame is left out when the sweep is opened.
  jumps = (steps > _STEP * usual) | (turns > _TURN)
  borders = [0, *(np.flatnonzero(jumps) + 1), len(poses)]
  for start, stop in zip(borders, borders[1:]):
    if stop - start >= _FEWEST:
      yield int(start), int(stop)


def _unpacked(picture: pathlib.Path) -> pathlib.Path:
  """Archives may unpack into a folder of the block's name within the block."""
  inner = picture.parent / picture.parent.name / picture.name
  return inner if not picture.is_file() and inner.is_file() else picture


def _depths(root: pathlib.Path, pictures: dict[int, pathlib.Path]) -> dict[int, pathlib.Path]:
  """Depth files of pictures: small_city/.../BLOCK/0000.png has small_city_depth/.../BLOCK_depth."""
  found = {}
  for number, picture in pictures.items():
    for place in _depth_places(root, picture):
      if place.is_file():
        found[number] = place
        break
  return found


def _depth_places(root: pathlib.Path, picture: pathlib.Path) -> Iterator[pathlib.Path]:
  folder = picture.parent
  if folder.name == folder.parent.name:
    folder = folder.parent
  parts = list(folder.relative_to(root.parent).parts)
  at = next((i for i, part in enumerate(parts) if part in ("small_city", "big_city")), None)
  if at is None:
    return
  # 32 bits reach further.
  for size in ("_float32", "_flaot32", ""):
    city = root.parent.joinpath(*parts[:at], f"{parts[at]}_depth{size}", *parts[at + 1 : -1])
    block = f"{parts[-1]}_depth"
    yield city / block / f"{picture.stem}.exr"
    yield city / block / block / f"{picture.stem}.exr"


def _depth(_: int, path: pathlib.Path) -> np.ndarray:
  centimetres = read_exr(path)
  if centimetres.dtype == np.float16:
    centimetres = np.where(centimetres < _HALF_END, centimetres.astype(np.float32), 0)
  return known(centimetres / np.float32(100))
