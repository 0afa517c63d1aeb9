"""What plug-ins say of clips, taken into their records."""

import dataclasses
from typing import Any

import numpy as np

from d4s_jax.curation import plugins
from d4s_jax.curation.plugins import Excerpt
from d4s_jax.curation.recording import cameras_of
from d4s_jax.curation.settings import Settings
from d4s_jax.curation.units import Span
from d4s_jax.data import record as records
from d4s_jax.data.record import Record
from d4s_jax.types import Tracks

Row = dict[str, Any]


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

  def __init__(self, settings: Settings):
    self._open = {
      kind: plugins.open_estimator(kind, settings.plugins[kind])
      for kind in plugins.KINDS
      if kind in settings.plugins
    }

  def estimate(self, *given: Row) -> list[Row] | Row:
    """The rows, with what the plug-ins say in their records; of one row, that."""
    rows = self(list(given))
    return rows if len(rows) > 1 else rows[0]

  def __call__(self, rows: list[Row]) -> list[Row]:
    """The rows, with what the plug-ins say in their records."""
    good = [number for number, row in enumerate(rows) if not row["failed"]]
    for kind, estimator in self._open.items():
      clips = [excerpt(rows[number]) for number in good if not rows[number]["failed"]]
      numbers = [number for number in good if not rows[number]["failed"]]
      if not clips:
        continue
      for number, clip, result in zip(numbers, clips, _asked(kind, estimator, clips)):
        rows[number] = _taken(kind, rows[number], clip, result)
    return rows


def _asked(kind: str, estimator, clips: list[Excerpt]) -> list[Any]:
  """Results of a batch, or, for clips that the estimator fails on, the error."""
  try:
    results = list(estimator(clips))
    if len(results) != len(clips):
      raise ValueError(f"{kind}: {len(results)} results for {len(clips)} clips.")
    return results
  except ConnectionError:
    raise
  except Exception as error:
    if len(clips) == 1:
      return [error]
    # One clip may have spoilt the batch.
    return [_asked(kind, estimator, [clip])[0] for clip in clips]


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
    return {**row, **_with(kind, record, arrays)}
  except Exception as error:
    return {**row, "failed": f"{kind}: {' '.join(str(error).split())[:400]}"}


def _with(kind: str, record: Record, arrays: dict[str, np.ndarray]) -> Row:
  mine = np.flatnonzero(record.view == 0)
  if len(mine) < len(record.view):
    # What is estimated for one camera says nothing of the others.
    record = _first_view(record, mine)
  more: Row = {}
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
    if "points" in arrays and "visible" in arrays:
      more["points"] = (arrays["points"], arrays["visible"].T > 0)
  elif kind == "depth":
    depth = [records.to_depth_png(x) for x in arrays["depth"].astype(np.float32)]
    record = dataclasses.replace(record, depth=depth)
    more["metric_depth"] = True
  elif kind == "tracks":
    more["pixels"] = (arrays["pixels"].astype(np.float64), arrays["visible"] > 0)
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
