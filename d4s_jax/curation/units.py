"""What curation reads: scenes of a dataset, or plain video files, and the clips they are cut into.

A unit is one scene or one file. Everything here is found again from names and numbers alone, so
that any worker can do any part at any time.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Int, UInt8

from d4s_jax.data.datasets import files, registry
from d4s_jax.data.datasets.scene import check_folder
from d4s_jax.formats.footage import Footage, video_stream
from d4s_jax.formats.images import MAX_PIXELS
from d4s_jax.types import Cameras, Tracks

VIDEOS = "videos"
_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
# Of the pictures that cuts are looked for in.
_SMALL = (32, 18)
# Mean difference of neighbouring frames, of 255, that is a cut; and a smaller one that is a cut
# where it is so many times what is usual around it.
_CUT, _MAYBE, _TIMES, _AROUND = 30.0, 10.0, 6.0, 8
# Seconds, and a share of the length that a video claims: one that lacks more was cut off.
_LACKS = (1.0, 0.1)
# Frames between accounts of how far it is.
_TOLD = 100
# Datasets that are no video jump: as far as so many usual steps, or by so many degrees.
_JUMP, _TURN = 8.0, 45.0


@runtime_checkable
class View(Protocol):
  """Frames of one camera; see `data.datasets.scene.View`. A plain video has no cameras."""

  name: str
  times: Float[np.ndarray, "f"]
  cameras: Cameras | None
  pixels: Callable[[int], UInt8[np.ndarray, "h w 3"]]
  depth: Callable[[int], Float[np.ndarray, "h w"]] | None
  instances: Callable[[int], Int[np.ndarray, "h w"]] | None
  tracks: Callable[[Int[np.ndarray, "g"]], Tracks] | None

  def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Unit:
  """A scene of a dataset or a video file: the dataset's name, its folder, the scene's name."""

  dataset: str
  root: str
  scene: str

  @property
  def name(self) -> str:
    """Unique over datasets."""
    return f"{self.dataset}/{self.scene}"


@dataclasses.dataclass(frozen=True)
class Span:
  """A clip: a part of a unit's first view.

  Attributes:
    unit: where it is.
    first: number of its first frame.
    last: of its last frame.
    stamps: presentation times of its frames in a video file's own unit; empty for a dataset.
  """

  unit: Unit
  first: int
  last: int
  stamps: tuple[int, ...] = ()

  @property
  def name(self) -> str:
    """Unique over datasets."""
    return f"{self.unit.name}/{self.first}-{self.last}"


def find(dataset: str, root: pathlib.Path) -> tuple[list[Unit], list[str]]:
  """All units, in order of their names, and what is broken beside them.

  Raises:
    ValueError: the dataset is unknown, or there is nothing.
    OSError: there is no such folder.
  """
  if dataset != VIDEOS:
    if dataset not in registry.DATASETS:
      known = ", ".join(sorted(registry.DATASETS))
      raise ValueError(f"Unknown dataset {dataset!r}; choose {VIDEOS}, or one of {known}.")
    opened = registry.open_dataset(dataset, root)
    return [Unit(dataset, str(root), name) for name in opened.names], list(opened.problems)
  check_folder(root, "one with videos")
  top = root.resolve()
  names, problems = [], []
  for path in _files(root, problems):
    if path.suffix.lower() not in _SUFFIXES:
      continue
    name = path.relative_to(root).as_posix()
    try:
      name.encode()
    except UnicodeEncodeError:
      # With escapes: the report is text.
      problems.append(f"{name!r:.200}: a name that is no text; it is left out. Rename the file.")
      continue
    if not path.is_file():
      problems.append(f"{path} is a link to nothing, or no file; it is left out. Fetch it again.")
      continue
    if not path.resolve().is_relative_to(top):
      problems.append(f"{path} is a link that leads out of {root}; it is left out. Copy the file.")
      continue
    names.append(name)
  if not names:
    none = f"{root} has no videos ({', '.join(_SUFFIXES)}); check the path."
    raise ValueError(" ".join([none, *problems[:1]]))
  return [Unit(VIDEOS, str(root), name) for name in names], problems


def _files(root: pathlib.Path, problems: list[str]) -> list[pathlib.Path]:
  """All files below a folder, in order; folders that aren't looked into are noted."""

  def failed(error: OSError) -> None:
    raise error

  found = []
  for folder, below, names in os.walk(root, onerror=failed):
    found += [pathlib.Path(folder, name) for name in names]
    for name in sorted(below):
      path = pathlib.Path(folder, name)
      problem = files.closed(path)
      if path.is_symlink():
        problem = f"{path} is a link to a folder; it is left out. Copy what it leads to."
      if problem is not None:
        below.remove(name)
        problems.append(problem)
  return sorted(found)


