"""One sample that is scored: a video, a scene, or a clip with its truth."""

import abc
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from d4s_jax.evaluation import cost, fit_curve
from d4s_jax.formats import arrays, checked, scene, trajectories, video
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.pipeline.drawing import draw
from d4s_jax.types import Cameras, Clip, DynamicGaussians

# Files in a scene's folder that tell how it was made.
_BESIDE_SCENES = {"cost": cost.FILE, "fit": fit_curve.FILE}
_LONGEST_PROMPT = 10_000


class Sample(abc.ABC):
  """One sample; everything is read when asked for.

  Attributes:
    name: of the sample in its set.
    path: file or folder.
  """

  def __init__(self, name: str, path: pathlib.Path):
    self.name, self.path = name, path

  @property
  @abc.abstractmethod
  def has(self) -> frozenset[str]:
    """What is there: of "video text cameras scene cost fit clip"."""

  @functools.cached_property
  @abc.abstractmethod
  def digest(self) -> str:
    """SHA-256 of all that the sample consists of."""

  @abc.abstractmethod
  def frames(self, side: int | None = None, shown: bool = False) -> Float[np.ndarray, "f h w 3"]:
    """The video in [0, 1]; scenes are drawn with at least `side` pixels on the lower side.

    Unchecked: values may be NaN, and frames may be none.

    Args:
      side: the least; None for the scene's own size.
      shown: whether larger pictures are for people and get the blur of whoever shows a scene larger
        (`drawing.footprint`), or are as sharp as their own pixels, so that matchers find corners.
    """

  @functools.cached_property
  def video(self) -> Float[np.ndarray, "f h w 3"]:
    """The video at its own size; see `pictures`."""
    return self.pictures()

  def pictures(self, side: int | None = None) -> Float[np.ndarray, "f h w 3"]:
    """`frames`, checked: what every metric of pictures starts from.

    Raises:
      ValueError: they can't be read, there are none, or they hold NaN.
    """
    frames = np.asarray(self.frames(side))
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
      raise ValueError(f"{self.path}: frames of shape {frames.shape}; expected [f, h, w, 3].")
    if not np.isfinite(frames).all():
      raise ValueError(f"{self.path} holds NaN or infinite values; expected colours in [0, 1].")
    return np.clip(frames, 0, 1).astype(np.float32, copy=False)

  def release(self) -> None:
    """Lets go of the arrays; they are read again when asked for."""
    for name in ("video", "read", "clip"):
      vars(self).pop(name, None)

  @property
  def fps(self) -> float | None:
    """Frames a second, where a file says so."""
    return None

  @property
  def text(self) -> str:
    """The prompt."""
    raise ValueError(f"{self.name} has no prompt.")

  def cameras(self, height: int, width: int) -> Cameras:
    """The cameras that were asked for, one a frame, for pictures of this size."""
    raise ValueError(f"{self.name} has no cameras.")


def _digest(paths: Sequence[pathlib.Path]) -> str:
  """SHA-256 of files, one after the other."""
  found = hashlib.sha256()
  for path in paths:
    with path.open("rb") as file:
      hashlib.file_digest(file, lambda: found)
  return found.hexdigest()


