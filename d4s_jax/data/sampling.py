"""Which part of a record becomes a clip: frames, window, targets, tracks, unit of length.

Everything random comes from one generator, so that a clip is a pure function of record and seed.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from d4s_jax.data.record import Record
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.geometry import poses
from d4s_jax.types import Cameras, Tracks

# Of the largest window of the clip's aspect, a random one has at least this share of the side.
_SMALLEST_WINDOW = 0.8
# Share of target views from other cameras, where there are some.
_ELSEWHERE = 0.5


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is random about a clip; the field names are configuration keys.

  Attributes:
    stride: most frames from one source frame to the next; each clip has its own stride.
    reverse: share of clips in which nothing moves that are played backwards.
    crop: whether the window is placed at random and may be smaller; else the largest, centred.
  """

  stride: int = 4
  reverse: float = 0.5
  crop: bool = True

  def __post_init__(self):
    if self.stride < 1 or not 0 <= self.reverse <= 1:
      raise ValueError(f"{self}; expected a stride of at least 1, and reverse from 0 to 1.")


def choose_frames(
  record: Record, frames: int, views: int, rng: np.random.Generator, how: Augmentation
) -> tuple[Int[np.ndarray, "f"], Int[np.ndarray, "v"], Float[np.ndarray, "f"], Any]:
  """Source frames of one camera at a random stride, and target frames within their span of time.

  Returns:
    Indices of the source frames, of the target frames, and the times in [0, 1] of each. Played
    backwards, times rise all the same. Targets are frames that are no source where there are
    enough of them.

  Raises:
    ValueError: no view has that many frames.
  """
  lengths = np.bincount(record.view)
  able = np.flatnonzero(lengths >= frames)
  if not len(able):
    raise ValueError(f"{record.name} has views of {lengths.max()} frames; expected {frames}.")
  view = int(rng.choice(able))
  mine = np.flatnonzero(record.view == view)
  longest = min(how.stride, (len(mine) - 1) // (frames - 1)) if frames > 1 else 1
  stride = int(rng.integers(1, longest + 1))
  start = int(rng.integers(len(mine) - stride * (frames - 1)))
  source = mine[start : start + stride * (frames - 1) + 1 : stride]
  first, last = record.times[source[0]], record.times[source[-1]]
  span = last - first if last > first else 1.0
  within = (record.times >= first) & (record.times <= last)
  targets = _targets(record, source, within, view, views, rng)
  times = [(record.times[chosen] - first) / span for chosen in (source, targets)]
  if not record.dynamic and rng.random() < how.reverse:
    source, times = source[::-1], [1 - times[0][::-1], 1 - times[1]]
  order = np.argsort(times[1], kind="stable")
  return source, targets[order], times[0].astype(np.float32), times[1][order].astype(np.float32)


def _targets(
  record: Record,
  source: Int[np.ndarray, "f"],
  within: Bool[np.ndarray, "k"],
  view: int,
  count: int,
  rng: np.random.Generator,
) -> Int[np.ndarray, "v"]:
  chosen: list[int] = []
  others = np.flatnonzero(within & (record.view != view))
  if len(others):
    chosen += list(rng.permutation(others)[: round(_ELSEWHERE * count)])
  between = np.setdiff1d(np.flatnonzero(within & (record.view == view)), source)
  for pool in (between, others, source):
    unused = np.setdiff1d(pool, chosen)
    chosen += list(rng.permutation(unused)[: count - len(chosen)])
  if len(chosen) < count:
    chosen += list(rng.choice(source, count - len(chosen)))
  return np.array(chosen, np.int64)


def choose_window(
  size: tuple[int, int], to: tuple[int, int], rng: np.random.Generator, how: Augmentation
) -> tuple[int, int, int, int]:
  """Top, left, height and width of a window with the aspect of `to`, whole pixels."""
  height, width = size
  scale = min(height / to[0], width / to[1])
  # A window smaller than the clip would only be blown up.
  if how.crop and scale > 1:
    scale = max(1.0, scale * rng.uniform(_SMALLEST_WINDOW, 1))
  tall = max(1, min(height, round(to[0] * scale)))
  wide = max(1, min(width, round(to[1] * scale)))
  free = (height - tall, width - wide)
  if how.crop:
    top, left = (int(rng.integers(x + 1)) for x in free)
  else:
    top, left = (x // 2 for x in free)
  return top, left, tall, wide


def nearest(pixels: Any, window: tuple[int, int, int, int], to: tuple[int, int]) -> Any:
  """A window of a map [h w], resized to the pixels whose centres are nearest: nothing is mixed."""
  top, left, height, width = window
  rows = top + ((np.arange(to[0]) + 0.5) * height / to[0]).astype(int)
  columns = left + ((np.arange(to[1]) + 0.5) * width / to[1]).astype(int)
  return pixels[rows[:, None], columns]


def cut_cameras(
  cameras: Cameras, window: tuple[int, int, int, int], to: tuple[int, int]
) -> Cameras:
  """The cameras of pictures that were cut to the window and resized."""
  return camera_geometry.resize(camera_geometry.crop(cameras, *window), *to)


def in_first(
  world_from_camera: Float[np.ndarray, "f 4 4"], first: Float[np.ndarray, "4 4"], scale: float
) -> Float[np.ndarray, "f 4 4"]:
  """The poses in a world whose origin is the camera `first`, in which a unit is `scale` as long."""
  moved = poses.relative_to(world_from_camera.astype(np.float64), first.astype(np.float64))
  moved[..., :3, 3] /= scale
  return moved.astype(np.float32)


def unit(
  depth: Float[np.ndarray, "f h w"],
  world_from_camera: Float[np.ndarray, "f 4 4"],
  distance: float,
) -> float:
  """How long a unit must be for known depth to have the median `distance` units.

  Where no depth is known, the farthest camera is put one unit from the first: what it looks at is
  usually some units away.

  Raises:
    ValueError: no depth is known and the camera stands still.
  """
  known = depth[depth > 0]
  if len(known):
    return float(np.median(known)) / distance
  travel = np.linalg.norm(world_from_camera[:, :3, 3] - world_from_camera[0, :3, 3], axis=-1)
  if travel.max() < 1e-6:
    raise ValueError("No depth is known and the camera stands still, which leaves no length.")
  return float(travel.max())


def cap_tracks(
  tracks: Tracks | None,
  source: Int[np.ndarray, "f"],
  count: int,
  rng: np.random.Generator,
) -> Tracks:
  """Exactly `count` tracks over the source frames: those seen there, a random few of them.

  What isn't there is invalid. Positions are still those of the record.
  """
  shape = (count, len(source))
  points = np.zeros((*shape, 3), np.float32)
  visible, valid = np.zeros(shape, bool), np.zeros(shape, bool)
  if tracks is not None:
    known = np.asarray(tracks.valid)[:, source]
    seen = np.asarray(tracks.visible)[:, source] & known
    # Two frames at least, or there is no displacement.
    useful = np.flatnonzero(seen.any(axis=1) & (known.sum(axis=1) > min(1, len(source) - 1)))
    chosen = np.sort(rng.permutation(useful)[:count])
    here = len(chosen)
    valid[:here], visible[:here] = known[chosen], seen[chosen]
    of_record = np.asarray(tracks.points)[chosen][:, source]
    points[:here] = np.where(known[chosen][..., None], of_record, 0)
  found: Any = {"points": points, "visible": visible, "valid": valid}
  return Tracks(**found)
