"""Which part of some footage becomes a clip: frames, window, targets, tracks, unit of length.

Everything random comes from one generator, so that a clip is a pure function of footage and seed.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from d4s_jax.data.datasets.registry import DATASETS
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.geometry import poses
from d4s_jax.types import Cameras, Tracks

# Of the largest window of the clip's aspect, a random one has at least this share of the side.
_SMALLEST_WINDOW = 0.8
# Share of target views from other cameras, where there are some.
_ELSEWHERE = 0.5


# What a camera must travel to count as moving: of how far it gets in all of the footage, of the
# numbers that say where it is (which are rounded), and metres, where lengths are metres.
_TRAVEL, _ROUNDED, _METRES = 1e-3, 1e-6, 0.01
# Where `trembling` is more, the camera goes nowhere, whatever its lengths mean.
TREMBLING = 0.5

# Most frames from one source frame to the next, of footage that is of no dataset.
_STRIDE = 4


class NoLength(ValueError):
  """Footage is sound, but has nothing that a unit of length could be taken from."""


class Frames(Protocol):
  """The frames of one or several cameras, in one list, each camera's in a row with rising times.

  Attributes:
    name: of the clip or scene; the dataset's comes first.
    dynamic: whether something moves.
    view: number of each frame's camera.
    times: of each frame, seconds or counts.
  """

  name: str
  dynamic: bool
  view: Int[np.ndarray, "k"]
  times: Float[np.ndarray, "k"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is random about a clip; the field names are configuration keys.

  Attributes:
    stride: most frames from one source frame to the next; each clip has its own stride. 0 for as
      many as clips of its dataset reach over (`data.datasets.registry`), and 4 of other footage.
    reverse: share of clips that are played backwards; their captions say so.
    crop: whether the window is placed at random and may be smaller; else the largest, centred.
  """

  stride: int = 0
  reverse: float = 0.5
  crop: bool = True

  def __post_init__(self):
    if self.stride < 0 or not 0 <= self.reverse <= 1:
      raise ValueError(f"{self}; expected a stride of 0 or more, and reverse from 0 to 1.")


class Chosen(NamedTuple):
  """The frames of a clip.

  Attributes:
    source: indices of the source frames; they fall if the clip is played backwards.
    target: of the target frames, in the order of their times.
    times: of the source frames, from 0 to 1, rising.
    target_times: of the target frames, in [0, 1].
    backwards: whether the clip is played backwards.
  """

  source: Int[np.ndarray, "f"]
  target: Int[np.ndarray, "v"]
  times: Float[np.ndarray, "f"]
  target_times: Float[np.ndarray, "v"]
  backwards: bool


