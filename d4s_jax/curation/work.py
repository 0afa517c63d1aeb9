"""What workers do with one clip: read it, ask the plug-ins, measure, judge."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import multiprocessing
import pathlib
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from d4s_jax.curation import anchors, duplicates, plugins, stages
from d4s_jax.curation.recording import cameras_of, nearest, small_copy, thumbnail, to_record
from d4s_jax.curation.scale import Refused, Scale
from d4s_jax.curation.settings import Settings
from d4s_jax.curation.stages import moving
from d4s_jax.curation.units import Span, Unit, open_span, spans
from d4s_jax.data import record as records
from d4s_jax.data.record import Record
from d4s_jax.data.shards import Entry, to_json
from d4s_jax.types import Cameras, Tracks

# After so many workers died on a clip, it is read in a process of its own; seconds that it may take
# there.
_SUSPICIOUS, _PATIENCE = 2, 1800
# Share of moving pixels from which a video counts as dynamic.
_DYNAMIC = 0.02

Row = dict[str, Any]


def split(unit: Unit, settings: Settings, attempts: pathlib.Path) -> Row:
  """The clips of a unit, as {"unit", "spans", "problems", "failed"}."""
  found, reason = _guarded(unit.name, attempts, _split, unit, settings)
  clips, problems = found or ([], [])
  return {"unit": unit.name, "spans": clips, "problems": problems, "failed": reason}


def _split(unit: Unit, settings: Settings) -> tuple[list[Span], list[str]]:
  return spans(unit, settings.frames, settings.shortest)


def read(span: Span, settings: Settings, attempts: pathlib.Path) -> Row:
  """The record of a clip, as {"span", "record", "failed", "group", "split", "known"}."""
  found, reason = _guarded(span.name, attempts, _read, span, settings)
  return {"span": span, "failed": reason, **(found or {})}


def _read(span: Span, settings: Settings) -> Row:
  opened = open_span(span)
  record = to_record(span, opened, settings.side)
  return {
    "record": records.encode(record),
    "group": opened.group,
    "split": opened.split,
    # Whether something moves is the dataset's word, or to be found out.
    "known": opened.dynamic is not None,
  }


def _guarded(name: str, attempts: pathlib.Path, function, *arguments) -> tuple[Any, str]:
  """The result, or why there is none.

  Whatever a clip does to its worker, the worker's next attempt is counted, and one that seems to be
  deadly is made in a process apart, so that nothing else is lost with it.
  """
  try:
    with _attempt(name, attempts) as before:
      if before < _SUSPICIOUS:
        return function(*arguments), ""
      return _apart(function, *arguments), ""
  except BrokenProcessPool:
    return None, "its reader crashes, repeatedly; remove the file, or fetch it again"
  except TimeoutError:
    return None, f"its reader does not end within {_PATIENCE} s; remove the file"
  except ConnectionError:
    raise
  except Exception as error:
    if _is_full(error):
      raise
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return None, f"{kind}{' '.join(str(error).split())[:500]}"


def _is_full(error: Exception) -> bool:
  """A full disk is no property of a clip."""
  return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def _attempt(name: str, folder: pathlib.Path) -> Iterator[int]:
  """Counts attempts that did not come to an end; yields how many there were before."""
  marker = folder / hashlib.sha256(name.encode()).hexdigest()[:32]
  before = marker.stat().st_size if marker.exists() else 0
  with marker.open("ab") as file:
    file.write(b".")
  try:
    yield before
  finally:
    marker.unlink(missing_ok=True)


def _apart(function, *arguments) -> Any:
  context = multiprocessing.get_context("spawn")
  for attempt in range(2):
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
      try:
        return pool.submit(function, *arguments).result(timeout=_PATIENCE)
      except BrokenProcessPool:
        if attempt:
          raise
      except futures.TimeoutError:
        for process in multiprocessing.active_children():
          process.kill()
        raise TimeoutError from None
  raise AssertionError("unreachable")


def assess(row: Row, settings: Settings) -> Row:
  """The decision about a clip: {"told": a line of the manifest, "record": bytes of a kept one}.

  One that can't be judged is quarantined, like one that can't be read.
  """
  span: Span = row["span"]
  told: Row = {"clip": span.name, "unit": span.unit.name, "kept": False}
  reason = row["failed"]
  if not reason:
    try:
      return _judged(row, settings, told)
    except Exception as error:
      if _is_full(error):
        raise
      reason = f"it can't be judged: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
  return {"told": {**told, "quarantined": True, "reason": reason}, "record": b""}


def _judged(row: Row, settings: Settings, told: Row) -> Row:
  record = records.decode(row["record"])
  record, notes, figures = _scaled(record, row)
  small = small_copy(record)
  figures = stages.measure(small) | figures
  if not row["known"]:
    record = dataclasses.replace(record, dynamic=figures.get("moving", 0) > _DYNAMIC)
  if record.dynamic and record.instances is None:
    record = _masked(record)
  strange = [name for name, value in figures.items() if not np.isfinite(value)]
  if strange:
    raise ValueError(f"its {', '.join(strange)} can't be measured; it may be too small")
  reason = stages.judge(figures, stages.limits(settings.limits))
  told |= {"figures": figures, "hashes": [f"{x:016x}" for x in duplicates.hashes(small)]}
  told |= {"notes": notes} if notes else {}
  if reason:
    return {"told": {**told, "reason": reason, "thumbnail": thumbnail(small)}, "record": b""}
  entry = Entry(
    shard="",
    row=0,
    name=record.name,
    group=row["group"],
    split=row["split"],
    frames=int(np.bincount(record.view).max()),
    height=record.height,
    width=record.width,
    posed=record.intrinsics is not None,
    metric=record.metric,
    dynamic=record.dynamic,
  )
  told |= {"kept": True, "record": to_json(entry), "thumbnail": thumbnail(small)}
  return {"told": told, "record": records.encode(record)}


def _scaled(record: Record, row: Row) -> tuple[Record, list[str], dict[str, float]]:
  """The record in metres, if its scale can be found; else as it is, and why."""
  mine = np.flatnonzero(record.view == 0)
  cameras = cameras_of(record, mine)
  pixels = row.get("pixels")
  if cameras is None or record.depth is None:
    return record, [], {}
  if record.metric and pixels is None:
    return record, [], {}
  size = (record.height, record.width)
  depth = np.stack([records.read_depth(record.depth[i], size) for i in mine])
  notes: list[str] = []
  figures: dict[str, float] = {}
  # A dataset's own depth is in the unit of its poses.
  if not record.metric and row.get("metric_depth"):
    try:
      points, visible = row.get("points") or _triangulated(pixels, cameras)
      found = anchors.from_depth_maps(points, visible, cameras, depth).estimate()
      record, cameras = _in_metres(record, found.scale), _times(cameras, found.scale)
      figures = _figures(found)
    except Refused as error:
      # Poses and depth of two units would contradict each other.
      notes.append(f"scale unknown, depth left out: {error}")
      record = dataclasses.replace(record, depth=None)
  if pixels is not None and record.metric and record.tracks is None:
    points, known = plugins.lifted(pixels[0], depth, cameras)
    found_tracks: Any = {"points": points.astype(np.float32), "visible": known & pixels[1].T}
    record = dataclasses.replace(record, tracks=Tracks(**found_tracks, valid=known & pixels[1].T))  # pyright: ignore[reportArgumentType]
  return record, notes, figures


def _triangulated(pixels, cameras: Cameras):
  if pixels is None:
    raise Refused("no points of structure from motion and no tracks; expected one of them.")
  return anchors.triangulate(pixels[0], pixels[1], cameras)


def _figures(found: Scale) -> dict[str, float]:
  names = ("scale", "anchors", "inliers", "error", "variation", "confidence")
  return {
    name if name == "scale" else f"scale_{name}": float(f"{getattr(found, name):.6g}")
    for name in names
  }


def _in_metres(record: Record, scale: float) -> Record:
  poses = np.array(record.world_from_camera)
  poses[:, :3, 3] *= scale
  tracks: Any = record.tracks
  if tracks is not None:
    tracks = dataclasses.replace(tracks, points=np.asarray(tracks.points) * np.float32(scale))
  return dataclasses.replace(record, world_from_camera=poses, tracks=tracks, metric=True)


def _times(cameras: Cameras, scale: float) -> Cameras:
  poses = np.array(cameras.world_from_camera)
  poses[:, :3, 3] *= scale
  moved: Any = poses
  return dataclasses.replace(cameras, world_from_camera=moved)


def _masked(record: Record) -> Record:
  """The record with masks of what moves, where depth and cameras tell."""
  mine = np.flatnonzero(record.view == 0)
  mask = moving.mask_of(small_copy(record, every=True))
  if mask is None:
    return record
  size = (record.height, record.width)
  files = [b""] * len(record.view)
  for index, one in zip(mine, mask):
    files[index] = records.to_instance_png(nearest(one.astype(np.int32), size))
  return dataclasses.replace(record, instances=files)


def to_line(told: Row) -> str:
  """The decision as text, which passes between processes."""
  return json.dumps(told, ensure_ascii=False, allow_nan=False)
