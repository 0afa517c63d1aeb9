"""Scenes put together of what datasets state: what can be used, and why the rest can't."""

import bisect
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from d4s_jax.data.datasets.scene import Scene, View, same_size
from d4s_jax.formats import images
from d4s_jax.formats.cameras import nearest_rigid, rigid
from d4s_jax.types import Cameras

# Focal lengths over the image's side: fields of view of about 170 and 1 degrees.
_FOCAL = (0.04, 60.0)
# fx over fy. Further from 1, frames were resized without their intrinsics.
_ASPECT = 1.05
# Broken frames of a scene that are named one by one.
_NAMED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Shot:
  """One frame as a dataset states it, to be checked by `assemble`.

  Attributes:
    number: what the dataset calls it.
    time: seconds, or the number.
    world_from_camera: OpenCV axes.
    intrinsics: pixels, centres at +0.5.
    image: its file; None if frames come out of a video.
    where: file and place that state the camera, for messages.
  """

  number: int
  time: float
  world_from_camera: Float[np.ndarray, "4 4"]
  intrinsics: Float[np.ndarray, "3 3"]
  image: pathlib.Path | None
  where: str


class Problems(list[str]):
  """Sentences; of many about the same kind of thing the first are kept, and the rest counted."""

  def __init__(self):
    super().__init__()
    self._count: dict[str, int] = {}

  def add(self, kind: str, text: str) -> None:
    """Notes a problem."""
    self._count[kind] = self._count.get(kind, 0) + 1
    if self._count[kind] <= _NAMED:
      self.append(text)

  def all(self) -> tuple[str, ...]:
    """The sentences."""
    more = {kind: count - _NAMED for kind, count in self._count.items() if count > _NAMED}
    return (*self, *(f"... and {count} more: {kind}." for kind, count in more.items()))


def assemble(
  name: str,
  shots: Iterable[Shot],
  height: int,
  width: int,
  problems: Problems,
  pixels: Callable[[int], UInt8[np.ndarray, "h w 3"]] | None = None,
) -> View:
  """The frames of a camera that can be used, in order; why others can't is noted.

  Args:
    name: of the camera.
    shots: its frames, in any order.
    height: of its pictures.
    width: of its pictures.
    problems: where is noted what is left out.
    pixels: reads the picture of a frame, given by its number; None: each has a file.

  Raises:
    ValueError: no frame can be used.
  """
  usable: list[Shot] = []
  matrices = []
  ordered = sorted(shots, key=lambda shot: shot.number)
  stated = np.array([shot.world_from_camera for shot in ordered], np.float64).reshape(-1, 4, 4)
  for shot, pose, sound in zip(ordered, *nearest_rigid(stated)):
    try:
      _check(shot, usable[-1] if usable else None, height, width)
      matrices.append(pose if sound else rigid(pose, shot.where))
      usable.append(shot)
    except FileNotFoundError as error:
      problems.add("frames without a picture", str(error))
    except ValueError as error:
      problems.add("frames with an unusable camera", str(error))
  rising = _rising([shot.time for shot in usable])
  for index in sorted(set(range(len(usable))) - set(rising)):
    shot, near = usable[index], usable[rising[max(bisect.bisect(rising, index) - 1, 0)]]
    problems.add(
      "frames with an unusable camera",
      f"{shot.where}: time {shot.time:g} where frame {near.number} has {near.time:g}; expected"
      " rising times. The frame is left out.",
    )
  usable, matrices = [usable[index] for index in rising], [matrices[index] for index in rising]
  if not usable:
    reason = f" The first reason: {problems[0]}" if problems else ""
    raise ValueError(f"No frame of the camera {name!r} has a picture and a pose.{reason}")
  intrinsics: Any = np.stack([shot.intrinsics for shot in usable])
  poses: Any = np.stack(matrices)
  cameras = Cameras(world_from_camera=poses, intrinsics=intrinsics, height=height, width=width)
  numbers = np.array([shot.number for shot in usable], np.int64)
  paths = [shot.image for shot in usable]

  def read(index: int) -> UInt8[np.ndarray, "h w 3"]:
    path = paths[index]
    if pixels is not None:
      return pixels(int(numbers[index]))
    assert path is not None
    return same_size(images.read_pixels(path), cameras, path, "a picture")

  return View(
    name=name,
    numbers=numbers,
    times=np.array([shot.time for shot in usable], np.float64),
    cameras=cameras,
    pixels=read,
  )


