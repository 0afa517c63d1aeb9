"""The metric scale of a clip's record, by whatever anchors there are.

Poses come first: those of a dataset that are metres already; else by a baseline, by lengths, by
metric depth maps or by the height of the camera, the first that is not refused. Depth that is
relative is then anchored to points in the metric world, or, before all else, to matches of a stereo
pair; so is a network's metric depth beside poses whose metres are not from it, as both can't be
right.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from d4s_jax.curation import anchors, plugins, scale
from d4s_jax.curation.anchors import Anchors
from d4s_jax.curation.recording import cameras_of
from d4s_jax.curation.scale import Refused, Scale
from d4s_jax.curation.settings import Settings
from d4s_jax.data import record as records
from d4s_jax.data.record import Record
from d4s_jax.types import Cameras, Tracks

Row = dict[str, Any]
UNKNOWN = "unknown"


@dataclasses.dataclass
class Found:
  """A record and what is known of its scale.

  Attributes:
    record: in metres, if its scale was found; depth that would contradict its poses is left out.
    metres: where its metres come from.
    factor: metres in a unit of the poses as they were.
    notes: why something was not found.
    figures: of the estimates.
  """

  record: Record
  metres: str = UNKNOWN
  factor: float = 1.0
  notes: list[str] = dataclasses.field(default_factory=list)
  figures: dict[str, float] = dataclasses.field(default_factory=dict)


def find_scale(record: Record, row: Row, settings: Settings) -> Found:
  """The record in metres, if its scale can be found; else as it is, and why.

  Args:
    record: as its dataset and the plug-ins have it.
    row: of the clip, with what plug-ins said beside.
    settings: the height of the camera and the baseline.
  """
  found = Found(record)
  estimates = row.get("metric_depth") or row.get("relative_depth")
  if "depth" in settings.plugins and record.depth is not None and not estimates:
    found.notes.append("depth is the dataset's own; the plug-in was not asked.")
  mine = np.flatnonzero(record.view == 0)
  cameras = cameras_of(record, mine)
  if cameras is None:
    return found
  relative = row.get("relative_depth", "")
  # Points that are known otherwise than by depth.
  others = "points" in row or record.tracks is not None or row.get("pixels") is not None
  depth = _depth(record, mine)
  if relative and "matches" in row and settings.baseline:
    depth, relative = _by_matches(found, depth, relative, cameras, row, settings)
  # A plug-in's, in metres. A dataset's own depth is in the unit of its poses.
  estimated = bool(row.get("metric_depth") or row.get("relative_depth") and not relative)
  if record.metric:
    found.metres = "dataset"
  else:
    maps = depth if estimated else None
    cameras = _scaled_poses(found, row, cameras, maps, settings)
  if row.get("metric_depth") and found.metres not in (UNKNOWN, "depth maps"):
    relative = "relative"
  if relative:
    depth = _by_points(found, depth, relative, cameras, row)
  elif estimated and found.metres == UNKNOWN:
    # Poses and depth of two units would contradict each other.
    found.notes.append("depth is left out: its unit is not that of the poses")
    depth = None
  elif depth is not None and record.metric and (others or not row.get("relative_depth")):
    _checked(found, row, cameras, depth, others)
  elif record.metric:
    found.notes.append("scale not checked: the dataset has no depth to hold against its poses.")
  elif depth is not None and not estimated:
    depth = depth * found.factor
  if depth is None:
    found.record = dataclasses.replace(found.record, depth=None)
  elif relative or row.get("relative_depth") or found.factor != 1 and not estimated:
    found.record = dataclasses.replace(found.record, depth=[records.to_depth_png(x) for x in depth])
  pixels = row.get("pixels")
  if pixels is not None and depth is not None and found.metres != UNKNOWN:
    found.record = _with_tracks(found.record, pixels, depth, cameras)
  return found


def _depth(record: Record, mine) -> Float[np.ndarray, "f h w"] | None:
  if record.depth is None:
    return None
  size = (record.height, record.width)
  return np.stack([records.read_depth(record.depth[i], size) for i in mine])


def _scaled_poses(
  found: Found, row: Row, cameras: Cameras, depth: Any, settings: Settings
) -> Cameras:
  """The cameras in metres, by the first kind of anchors that isn't refused."""
  for name, make in _ways(found.record, row, cameras, depth, settings):
    try:
      estimate = make().estimate()
    except Refused as error:
      found.notes.append(f"no scale by {name}: {error}")
      continue
    found.metres, found.factor = name, estimate.scale
    found.figures |= _figures("scale", estimate)
    found.record = _in_metres(found.record, estimate.scale)
    return _times(cameras, estimate.scale)
  return cameras


def _ways(
  record: Record, row: Row, cameras: Cameras, depth: Any, settings: Settings
) -> Iterator[tuple[str, Callable[[], Anchors]]]:
  """The kinds of anchors that there are."""
  second = row["second"] if "second" in row else second_camera(record)
  if settings.baseline and second is not None:
    first = np.asarray(cameras.world_from_camera)[:, :3, 3]
    ends = np.stack([first, second[:, :3, 3]], axis=1)
    known = np.isfinite(ends).all((1, 2))
    metres, frames = np.full(len(ends), settings.baseline), np.arange(len(ends))
    yield (
      "baseline",
      lambda: anchors.from_lengths(ends[known], metres[known], frames[known]),
    )
  if "lengths" in row:
    yield "lengths", lambda: anchors.from_lengths(*row["lengths"])
  if depth is not None:

    def of_maps() -> Anchors:
      return anchors.from_depth_maps(*_points(record, row, cameras), cameras, depth)

    yield "depth maps", of_maps
  if settings.height:

    def of_height() -> Anchors:
      points, visible = _points(record, row, cameras)
      points = points[visible] if points.ndim == 3 else points
      return anchors.from_camera_height(points, cameras, settings.height)

    yield "height", of_height


