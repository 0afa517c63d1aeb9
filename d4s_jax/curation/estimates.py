"""What plug-ins say of clips, taken into their records."""

import dataclasses
import time
from typing import Any

import numpy as np

from d4s_jax.curation import guard as guards
from d4s_jax.curation import plugins
from d4s_jax.curation.guard import SUSPICIOUS, Guard, watched
from d4s_jax.curation.metric import second_camera
from d4s_jax.curation.plugins import Excerpt
from d4s_jax.curation.recording import cameras_of
from d4s_jax.curation.settings import Settings
from d4s_jax.curation.units import Span
from d4s_jax.data import record as records
from d4s_jax.data.record import Record
from d4s_jax.types import Tracks

Row = dict[str, Any]

_DEADLY = (
  "the plug-ins' process crashes on it, or doesn't end, repeatedly; see what they do with this clip"
)


def excerpt(row: Row) -> Excerpt:
  """A clip's first view for plug-ins."""
  record = records.decode(row["record"])
  mine = np.flatnonzero(record.view == 0)
  size = (record.height, record.width)
  shown = [records.read_image(record.images[i], size, (0, 0, *size), size) for i in mine]
  span: Span = row["span"]
  frames = np.arange(span.first, span.last + 1)
  jpegs = [record.images[i] for i in mine]
  return Excerpt(
    unit=span.unit.name,
    frames=frames[: len(mine)],
    images=np.stack(shown),
    jpegs=jpegs,
    cameras=cameras_of(record, mine),
  )


class Estimators:
  """The plug-ins, opened once in a worker; takes clips in batches."""

  def __init__(self, settings: Settings, guard: Guard):
    self._guard = guard
    self._open = {
      kind: plugins.open_estimator(kind, settings.plugins[kind])
      for kind in plugins.KINDS
      if kind in settings.plugins
    }

  def estimate(self, *given: Row) -> list[Row] | Row:
    """The rows, with what the plug-ins say in their records; of one row, that.

    Clips that were under way when a worker died are asked about alone, so that the one that kills
    workers is found; after some deaths it is asked about no more.
    """
    rows = list(given)
    names = [f"asking about {row['span'].name}" for row in rows]
    before = [self._guard.before(name) for name in names]
    groups = [[i for i, count in enumerate(before) if not count]]
    groups += [[i] for i, count in enumerate(before) if count]
    for group in groups:
      if not group:
        continue
      if max(before[i] for i in group) > SUSPICIOUS:
        (i,) = group
        rows[i] = {**rows[i], "failed": _DEADLY}
        self._guard.forget(names[i])
        continue
      with self._guard.attempt(*(names[i] for i in group)):
        with watched(self._guard.patience * len(group)):
          done = self([rows[i] for i in group])
      for i, row in zip(group, done):
        rows[i] = row
    return rows if len(rows) > 1 else rows[0]

  def __call__(self, rows: list[Row]) -> list[Row]:
    """The rows, with what the plug-ins say in their records."""
    for kind, estimator in self._open.items():
      numbers = [n for n, row in enumerate(rows) if not row["failed"] and _wanted(kind, row)]
      if not numbers:
        continue
      clips = [excerpt(rows[number]) for number in numbers]
      for number, clip, result in zip(numbers, clips, _asked(kind, estimator, clips)):
        rows[number] = _taken(kind, rows[number], clip, result)
    return rows


def _wanted(kind: str, row: Row) -> bool:
  """Whether a plug-in has anything to say: true depth of a dataset is not replaced by estimates."""
  return kind != "depth" or records.decode(row["record"]).depth is None


def _asked(kind: str, estimator, clips: list[Excerpt]) -> list[Any]:
  """Results of a batch, or, for clips that the estimator fails on, the error.

  Errors of disks and networks are waited for a little.

  Raises:
    ConnectionError: a server doesn't answer.
    ValueError, OSError: a disk is full.
  """
  for pause in (*guards.PAUSES, None):
    try:
      results = list(estimator(clips))
      if len(results) != len(clips):
        raise ValueError(f"{kind}: {len(results)} results for {len(clips)} clips.")
      return results
    except ConnectionError:
      raise
    except Exception as error:
      passing, failed = guards.may_pass(error), error
    if len(clips) > 1:  # one may have spoilt the batch
      return [_asked(kind, estimator, [clip])[0] for clip in clips]
    if pause is None or not passing:
      return [failed]
    time.sleep(pause)
  raise AssertionError("unreachable")