def choose_frames(
  footage: Frames, frames: int, views: int, rng: np.random.Generator, how: Augmentation
) -> Chosen:
  """Source frames of one camera at a random stride, and target frames within their span of time.

  Targets are frames that are no source where there are enough of them.

  Raises:
    ValueError: no view has that many frames.
  """
  lengths = np.bincount(footage.view)
  able = np.flatnonzero(lengths >= frames)
  if not len(able):
    raise ValueError(f"{footage.name} has views of {lengths.max()} frames; expected {frames}.")
  view = int(rng.choice(able))
  mine = np.flatnonzero(footage.view == view)
  stride = 1
  if frames > 1:
    most = min(_most_stride(footage.name, frames, how), (len(mine) - 1) // (frames - 1))
    stride = int(rng.integers(1, most + 1))
  start = int(rng.integers(len(mine) - stride * (frames - 1)))
  source = mine[start : start + stride * (frames - 1) + 1 : stride]
  first, last = footage.times[source[0]], footage.times[source[-1]]
  span = last - first if last > first else 1.0
  within = (footage.times >= first) & (footage.times <= last)
  targets = _targets(footage, source, within, view, views, rng)
  times, target_times = ((footage.times[index] - first) / span for index in (source, targets))
  backwards = bool(rng.random() < how.reverse)
  if backwards:
    source, times, target_times = source[::-1], 1 - times[::-1], 1 - target_times
  order = np.argsort(target_times, kind="stable")
  return Chosen(
    source,
    targets[order],
    times.astype(np.float32),
    target_times[order].astype(np.float32),
    backwards,
  )


def _most_stride(name: str, frames: int, how: Augmentation) -> int:
  if how.stride:
    return how.stride
  dataset = DATASETS.get(name.partition("/")[0])
  return _STRIDE if dataset is None else max(1, dataset.span // (frames - 1))


def _targets(
  footage: Frames,
  source: Int[np.ndarray, "f"],
  within: Bool[np.ndarray, "k"],
  view: int,
  count: int,
  rng: np.random.Generator,
) -> Int[np.ndarray, "v"]:
  chosen: list[int] = []
  others = np.flatnonzero(within & (footage.view != view))
  if len(others):
    chosen += list(rng.permutation(others)[: round(_ELSEWHERE * count)])
  between = np.setdiff1d(np.flatnonzero(within & (footage.view == view)), source)
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
  tracks: Tracks | None,
  world_from_camera: Float[np.ndarray, "f 4 4"],
  everywhere: Float[np.ndarray, "k 4 4"],
  *,
  metric: bool,
  distance: float,
) -> float:
  """How long a unit must be for known depth to have the median `distance` units.

  Where no depth is known, that of the tracks counts. Where there are none either, the farthest
  camera is put one unit from the first: what it looks at is usually some units away.

  Args:
    depth: of the frames, 0 where unknown.
    tracks: over the frames, in the world of the poses.
    world_from_camera: of the frames.
    everywhere: poses of all frames of the footage, which tell what is little of a travel.
    metric: whether lengths are metres.
    distance: units.

  Raises:
    NoLength: neither depth nor tracks are known, and the camera does no more than tremble.
  """
  known = depth[depth > 0]
  if not len(known) and tracks is not None:
    known = _depth_of(tracks, world_from_camera)
  if len(known):
    return float(np.median(known)) / distance
  trembles = trembling(world_from_camera)
  if trembles > TREMBLING:
    raise NoLength(
      "No depth and no tracks are known, and the camera only trembles: its steps are"
      f" {trembles:.2f} of those between positions without any order, more than {TREMBLING}; that"
      " leaves no length."
    )
  travel = float(_away(world_from_camera).max())
  least = max(
    _TRAVEL * float(_away(everywhere).max()),
    _ROUNDED * float(np.abs(everywhere[:, :3, 3]).max()),
    _METRES if metric else 0.0,
  )
  if travel <= least:
    raise NoLength(
      f"No depth and no tracks are known, and the camera travels {travel:.2g}, which counts as"
      f" nothing up to {least:.2g}; that leaves no length."
    )
  return travel


def trembling(world_from_camera: Float[np.ndarray, "f 4 4"]) -> float:
  """How far a camera's positions are from a path: near 0 on a long smooth one, 1 for pure noise.

  Half of von Neumann's ratio, the mean square of steps over the variance of positions; 1 too for a
  camera that stands. It needs no unit of length. Sway that is slow beside the time between frames
  looks like a path.
  """
  centers = world_from_camera[:, :3, 3].astype(np.float64)
  spread = np.square(centers - centers.mean(0)).sum()
  # Rounding is all that is left of large numbers that are alike.
  if spread <= len(centers) * (_ROUNDED * np.abs(centers).max(initial=0)) ** 2:
    return 1.0
  return float(np.square(np.diff(centers, axis=0)).sum() / (2 * spread))


def _away(world_from_camera: Float[np.ndarray, "k 4 4"]) -> Float[np.ndarray, "k"]:
  """How far cameras are from the first one."""
  centers = world_from_camera[:, :3, 3].astype(np.float64)
  return np.linalg.norm(centers - centers[0], axis=-1)


def _depth_of(
  tracks: Tracks, world_from_camera: Float[np.ndarray, "f 4 4"]
) -> Float[np.ndarray, "m"]:
  """Z-depth of all known points that are in front of their frames' cameras."""
  away = np.asarray(tracks.points, np.float64) - world_from_camera[:, :3, 3]
  depth = np.einsum("nfi,fi->nf", away, world_from_camera[:, :3, 2])
  return depth[np.asarray(tracks.valid) & (depth > 0)]


def cap_tracks(tracks: Tracks | None, count: int, frames: int, rng: np.random.Generator) -> Tracks:
  """Exactly `count` tracks of those over the source frames: seen in some, a random few of them.

  What isn't there is invalid. Positions are still those of the footage.
  """
  shape = (count, frames)
  points = np.zeros((*shape, 3), np.float32)
  visible, valid = np.zeros(shape, bool), np.zeros(shape, bool)
  if tracks is not None:
    known = np.asarray(tracks.valid)
    seen = np.asarray(tracks.visible) & known
    # Two frames at least, or there is no displacement.
    useful = np.flatnonzero(seen.any(axis=1) & (known.sum(axis=1) > min(1, frames - 1)))
    chosen = np.sort(rng.permutation(useful)[:count])
    here = len(chosen)
    valid[:here], visible[:here] = known[chosen], seen[chosen]
    points[:here] = np.where(known[chosen][..., None], np.asarray(tracks.points)[chosen], 0)
  found: Any = {"points": points, "visible": visible, "valid": valid}
  return Tracks(**found)