def second_camera(record: Record) -> Float[np.ndarray, "f 4 4"] | None:
  """Poses of the second view at the moments of the first one's frames, NaN where it has none."""
  mine, other = np.flatnonzero(record.view == 0), np.flatnonzero(record.view == 1)
  if record.world_from_camera is None or not len(other):
    return None
  poses = np.full((len(mine), 4, 4), np.nan)
  for place, index in enumerate(mine):
    same = other[np.abs(record.times[other] - record.times[index]) < 1e-6]
    if len(same):
      poses[place] = record.world_from_camera[same[0]]
  return poses


def _points(
  record: Record, row: Row, cameras: Cameras, factor: float = 1.0
) -> tuple[Any, Bool[np.ndarray, "n f"]]:
  """Points of the clip in the unit of the cameras, and where each is seen.

  Of structure from motion [n 3], as the row has them, times `factor`; the dataset's own tracks
  [n f 3]; or triangulated ones.

  Raises:
    Refused: there are none.
  """
  if "points" in row:
    points, visible = row["points"]
    return points * factor, visible
  if record.tracks is not None:
    mine = record.view == 0
    seen = np.asarray(record.tracks.visible)[:, mine] & np.asarray(record.tracks.valid)[:, mine]
    return np.asarray(record.tracks.points, np.float64)[:, mine], seen
  if row.get("pixels") is None:
    raise Refused("no points of structure from motion and no tracks; expected one of them.")
  pixels, visible = row["pixels"]
  return anchors.triangulate(pixels, visible, cameras)


def _by_matches(
  found: Found, depth: Any, relative: str, cameras: Cameras, row: Row, settings: Settings
) -> tuple[Any, str]:
  """Depth in metres by matches of a stereo pair; as it was, if they don't tell."""
  frame, left, right, offset = row["matches"]
  column, line = np.floor(left).astype(int).T
  good = (column >= 0) & (column < cameras.width) & (line >= 0) & (line < cameras.height)
  frame, left, right, offset = frame[good], left[good], right[good], offset[good]
  values = depth[frame, line[good], column[good]]
  known = values > 0
  focal = np.asarray(cameras.intrinsics)[frame, 0, 0]
  try:
    estimate = anchors.from_stereo(
      left[known],
      right[known],
      values[known],
      focal=focal[known],
      offset=offset[known],
      baseline=settings.baseline,
    ).estimate(shift=relative == "disparity")
  except Refused as error:
    found.notes.append(f"depth: no scale by matches: {error}")
    return depth, relative
  found.figures |= _figures("depth_scale", estimate)
  return _applied(estimate, depth, relative), ""


def _by_points(found: Found, depth: Any, relative: str, cameras: Cameras, row: Row) -> Any:
  """Depth in metres by points in the metric world; None if they don't tell."""
  try:
    if found.metres == UNKNOWN:
      raise Refused("the scale of its poses is unknown.")
    points, visible = _points(found.record, row, cameras, found.factor)
    pairs = anchors.from_depth_maps(points, visible, cameras, depth, relative=True)
    estimate = pairs.estimate(shift=relative == "disparity")
  except Refused as error:
    found.notes.append(f"depth is left out: {error}")
    return None
  found.figures |= _figures("depth_scale", estimate)
  return _applied(estimate, depth, relative)


def _applied(estimate: Scale, depth: Any, relative: str) -> Float[np.ndarray, "f h w"]:
  metres = scale.to_depth(estimate, depth) if relative == "disparity" else depth * estimate.scale
  return np.where(depth > 0, metres, 0).astype(np.float32)


def _checked(found: Found, row: Row, cameras: Cameras, depth: Any, others: bool) -> None:
  """Whether depth is in the metres of a dataset's poses: a scale of about 1, and as consistent.

  By `others`, points; without any, by the depth of other frames.
  """
  name = "own_scale" if others else "own_depth"
  try:
    if others:
      pairs = anchors.from_depth_maps(*_points(found.record, row, cameras), cameras, depth)
    else:
      pairs = anchors.from_own_depth(cameras, depth)
    estimate = pairs.estimate()
  except Refused as error:
    found.notes.append(f"scale not checked: {error}")
    return
  found.figures |= _figures(name, estimate)


def _figures(name: str, found: Scale) -> dict[str, float]:
  parts = ("anchors", "inliers", "error", "variation", "confidence")
  values = {name: found.scale} | {f"{name}_{part}": getattr(found, part) for part in parts}
  return {key: float(f"{float(value):.6g}") for key, value in values.items()}


def _in_metres(record: Record, factor: float) -> Record:
  poses = np.array(record.world_from_camera)
  poses[:, :3, 3] *= factor
  tracks: Any = record.tracks
  if tracks is not None:
    tracks = dataclasses.replace(tracks, points=np.asarray(tracks.points) * np.float32(factor))
  return dataclasses.replace(record, world_from_camera=poses, tracks=tracks, metric=True)


def _times(cameras: Cameras, factor: float) -> Cameras:
  poses = np.array(cameras.world_from_camera)
  poses[:, :3, 3] *= factor
  moved: Any = poses
  return dataclasses.replace(cameras, world_from_camera=moved)


def _with_tracks(record: Record, pixels: Any, depth: Any, cameras: Cameras) -> Record:
  """The record with tracked pixels as tracks in space, if it has none."""
  if record.tracks is not None:
    return record
  points, known = plugins.lifted(pixels[0], depth, cameras)
  flags: Any = known & pixels[1].T
  positions: Any = points.astype(np.float32)
  return dataclasses.replace(record, tracks=Tracks(points=positions, visible=flags, valid=flags))