def _taken(kind: str, row: Row, clip: Excerpt, result: Any) -> Row:
  try:
    if isinstance(result, Exception):
      raise result
    record = records.decode(row["record"])
    if kind == "captions":
      if not isinstance(result, str) or not result.strip():
        raise ValueError(f"a caption {result!r:.80}; expected a text")
      record = dataclasses.replace(record, caption=result[:2000])
      return {**row, "record": records.encode(record)}
    arrays = plugins.checked(kind, result, clip)
    return {**row, **_with(kind, record, arrays, clip)}
  except Exception as error:
    reason, again = f"{kind}: {' '.join(str(error).split())[:400]}", guards.may_pass(error)
    return {**row, "failed": reason + guards.AGAIN if again else reason, "again": again}


def _with(kind: str, record: Record, arrays: dict[str, np.ndarray], clip: Excerpt) -> Row:
  mine = np.flatnonzero(record.view == 0)
  more: Row = {}
  if len(mine) < len(record.view):
    # What is estimated for one camera says nothing of the others, but where the second one is.
    second = None if record.metric else second_camera(record)
    more |= {} if second is None else {"second": second}
    record = _first_view(record, mine)
  if kind == "cameras":
    record = dataclasses.replace(
      record,
      world_from_camera=arrays["world_from_camera"].astype(np.float32),
      intrinsics=arrays["intrinsics"].astype(np.float32),
      metric=False,
      # The dataset's own are in the world and the unit of its own cameras.
      depth=None,
      tracks=None,
    )
    more = {"second": arrays["second"]} if "second" in arrays else {}
    if "points" in arrays and "visible" in arrays:
      more["points"] = (arrays["points"], arrays["visible"].T > 0)
  elif kind == "depth":
    ((name, depth),) = arrays.items()
    depth = depth.astype(np.float32)
    if name == "depth":
      more["metric_depth"] = True
    else:
      # In any unit: about 1, as far as it can be from the ends of what files hold.
      known = depth[depth > 0]
      depth = depth / (np.median(known) if len(known) else 1)
      more["relative_depth"] = name
    record = dataclasses.replace(record, depth=[records.to_depth_png(x) for x in depth])
  elif kind == "tracks":
    more["pixels"] = (arrays["pixels"].astype(np.float64), arrays["visible"] > 0)
  elif kind == "lengths":
    metres, objects = (arrays[x].astype(np.float64) for x in ("metres", "objects"))
    more["lengths"] = (arrays["ends"].astype(np.float64), metres, objects.astype(np.int64))
  elif kind == "matches":
    frame = arrays["frame"].astype(np.int64) - clip.frames[0]
    offset = arrays.get("offset", np.zeros(len(frame)))
    here = (frame >= 0) & (frame < len(clip.images))
    more["matches"] = tuple(x[here] for x in (frame, arrays["left"], arrays["right"], offset))
  return {**more, "record": records.encode(record)}


def _first_view(record: Record, mine) -> Record:
  def some(files):
    return None if files is None else [files[i] for i in mine]

  tracks = record.tracks
  kept: Any = None
  if tracks is not None:
    parts = {
      x.name: np.asarray(getattr(tracks, x.name))[:, mine] for x in dataclasses.fields(tracks)
    }
    kept = Tracks(**parts)  # pyright: ignore[reportArgumentType]
  posed = record.world_from_camera is not None and record.intrinsics is not None
  return dataclasses.replace(
    record,
    **{"view": record.view[mine], "times": record.times[mine], "images": some(record.images)},
    **{"depth": some(record.depth), "instances": some(record.instances), "tracks": kept},
    world_from_camera=record.world_from_camera[mine] if posed else None,  # pyright: ignore
    intrinsics=record.intrinsics[mine] if posed else None,  # pyright: ignore
  )