class Video(Sample):
  """A video file."""

  @property
  def has(self) -> frozenset[str]:
    """See the base class."""
    found = {"video"}
    found |= {"text"} if self.path.with_suffix(".txt").is_file() else set()
    found |= {"cameras"} if self.path.with_suffix(".json").is_file() else set()
    return frozenset(found)

  @functools.cached_property
  def digest(self) -> str:
    """See the base class."""
    beside = [self.path.with_suffix(suffix) for suffix in (".txt", ".json")]
    return _digest([self.path, *(path for path in beside if path.is_file())])

  def frames(self, side: int | None = None, shown: bool = False) -> Float[np.ndarray, "f h w 3"]:
    """See the base class; a video keeps its size."""
    del side, shown
    if self.path.suffix.lower() != ".npy":
      return video.read_video(self.path)
    array = arrays.map_array(self.path)
    video.check_length(self.path, len(array) if array.ndim else 0, array.size // 3)
    if array.dtype == np.uint8:
      return array / np.float32(255)
    # What is not finite is looked for later, in whatever has pixels.
    if array.dtype.kind != "f" or (array < 0).any() or (array > 1).any():
      known = array.dtype.kind in "fiu" and array.size
      span = f" from {array.min():.5g} to {array.max():.5g}" if known else ""
      raise ValueError(
        f"{self.path} holds {array.dtype}{span}; expected uint8, or floats from 0 to 1."
      )
    return array.astype(np.float32)

  @property
  def fps(self) -> float | None:
    """See the base class."""
    return None if self.path.suffix.lower() == ".npy" else video.frame_rate(self.path)

  @property
  def text(self) -> str:
    """See the base class."""
    path = self.path.with_suffix(".txt")
    return checked.read_bytes(path, _LONGEST_PROMPT, "prompt").decode("utf-8").strip()

  def cameras(self, height: int, width: int) -> Cameras:
    """See the base class."""
    path = trajectories.read_trajectory(self.path.with_suffix(".json"))
    if path.intrinsics is None:
      raise ValueError(f"{self.path.with_suffix('.json')} has no intrinsics; expected them.")
    pixels = path.intrinsics * np.array([[width], [height], [1]])
    poses: Any = np.asarray(path.world_from_camera, np.float32)
    lens: Any = pixels.astype(np.float32)
    return Cameras(world_from_camera=poses, intrinsics=lens, height=height, width=width)


class Scene(Sample):
  """A scene folder; its video is the scene drawn along its own path."""

  @property
  def has(self) -> frozenset[str]:
    """See the base class."""
    found = {what for what, name in _BESIDE_SCENES.items() if (self.path / name).is_file()}
    return frozenset({"video", "text", "cameras", "scene"} | found)

  @functools.cached_property
  def read(self) -> tuple[DynamicGaussians, scene.SceneMetadata]:
    """The scene."""
    return scene.read_scene(self.path)

  @functools.cached_property
  def digest(self) -> str:
    """See the base class."""
    beside = [_BESIDE_SCENES[what] for what in sorted(self.has & set(_BESIDE_SCENES))]
    return _digest([self.path / name for name in (scene.ARRAYS, scene.DESCRIPTION, *beside)])

  def frames(self, side: int | None = None, shown: bool = False) -> Float[np.ndarray, "f h w 3"]:
    """See the base class."""
    dynamic, metadata = self.read
    cameras = metadata.cameras
    factor = max(1, -(-(side or 1) // min(cameras.height, cameras.width)))
    cameras = self.cameras(cameras.height * factor, cameras.width * factor)
    made = metadata.cameras if shown else None
    drawn = draw(dynamic, cameras, np.asarray(metadata.times), "", made)
    return np.clip(np.asarray(drawn.image), 0, 1)

  @property
  def text(self) -> str:
    """See the base class."""
    return self.read[1].prompt

  def cameras(self, height: int, width: int) -> Cameras:
    """See the base class."""
    return pinhole.resize(self.read[1].cameras, height, width)


class SourceClip(Sample):
  """A clip of a data source: a true video with depth, tracks and other views."""

  @property
  def has(self) -> frozenset[str]:
    """See the base class."""
    return frozenset(("video", "text", "cameras", "clip"))

  def __init__(self, name: str, path: pathlib.Path, source: Any, number: int):
    super().__init__(name, path)
    self._source, self._number = source, number

  @functools.cached_property
  def clip(self) -> Clip:
    """The clip."""
    return self._source.read(self._number)

  @functools.cached_property
  def digest(self) -> str:
    """See the base class."""
    found = hashlib.sha256(self.text.encode())
    arrays = []
    for views in (self.clip.source, self.clip.target):
      cameras = views.cameras
      arrays += [views.images, views.depth, views.times]
      arrays += [cameras.world_from_camera, cameras.intrinsics]
    tracks = self.clip.tracks
    for array in (*arrays, tracks.points, tracks.visible, tracks.valid):
      found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()

  def frames(self, side: int | None = None, shown: bool = False) -> Float[np.ndarray, "f h w 3"]:
    """See the base class; a clip keeps its size."""
    del side, shown
    return np.asarray(self.clip.source.images)

  @property
  def text(self) -> str:
    """See the base class."""
    return str(self.clip.text)

  def cameras(self, height: int, width: int) -> Cameras:
    """See the base class."""
    return pinhole.resize(self.clip.source.cameras, height, width)
