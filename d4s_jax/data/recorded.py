"""Clips of shards that curation wrote: frames, window and unit chosen anew at each reading."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from d4s_jax.data.cutting import Cut
from d4s_jax.data.record import CorruptRecord, Record, read_depth, read_image, read_instances
from d4s_jax.data.sampling import Augmentation, NoLength
from d4s_jax.data.shards import Entry, Shards, read_manifest
from d4s_jax.data.shards import split as of_split
from d4s_jax.data.splits import EmptySplit
from d4s_jax.data.transforms import in_floats
from d4s_jax.data.wanted import Wanted
from d4s_jax.types import Clip, Tracks


class Recorded:
  """Clips of a folder of shards.

  A record is read whole, but only the chosen frames are decoded, at the size asked for. Each record
  is one clip of an epoch, whose frames differ from epoch to epoch.

  Args:
    path: the folder.
    split: "train" or "heldout".
    kind: "static", "dynamic" or "mixed": which records.
    posed: whether records without cameras are left out.
    distance: units that the median known depth is scaled to, in each clip; 0 keeps metres, and
      leaves records of unknown scale out.
    shapes: (frames, height, width) of all buckets of the run, this one's among them: a record
      belongs to the one whose aspect is nearest among those that it is long enough for.
    augment: what is random; None for nothing but the choice of frames.
    **sizes: the other fields of `Wanted`.

  Attributes:
    groups: films and places of the split.
    others: those of the other split.

  Raises:
    FileNotFoundError: there is no manifest.
    EmptySplit: none of its clips is of the split.
    ValueError: the manifest is damaged, or no record fits.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    split: str = "train",
    kind: str = "mixed",
    *,
    posed: bool = True,
    distance: float = 0.0,
    shapes: Sequence[tuple[int, int, int]] = (),
    augment: Augmentation | None = None,
    **sizes: Any,
  ):
    wanted = Wanted(split=split, kind=kind, **sizes)
    self._cut = Cut(wanted, posed, distance, **({"augment": augment} if augment else {}))
    self._shards = Shards(path)
    told = read_manifest(path)
    mine = of_split(told, split)
    if told and not mine:
      raise EmptySplit(
        f"{path} has no clips of the split {split!r} among {len(told)}; expected more footage, or"
        " another folder beside this one. If the split that its manifest states is not that of its"
        " dataset, curate it again."
      )
    self.groups = {entry.group for entry in mine}
    self.others = {entry.group for entry in set(told) - set(mine)}
    self._entries = _chosen(mine, kind, posed, posed and not distance)
    shapes = shapes or [wanted.shape]
    self._entries = [x for x in self._entries if _bucket(x, shapes) == wanted.shape]
    if not self._entries and len(shapes) == 1:
      what = "metric " * (posed and not distance) + "posed " * posed + "clips"
      raise ValueError(
        f"{path} has no {what} of the split {split!r}, kind {kind!r}, with {wanted.frames} frames"
        " or more; curate more footage, or see config.data.distance."
      )

  def __len__(self) -> int:
    return len(self._entries)

  def contents(self) -> dict[str, Any]:
    """What tells these clips from others: names, manifest, sizes of files, how they are cut.

    Bytes that changed within a file of the same size are found when a record is read.
    """
    own = self._cut.contents(entry.name for entry in self._entries)
    return {**own, **self._shards.contents(entry.shard for entry in self._entries)}

  def read(self, index: int) -> Clip:
    """One clip, always the same."""
    return jax.tree.map(in_floats, self.draw(index, np.random.default_rng((index, 1))))

  def draw(self, index: int, rng: np.random.Generator) -> Clip:
    """One clip; which frames and what part of the picture depends on the generator.

    Raises:
      CorruptRecord: it can't be read; the message names file and row.
      NoLength: it can, but has no length to scale by.
    """
    self._cut.wanted.check(index, len(self))
    entry = self._entries[index]
    record = self._shards.read(entry)
    try:
      return self._cut(_OfRecord(record), rng)
    except NoLength as error:
      raise NoLength(f"{entry.shard}, record {entry.row} ({entry.name}): {error}") from error
    except (CorruptRecord, ValueError) as error:
      raise CorruptRecord(f"{entry.shard}, record {entry.row} ({entry.name}): {error}") from error


class _OfRecord:
  """A record as footage."""

  def __init__(self, record: Record):
    self.name, self.caption = record.name, record.caption
    self.metric, self.dynamic = record.metric, record.dynamic
    self.view, self.times = record.view, record.times
    self.height, self.width = record.height, record.width
    self.world_from_camera, self.intrinsics = record.world_from_camera, record.intrinsics
    self._record, self._size = record, (record.height, record.width)

  def picture(
    self, index: int, window: tuple[int, int, int, int], to: tuple[int, int]
  ) -> UInt8[np.ndarray, "h w 3"]:
    """A window of a frame, resized."""
    return read_image(self._record.images[index], self._size, window, to)

  def depth(self, index: int) -> Float[np.ndarray, "h w"] | None:
    """Z-depth of a frame."""
    files = self._record.depth
    return None if files is None else read_depth(files[index], self._size)

  def instances(self, index: int) -> Int[np.ndarray, "h w"] | None:
    """Instances of a frame."""
    files = self._record.instances
    return None if files is None else read_instances(files[index], self._size)

  def tracks(self, source: Int[np.ndarray, "f"]) -> Tracks | None:
    """Tracks over some frames."""
    tracks: Any = self._record.tracks
    return (
      None
      if tracks is None
      else Tracks(
        points=tracks.points[:, source],
        visible=tracks.visible[:, source],
        valid=tracks.valid[:, source],
      )
    )


def _chosen(entries: list[Entry], kind: str, posed: bool, metric: bool) -> list[Entry]:
  return [
    entry
    for entry in entries
    if (kind == "mixed" or entry.dynamic == (kind == "dynamic"))
    and (entry.posed or not posed)
    and (entry.metric or not metric)
  ]


def _bucket(entry: Entry, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
  """The bucket of a record: of the nearest aspect, then the longest; None if it is too short."""
  able = [shape for shape in shapes if shape[0] <= entry.frames]
  aspect = np.log(entry.width / entry.height)
  return min(able, key=lambda x: (abs(np.log(x[2] / x[1]) - aspect), -x[0]), default=None)
