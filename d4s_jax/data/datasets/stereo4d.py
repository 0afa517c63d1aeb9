"""Stereo4D: cameras and point tracks of stereo videos of the web; pixels are made by the user.

An `.npz` for each clip states poses of the rectified left camera (camera-to-world, OpenCV axes) and
tracks in the same world. Its metre is what makes every rig's baseline 63 mm, so it is about a
metre. Videos are those of its tools: square, 60 degrees wide.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble, gather
from d4s_jax.data.datasets.scene import Dataset, Scene, View, make_tracks
from d4s_jax.formats.arrays import ArrayArchive
from d4s_jax.formats.footage import Footage
from d4s_jax.geometry.cameras import intrinsics_from_fov
from d4s_jax.types import Tracks

_BASELINE = 0.063
_FOV = 60.0
# Cameras and frames may differ by so many, as others have found.
_SLACK = 2
_SPLITS = {"train": "train", "demo": "train", "test": "heldout"}
_SIDES = ("left", "right")


class Stereo4D(Dataset):
  """`train|test/ID_TIME.npz` and `.../ID_TIME-left_rectified.mp4`, up to three folders down."""

  def _find(self) -> Iterable[str]:
    self._stated: dict[str, pathlib.Path] = {}
    self._videos: dict[str, pathlib.Path] = {}
    for folder in files.folders(self.root, 3, self.problems):
      for name in sorted(os.listdir(folder)):
        if name.endswith(".npz"):
          self._stated.setdefault(name.removesuffix(".npz"), folder / name)
        elif name.endswith("_rectified.mp4"):
          self._videos.setdefault(name, folder / name)
    found = [name for name in self._stated if self._video(name, "left") is not None]
    lacking = sorted(set(self._stated) - set(found))
    if lacking:
      self.problems.append(
        f"{len(lacking)} of {len(self._stated)} clips, such as {self._stated[lacking[0]]}, have no"
        f" {lacking[0]}-left_rectified.mp4; fetch their videos (some are gone) and rectify them"
        " with the dataset's tools."
      )
    if not found:
      reason = f" {self.problems[0]}" if self.problems else ""
      raise ValueError(
        f"{self.root} holds no ID_TIME.npz with ID_TIME-left_rectified.mp4; expected"
        f" Stereo4D.{reason}"
      )
    return found

  def _video(self, name: str, side: str) -> pathlib.Path | None:
    return self._videos.get(f"{name}-{side}_rectified.mp4")

  def group(self, name: str) -> str:
    """The video: what precedes the last underscore."""
    return name.rpartition("_")[0]

  def official(self, name: str) -> str | None:
    """By the folder."""
    parts = self._stated[name].relative_to(self.root).parts
    return next((_SPLITS[part] for part in parts if part in _SPLITS), None)

  def open(self, name: str) -> Scene:
    """A clip."""
    archive, problems = ArrayArchive(self._stated[name]), Problems()
    frames = archive.spec("camera2world", (None, 3, 4)).shape[0]
    archive.spec("timestamps", (frames,))
    left = archive.read("camera2world").astype(np.float64)
    stamps = archive.read("timestamps").astype(np.float64)

    def camera(side: str, video: pathlib.Path) -> View:
      poses = left.copy()
      if side == "right":
        poses[:, :, 3] += _BASELINE * poses[:, :, 0]
      view = _view(video, side, poses, stamps, archive.path, problems)
      tracked = side == "left" and "track_lengths" in archive
      return _with_tracks(view, archive, frames) if tracked else view

    videos = {side: self._video(name, side) for side in _SIDES}
    cameras = [functools.partial(camera, side, x) for side, x in videos.items() if x is not None]
    return gather(name, cameras, problems, first=True)


def _view(
  video: pathlib.Path,
  side: str,
  poses: np.ndarray,
  stamps: np.ndarray,
  stated: pathlib.Path,
  problems: Problems,
) -> View:
  footage = Footage(video)
  if footage.height != footage.width:
    raise ValueError(
      f"{video} has frames of {footage.width} x {footage.height} pixels; expected square ones of"
      " the dataset's rectification, 60 degrees wide."
    )
  if abs(footage.frames - len(poses)) > _SLACK:
    raise ValueError(
      f"{video} has {footage.frames} frames and {stated} {len(poses)} cameras; expected as many,"
      f" give or take {_SLACK}. Rectify the video again."
    )
  lens: Any = intrinsics_from_fov(_FOV, footage.height, footage.width).astype(np.float64)
  shots = [
    Shot(
      number=number,
      time=stamp / 1e6,
      world_from_camera=np.vstack([pose, [0, 0, 0, 1]]),
      intrinsics=lens,
      image=None,
      where=f"{stated}, frame {number}",
    )
    for number, (pose, stamp) in enumerate(zip(poses[: footage.frames], stamps))
  ]
  return assemble(side, shots, footage.height, footage.width, problems, footage.read)


def _with_tracks(view: View, archive: ArrayArchive, frames: int) -> View:
  """The view with the clip's tracks, which are stored as a list of sightings."""
  for key in ("track_lengths", "track_indices"):
    archive.spec(key, (None,))
  lengths = archive.read("track_lengths").astype(np.int64)
  index = archive.read("track_indices").astype(np.int64)
  archive.spec("track_coordinates", (len(index), 3))
  if (
    lengths.min(initial=0) < 0
    or lengths.sum() != len(index)
    or index.min(initial=0) < 0
    or index.max(initial=0) >= frames
  ):
    raise ValueError(
      f"{archive.path}: tracks whose lengths, frames and positions don't fit {frames} frames; fetch"
      " it again."
    )
  rows = np.repeat(np.arange(len(lengths)), lengths)

  def tracks(chosen: Int[np.ndarray, "g"]) -> Tracks:
    column = np.full(frames, -1)
    column[view.numbers[chosen]] = np.arange(len(chosen))
    here = column[index]
    positions = archive.read("track_coordinates")[here >= 0].astype(np.float32)
    points = np.full((len(lengths), len(chosen), 3), np.nan, np.float32)
    points[rows[here >= 0], here[here >= 0]] = positions
    # A point that isn't listed is hidden, or was lost: where it is isn't known.
    valid = np.asarray(np.isfinite(points).all(-1))
    return make_tracks(points, valid, valid)

  return dataclasses.replace(view, tracks=tracks)