def gather(
  name: str,
  cameras: Iterable[Callable[[], View]],
  problems: Problems,
  *,
  metric: bool = True,
  dynamic: bool = True,
  timed: bool = True,
  first: bool = False,
) -> Scene:
  """The scene of the cameras that can be used; why others can't is noted.

  Args:
    name: of the scene.
    cameras: each opens one.
    problems: what was noted so far, and is noted here.
    metric: see `Scene`.
    dynamic: see `Scene`.
    timed: see `Scene`.
    first: whether nothing is left without the first of them.

  Raises:
    OSError: with `first`, a file of that camera is missing.
    ValueError: no camera can be used.
  """
  views = []
  for number, camera in enumerate(cameras):
    try:
      views.append(camera())
    except (OSError, ValueError) as error:
      if first and not number:
        raise
      problems.add("cameras left out", str(error))
  if not views:
    raise ValueError(f"{name} has no usable camera. {problems[0] if problems else ''}".strip())
  return Scene(
    name=name,
    views=tuple(views),
    metric=metric,
    dynamic=dynamic,
    timed=timed,
    problems=problems.all(),
  )


def _rising(times: Sequence[float]) -> list[int]:
  """Indices of most of the times, those that rise strictly: others are the fewest to leave out."""
  # Of the rising rows of each length, the last index of the one that ends earliest.
  ends: list[int] = []
  before: list[int] = []
  for index, time in enumerate(times):
    place = bisect.bisect_left(ends, time, key=times.__getitem__)
    before.append(ends[place - 1] if place else -1)
    if place == len(ends):
      ends.append(index)
    elif time < times[ends[place]]:  # of equal ones the first stays
      ends[place] = index
  found, index = [], ends[-1] if ends else -1
  while index >= 0:
    found.append(index)
    index = before[index]
  return found[::-1]


def _check(shot: Shot, before: Shot | None, height: int, width: int) -> None:
  """Refuses a frame that can't be used; its pose need not be rigid."""
  if shot.image is not None and not shot.image.is_file():
    raise FileNotFoundError(f"No picture at {shot.image}; the frame is left out. Fetch it again.")
  if not np.isfinite(shot.time):
    raise ValueError(f"{shot.where}: time {shot.time:g}; the frame is left out.")
  if before is not None and shot.number == before.number:
    raise ValueError(f"{shot.where}: frame {shot.number} occurs twice; the second is left out.")
  try:
    check_lens(shot.intrinsics, height, width, shot.where)
  except ValueError as error:
    raise ValueError(f"{error} The frame is left out.") from None
  if not np.isfinite(shot.world_from_camera).all():
    raise ValueError(f"{shot.where}: a pose that is not finite; the frame is left out.")


def check_lens(intrinsics: Float[np.ndarray, "3 3"], height: int, width: int, where: str) -> None:
  """Refuses intrinsics, in pixels, that no camera has.

  Raises:
    ValueError: its focal lengths, or its centre, can't be; or its pixels aren't square.
  """
  (fx, skew, cx), (low, fy, cy), last = np.asarray(intrinsics, np.float64)
  focal = (fx / width, fy / height)
  possible = (
    np.isfinite(intrinsics).all()
    and all(_FOCAL[0] < x < _FOCAL[1] for x in focal)
    and 1 / _ASPECT < fx / fy < _ASPECT
    and -0.5 < cx / width < 1.5
    and -0.5 < cy / height < 1.5
    and max(abs(skew), abs(low)) < 1e-3 * fx
    and max(abs(last[0]), abs(last[1]), abs(last[2] - 1)) < 1e-6
  )
  if not possible:
    raise ValueError(
      f"{where}: focal lengths {fx:g}, {fy:g} and centre {cx:g}, {cy:g} for {width} x {height}"
      " pixels, which no camera of square pixels has. Were frames resized without keeping their"
      " aspect?"
    )