def spans(
  unit: Unit, longest: int, shortest: int, tell: Callable[[float], Any]
) -> tuple[list[Span], list[str]]:
  """The clips of a unit: shots, cut into pieces of at most `longest` frames.

  Args:
    unit: is split.
    longest: frames of a clip.
    shortest: frames of a clip; what is left of a shot may be less, and is left out.
    tell: is told now and then what share of a video is done.

  Returns:
    The clips, and sentences about frames that could not be used.

  Raises:
    ValueError, OSError: the unit can't be read.
  """
  if unit.dataset == VIDEOS:
    stamps, cuts, problems = _scan(pathlib.Path(unit.root) / unit.scene, tell)
    pieces = _pieces(cuts, longest, shortest)
    return [Span(unit, a, b, tuple(stamps[a : b + 1])) for a, b in pieces], problems
  scene = _scene(unit)
  view = scene.views[0]
  assert view.cameras is not None
  cuts = _jumps(np.asarray(view.cameras.world_from_camera))
  return [Span(unit, a, b) for a, b in _pieces(cuts, longest, shortest)], list(scene.problems)


def _pieces(cut: np.ndarray, longest: int, shortest: int) -> Iterator[tuple[int, int]]:
  """First and last frames; `cut` says of each frame whether a shot begins with it."""
  starts = np.flatnonzero(np.append(True, cut[1:]))
  ends = np.append(starts[1:], len(cut)) - 1
  for start, end in zip(starts, ends):
    # Pieces of a shot are of nearly the same length: a short rest would be thrown away.
    count = -(-(end - start + 1) // longest)
    bounds = np.linspace(start, end + 1, count + 1).astype(int)
    for first, last in zip(bounds[:-1], bounds[1:] - 1):
      if last - first + 1 >= shortest:
        yield int(first), int(last)


def _scan(
  path: pathlib.Path, tell: Callable[[float], Any]
) -> tuple[list[int], np.ndarray, list[str]]:
  """Presentation times of a video's frames, which of them begin a shot, and what is wrong."""
  stamps: list[int] = []
  change: list[float] = []
  problems: list[str] = []
  before, dropped, shrink = None, 0, VideoReformatter()
  try:
    with av.open(str(path)) as container:
      stream = video_stream(container, path)
      if stream.width * stream.height > MAX_PIXELS or min(stream.width, stream.height) < 1:
        raise ValueError(
          f"{path} has frames of {stream.width} x {stream.height} pixels; expected 1 to"
          f" {MAX_PIXELS} pixels. Fetch the file again, or make them smaller."
        )
      stream.thread_type = "SLICE"
      # Sound may last longer.
      claimed, base = (container.duration or 0) / av.time_base, stream.time_base
      if stream.duration is not None:
        claimed = float(stream.duration * base)
      try:
        for frame in container.decode(stream):
          if frame.pts is None or stamps and frame.pts <= stamps[-1]:
            dropped += 1
            continue
          small = shrink.reformat(frame, *_SMALL, format="rgb24", interpolation="AREA", threads=1)
          small = small.to_ndarray().astype(np.int16)
          change.append(255.0 if before is None else float(np.abs(small - before).mean()))
          stamps.append(frame.pts)
          before = small
          if len(stamps) % _TOLD == 0 and container.duration:
            tell(frame.time * av.time_base / container.duration)
      except FFmpegError as error:
        problems.append(
          f"{path} can't be read beyond frame {len(stamps)} ({error}); what is before is used."
          " Fetch the file again."
        )
  except FFmpegError as error:
    raise ValueError(
      f"{path} cannot be read as a video ({error}). Fetch the file again, or remove it."
    ) from error
  if not stamps:
    raise ValueError(f"{path} has no frames that can be read. Fetch the file again, or remove it.")
  lasts = float((stamps[-1] - stamps[0]) * base)
  if claimed - lasts > _LACKS[0] + _LACKS[1] * claimed and not problems:
    problems.append(
      f"{path} has pictures for {lasts:.1f} s and claims {claimed:.1f} s; what is there is used."
      " Was it fetched whole?"
    )
  if dropped:
    problems.append(
      f"{path}: {dropped} frames whose times don't rise are left out. Remux the file to keep them."
    )
  level = np.asarray(change)
  usual = np.array(
    [np.median(level[max(0, i - _AROUND) : i + _AROUND + 1]) for i in range(len(level))]
  )
  return stamps, (level > _CUT) | ((level > _MAYBE) & (level > _TIMES * usual)), problems


def _jumps(world_from_camera: Float[np.ndarray, "f 4 4"]) -> np.ndarray:
  """Where a camera jumps: sets of pictures come as if they were one video."""
  step = np.linalg.norm(np.diff(world_from_camera[:, :3, 3], axis=0), axis=1)
  rotation = world_from_camera[:, :3, :3]
  trace = np.einsum("fij,fij->f", rotation[1:], rotation[:-1])
  turn = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
  usual = np.median(step[step > 0]) if (step > 0).any() else 1.0
  return np.append(False, (step > _JUMP * usual) | (turn > _TURN))


@functools.lru_cache(maxsize=4)
def _dataset(name: str, root: str) -> Any:
  return registry.open_dataset(name, root)


@functools.lru_cache(maxsize=4)
def _splits(name: str, root: str) -> dict[str, str]:
  return _dataset(name, root).splits()


@functools.lru_cache(maxsize=2)
def _scene(unit: Unit) -> Any:
  return _dataset(unit.dataset, unit.root).open(unit.scene)


@dataclasses.dataclass(frozen=True)
class Opened:
  """A clip that is ready to be read: its views, and the frames of each within its time."""

  views: tuple[View, ...]
  frames: tuple[Int[np.ndarray, "g"], ...]
  metric: bool
  dynamic: bool | None
  group: str
  split: str


def open_span(span: Span) -> Opened:
  """Opens a clip; raises ValueError or OSError if it can't be."""
  if span.unit.dataset == VIDEOS:
    view = _Video(pathlib.Path(span.unit.root) / span.unit.scene, span.stamps)
    whole = (np.arange(len(view)),)
    return Opened((view,), whole, metric=False, dynamic=None, group=span.unit.name, split="")
  scene, dataset = _scene(span.unit), _dataset(span.unit.dataset, span.unit.root)
  main = scene.views[0]
  mine = np.arange(span.first, span.last + 1)
  first, last = main.times[span.first], main.times[span.last]
  size = (main.cameras.height, main.cameras.width)
  views, frames = [main], [mine]
  for view in scene.views[1:]:
    here = np.flatnonzero((view.times >= first) & (view.times <= last))
    # A record has pictures of one size.
    if len(here) and (view.cameras.height, view.cameras.width) == size:
      views.append(view)
      frames.append(here)
  group = f"{span.unit.dataset}/{dataset.group(span.unit.scene)}"
  split = _splits(span.unit.dataset, span.unit.root)[span.unit.scene]
  return Opened(tuple(views), tuple(frames), scene.metric, scene.dynamic, group, split)


class _Video:
  """Frames of a video file by their presentation times; nothing else is known."""

  def __init__(self, path: pathlib.Path, stamps: tuple[int, ...]):
    self.name = "video"
    self.cameras: Cameras | None = None
    self.depth: Callable[[int], Any] | None = None
    self.instances: Callable[[int], Any] | None = None
    self.tracks: Callable[[Any], Tracks] | None = None
    footage = Footage(path, stamps)
    self.pixels = footage.read
    self.times = np.array(stamps, np.float64) * footage.base

  def __len__(self) -> int:
    return len(self.times)
