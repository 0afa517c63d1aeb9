"""What a dataset yields: scenes, filmed by one or several cameras, read frame by frame.

Whatever a dataset's own conventions are, here cameras are those of `types.Cameras`: OpenCV axes,
`world_from_camera`, metres (where the scene is metric), pixel centres at +0.5. Depth is z-depth, 0
where it isn't known.
"""

import abc
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from d4s_jax.types import Cameras, Tracks

# Depth beyond this many metres is sky, or a buffer's end: none of the datasets tells it apart.
FAR = 1000.0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class View:
  """The frames of one camera of a scene. Files are read when a frame is asked for.

  The readers take an index into the frames and raise ValueError or OSError, which names the file,
  if it can't be read.

  Attributes:
    name: of the camera, such as "left".
    numbers: what the dataset calls each frame; strictly rising, gaps are frames that lack
      something.
    times: of each frame, strictly rising: seconds if the scene is `timed`, else counts.
    cameras: of each frame, in float64; all views of a scene share its world.
    pixels: the picture of a frame, RGB.
    depth: z-depth, 0 where unknown; None if the dataset has none.
    instances: instance of each pixel, 0 the background; None if the dataset has none.
    tracks: of the scene's points over some frames, given by rising indices, in the scene's world;
      None if the dataset has none.
  """

  name: str
  numbers: Int[np.ndarray, "f"]
  times: Float[np.ndarray, "f"]
  cameras: Cameras
  pixels: Callable[[int], UInt8[np.ndarray, "h w 3"]]
  depth: Callable[[int], Float[np.ndarray, "h w"]] | None = None
  instances: Callable[[int], Int[np.ndarray, "h w"]] | None = None
  tracks: Callable[[Int[np.ndarray, "g"]], Tracks] | None = None

  def __len__(self) -> int:
    return len(self.numbers)

  def image(self, index: int) -> Float[np.ndarray, "h w 3"]:
    """The picture of a frame, RGB in [0, 1]."""
    return self.pixels(index).astype(np.float32) / 255


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
  """One scene of a dataset.

  Attributes:
    name: unique in its dataset.
    views: of its cameras, at least one.
    metric: whether lengths are metres; else they have a factor of their own in each scene.
    dynamic: whether something may move.
    timed: whether `View.times` are seconds.
    problems: what is broken or missing, one sentence each, with file, cause and remedy; frames that
      can't be used are left out.
  """

  name: str
  views: tuple[View, ...]
  metric: bool
  dynamic: bool
  timed: bool
  problems: tuple[str, ...] = ()


def check_folder(root: pathlib.Path, expected: str) -> None:
  """Refuses what is no folder; archives are not unpacked here, so nothing in them can do harm.

  Raises:
    OSError: there is none, or it is a file.
  """
  if root.is_file():
    raise NotADirectoryError(
      f"{root} is a file; expected a folder, {expected}. Archives are not read: unpack it yourself,"
      " into a folder of its own (tar -xf, or unzip, which keep paths that climb out inside)."
    )
  if not root.is_dir():
    raise NotADirectoryError(f"No folder at {root}; expected {expected}.")


class Dataset(abc.ABC):
  """A dataset on disk. Cheap to copy to other processes; a scene is read when it is opened.

  Attributes:
    root: its folder.
    names: of its scenes, sorted.
    problems: what is broken or missing beside the scenes, one sentence each.
  """

  def __init__(self, root: str | os.PathLike):
    """Looks for scenes.

    Raises:
      OSError: there is no such folder.
      ValueError: it holds no scenes in the layout that is expected, or none whose name is text.
    """
    self.root = pathlib.Path(root)
    check_folder(self.root, "that of a dataset")
    self.problems: list[str] = []
    self.names = []
    for name in sorted(set(self._find())):
      try:
        name.encode()
        self.names.append(name)
      except UnicodeEncodeError:
        # Manifests and reports are text.
        self.problems.append(
          f"{name!r:.200}: a name that is no text; the scene is left out. Rename its folder."
        )
    if not self.names:
      raise ValueError(f"{self.root} holds no scenes. {self.problems[0]}")

  @abc.abstractmethod
  def _find(self) -> Iterable[str]:
    """Names of the scenes; fills `problems`."""

  @abc.abstractmethod
  def open(self, name: str) -> Scene:
    """One scene, whose pictures are still to be read.

    Raises:
      OSError: a file without which there is no scene is missing.
      ValueError: such a file is damaged, or no frame is usable.
    """

  def group(self, name: str) -> str:
    """What is held out with a scene: scenes of one group show the same place."""
    return name

  def official(self, name: str) -> str | None:
    """The split that the dataset's own layout puts a scene in, "train" or "heldout", if it does."""
    del name
    return None

  def splits(self) -> dict[str, str]:
    """The dataset's own split of each scene, "" where it has none.

    "" of all where it holds none of them out: only a part for training was fetched.
    """
    own = {name: self.official(name) or "" for name in self.names}
    return own if "heldout" in own.values() else dict.fromkeys(own, "")


def same_size(
  values: np.ndarray, cameras: Cameras, path: str | os.PathLike, what: str
) -> np.ndarray:
  """The values, if there is one for each pixel of the cameras.

  Raises:
    ValueError: their size is another.
  """
  height, width = values.shape[:2]
  if (height, width) != (cameras.height, cameras.width):
    raise ValueError(
      f"{path}: {what} of {width} x {height} pixels for cameras of {cameras.width} x"
      f" {cameras.height}; expected one size. Fetch it again, or resize all alike."
    )
  return values


def known(depth: np.ndarray, far: float = FAR) -> Float[np.ndarray, "h w"]:
  """Depth as float32 with 0 where it is not finite, not positive, or `far` and beyond."""
  depth = np.asarray(depth, np.float32)
  with np.errstate(invalid="ignore"):
    return np.where(np.isfinite(depth) & (depth > 0) & (depth < far), depth, np.float32(0))


def invert(camera_from_world: np.ndarray) -> Float[np.ndarray, "... 4 4"]:
  """The pose of a matrix that goes the other way; not finite if the matrix can't be inverted."""
  try:
    return np.linalg.inv(camera_from_world)
  except np.linalg.LinAlgError:
    return np.full_like(camera_from_world, np.nan)


def make_tracks(points: np.ndarray, visible: np.ndarray, valid: np.ndarray) -> Tracks:
  """Tracks [n f] in the world's metres; positions that aren't valid become 0."""
  positions: Any = np.where(valid[..., None], points, 0).astype(np.float32)
  flags: Any = (visible & valid, valid)
  return Tracks(points=positions, visible=flags[0], valid=flags[1])


def middle(intrinsics: np.ndarray, height: int, width: int) -> Float[np.ndarray, "3 3"]:
  """Intrinsics with pixel centres at +0.5, from those of authors who don't say where theirs are.

  A principal point at (width - 1) / 2 and (height - 1) / 2 is in the middle of a picture whose
  pixel centres are whole numbers: half a pixel is added. Any other is left as it is.
  """
  half = np.array([(width - 1) / 2, (height - 1) / 2])
  intrinsics = np.array(intrinsics, np.float64)
  if np.abs(intrinsics[:2, 2] - half).max() < 0.25:
    intrinsics[:2, 2] += 0.5
  return intrinsics
