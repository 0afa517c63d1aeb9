"""Clips of shards that curation wrote: frames, window and unit chosen anew at each reading."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from d4s_jax.data import sampling
from d4s_jax.data.record import CorruptRecord, Record, read_depth, read_image, read_instances
from d4s_jax.data.sampling import Augmentation
from d4s_jax.data.shards import Entry, Shards, read_manifest, split
from d4s_jax.data.transforms import check_frame_count
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras, Clip, Tracks, Views

_FOV = 60.0
# Depth beyond, metres, says nothing about shape, and sky is often a large number.
_FAR = 1000.0


class Recorded:
  """Clips of a folder of shards.

  A record is read whole, but only the chosen frames are decoded, at the size asked for. What a
  record doesn't know is masked: depth 0, tracks invalid, instances all background.

  Args:
    path: the folder.
    split: "train" or "heldout".
    kind: "static", "dynamic" or "mixed": which records.
    frames: source frames, 1 + 4k.
    height: image height, pixels.
    width: image width, pixels.
    views: target views.
    tracks: number of point tracks.
    length: unused: each record is one clip of an epoch, whose frames differ from epoch to epoch.
    posed: whether records without cameras are left out.
    distance: units that the median known depth is scaled to, in each clip; 0 keeps metres, and
      leaves records of unknown scale out.
    shapes: (frames, height, width) of all buckets of the run, this one's among them: a record
      belongs to the one whose aspect is nearest among those that it is long enough for.
    augment: what is random; None for nothing but the choice of targets.

  Raises:
    FileNotFoundError: there is no manifest.
    ValueError: the manifest is damaged, or no record fits.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    split: str = "train",
    kind: str = "mixed",
    *,
    frames: int = 9,
    height: int = 64,
    width: int = 64,
    views: int = 6,
    tracks: int = 256,
    length: int = 100_000,
    posed: bool = True,
    distance: float = 0.0,
    shapes: Sequence[tuple[int, int, int]] = (),
    augment: Augmentation | None = None,
  ):
    del length
    if split not in ("train", "heldout"):
      raise ValueError(f"Unknown split {split!r}; expected one of train, heldout.")
    if kind not in ("static", "dynamic", "mixed"):
      raise ValueError(f"Unknown kind {kind!r}; expected one of static, dynamic, mixed.")
    check_frame_count(frames)
    self._shape, self._views, self._tracks = (frames, height, width), views, tracks
    self._posed, self._distance = posed, distance
    self._augment = augment or Augmentation(stride=1, reverse=0, crop=False)
    self._shards = Shards(path)
    self._entries = _chosen(read_manifest(path), split, kind, posed, posed and not distance)
    shapes = shapes or [self._shape]
    self._entries = [x for x in self._entries if _bucket(x, shapes) == self._shape]
    if not self._entries and len(shapes) == 1:
      what = "metric " * (posed and not distance) + "posed " * posed + "clips"
      raise ValueError(
        f"{path} has no {what} of the split {split!r}, kind {kind!r}, with {frames} frames or more;"
        " curate more footage, or see config.data.distance."
      )

  def __len__(self) -> int:
    return len(self._entries)

  def read(self, index: int) -> Clip:
    """One clip, always the same."""
    return self.draw(index, np.random.default_rng((index, 1)))

  def draw(self, index: int, rng: np.random.Generator) -> Clip:
    """One clip; which frames and what part of the picture depends on the generator.

    Raises:
      CorruptRecord: it can't be read; the message names file and row.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"Clip {index}; expected 0 to {len(self) - 1}.")
    entry = self._entries[index]
    record = self._shards.read(entry)
    try:
      return self._clip(record, rng)
    except (CorruptRecord, ValueError) as error:
      raise CorruptRecord(f"{entry.shard}, record {entry.row} ({entry.name}): {error}") from error

  def _clip(self, record: Record, rng: np.random.Generator) -> Clip:
    frames, height, width = self._shape
    how, size = self._augment, (height, width)
    source, target, *times = sampling.choose_frames(record, frames, self._views, rng, how)
    window = sampling.choose_window((record.height, record.width), size, rng, how)
    views = [self._take(record, chosen, at, window) for chosen, at in zip((source, target), times)]
    tracks = sampling.cap_tracks(record.tracks, source, self._tracks, rng)
    poses, scale = views[0].cameras.world_from_camera, 1.0
    if self._distance and self._posed:
      scale = sampling.unit(np.asarray(views[0].depth), np.asarray(poses), self._distance)
    first = np.asarray(poses)[0]
    metres: Any = np.float32(scale if record.metric or not self._posed else 0)
    instances = np.stack(
      [sampling.nearest(self._map(record, "instances", index), window, size) for index in source]
    )
    moving: Any = np.asarray(record.dynamic)
    shown: Any = instances
    return Clip(
      source=_moved(views[0], first, scale),
      target=_moved(views[1], first, scale),
      tracks=_moved_tracks(tracks, first, scale),
      instances=shown,
      dynamic=moving,
      scale=metres,
      text=record.caption,
    )

  def _take(self, record: Record, chosen, times, window) -> Views:
    to = self._shape[1:]
    size = (record.height, record.width)
    images = np.stack([read_image(record.images[index], size, window, to) for index in chosen])
    depth = np.stack(
      [sampling.nearest(self._map(record, "depth", index), window, to) for index in chosen]
    )
    if record.intrinsics is None or record.world_from_camera is None:
      lens = camera_geometry.intrinsics_from_fov(_FOV, *size)
      lenses, poses = np.tile(lens, (len(chosen), 1, 1)), np.tile(np.eye(4), (len(chosen), 1, 1))
    else:
      lenses, poses = record.intrinsics[chosen], record.world_from_camera[chosen]
    whole: Any = {"world_from_camera": poses.astype(np.float32), "intrinsics": lenses}
    cameras = Cameras(**whole, height=size[0], width=size[1])
    shown: Any = images.astype(np.float32) / 255
    known: Any = np.where(depth < _FAR, depth, 0)
    at: Any = times
    return Views(
      images=shown, depth=known, cameras=sampling.cut_cameras(cameras, window, to), times=at
    )

  def _map(self, record: Record, name: str, index: int):
    size = (record.height, record.width)
    files = getattr(record, name)
    read = {"depth": read_depth, "instances": read_instances}[name]
    return read(files[index] if files else b"", size)


def _chosen(entries: list[Entry], wanted: str, kind: str, posed: bool, metric: bool) -> list[Entry]:
  return [
    entry
    for entry in split(entries, wanted)
    if (kind == "mixed" or entry.dynamic == (kind == "dynamic"))
    and (entry.posed or not posed)
    and (entry.metric or not metric)
  ]


def _bucket(entry: Entry, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
  """The bucket of a record: of the nearest aspect, then the longest; None if it is too short."""
  able = [shape for shape in shapes if shape[0] <= entry.frames]
  aspect = np.log(entry.width / entry.height)
  return min(able, key=lambda x: (abs(np.log(x[2] / x[1]) - aspect), -x[0]), default=None)


def _moved(views: Views, first, scale: float) -> Views:
  moved: Any = sampling.in_first(np.asarray(views.cameras.world_from_camera), first, scale)
  cameras = Cameras(
    world_from_camera=moved,
    intrinsics=views.cameras.intrinsics,
    height=views.cameras.height,
    width=views.cameras.width,
  )
  depth: Any = (np.asarray(views.depth) / scale).astype(np.float32)
  return Views(images=views.images, depth=depth, cameras=cameras, times=views.times)


def _moved_tracks(tracks: Tracks, first, scale: float) -> Tracks:
  local = (np.asarray(tracks.points) - first[:3, 3]) @ first[:3, :3] / scale
  points: Any = np.where(np.asarray(tracks.valid)[..., None], local, 0).astype(np.float32)
  return Tracks(points=points, visible=tracks.visible, valid=tracks.valid)
