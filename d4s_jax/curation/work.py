"""What workers do with one clip: read it, ask the plug-ins, measure, judge."""

import dataclasses
import json
from typing import Any

import numpy as np

from d4s_jax.curation import duplicates, stages
from d4s_jax.curation.guard import Guard
from d4s_jax.curation.metric import find_scale
from d4s_jax.curation.recording import nearest, small_copy, thumbnail, to_record
from d4s_jax.curation.settings import Settings
from d4s_jax.curation.stages import moving
from d4s_jax.curation.units import Span, Unit, open_span, spans
from d4s_jax.data import record as records
from d4s_jax.data.record import Record
from d4s_jax.data.shards import Entry, to_json

# Share of moving pixels from which a video counts as dynamic.
_DYNAMIC = 0.02

Row = dict[str, Any]


def split(unit: Unit, settings: Settings, guard: Guard) -> Row:
  """The clips of a unit, as {"unit", "spans", "problems", "failed", "again"}."""
  meter = guard.meter(unit.name)
  done = guard.run(unit.name, spans, unit, settings.frames, settings.shortest, meter.tell)
  meter.tell(1)
  clips, problems = done.result or ([], [])
  told = {"unit": unit.name, "spans": clips, "problems": problems}
  return {**told, "failed": done.failed, "again": done.again}


def read(span: Span, settings: Settings, guard: Guard) -> Row:
  """The record of a clip, as {"span", "record", "failed", "again", ...}; see `_read`."""
  done = guard.run(span.name, _read, span, settings)
  return {"span": span, "failed": done.failed, "again": done.again, **(done.result or {})}


def _read(span: Span, settings: Settings) -> Row:
  opened = open_span(span)
  record, notes = to_record(span, opened, settings.side)
  return {
    "record": records.encode(record),
    "notes": notes,
    "group": opened.group,
    "split": opened.split,
    # Whether something moves is the dataset's word, or to be found out.
    "known": opened.dynamic is not None,
  }


def assess(row: Row, settings: Settings, guard: Guard) -> Row:
  """The decision about a clip: {"told": a line of the manifest, "record": bytes of a kept one}.

  One that can't be judged is quarantined, like one that can't be read.
  """
  span: Span = row["span"]
  told: Row = {"clip": span.name, "unit": span.unit.name, "kept": False}
  reason, again = row["failed"], row.get("again", False)
  if not reason:
    done = guard.run(f"judging {span.name}", _judged, row, settings, told)
    if not done.failed:
      return done.result
    reason, again = f"it can't be judged: {done.failed}", done.again
  told |= {"quarantined": True, "reason": reason} | ({"again": True} if again else {})
  return {"told": told, "record": b""}


def _judged(row: Row, settings: Settings, told: Row) -> Row:
  record = records.decode(row["record"])
  found = find_scale(record, row, settings)
  record = found.record
  small = small_copy(record)
  figures = stages.measure(small) | found.figures
  if not row["known"]:
    record = dataclasses.replace(record, dynamic=figures.get("moving", 0) > _DYNAMIC)
  if record.dynamic and record.instances is None:
    record = _masked(record)
  strange = [name for name, value in figures.items() if not np.isfinite(value)]
  if strange:
    raise ValueError(f"its {', '.join(strange)} can't be measured; it may be too small")
  reason = stages.judge(figures, stages.limits(settings.limits))
  told |= {"figures": figures, "hashes": [f"{x:016x}" for x in duplicates.hashes(small)]}
  notes = [*row.get("notes", ()), *found.notes]
  told |= {"metres": found.metres} | ({"notes": notes} if notes else {})
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
