"""What is scored: scenes and videos in folders, and what is known to be true beside them.

A sample NAME of a folder is a scene folder NAME/ or a video NAME.mp4 (or .mkv .webm .mov .avi .gif
.npy). Beside a video may lie NAME.txt, its prompt, and NAME.json, the cameras that were asked for
(`formats.cameras`); a scene knows both itself. A reference folder holds videos of the same names,
or a source.json: {"source": NAME, "options": {...}, "clips": {SAMPLE: NUMBER}}, which names clips
of `data.source` with their depth, tracks and other views.

Nothing is left out in silence: what is no sample is listed, and what can't be read is an error of
that sample.
"""

import abc
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from d4s_jax.data.source import open_source
from d4s_jax.evaluation import cost, fit_curve
from d4s_jax.formats import checked, scene, trajectories
from d4s_jax.formats.video import frame_rate, read_video
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.pipeline.drawing import draw
from d4s_jax.types import Cameras, Clip, DynamicGaussians

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".npy")
SOURCE = "source.json"
# Files that may lie beside samples.
_BESIDE = (".txt", ".json", ".md")
# Files in a scene's folder that tell how it was made.
_BESIDE_SCENES = {"cost": cost.FILE, "fit": fit_curve.FILE}
_LONGEST_JSON = 16 * 2**20
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
  def frames(self, side: int | None = None) -> Float[np.ndarray, "f h w 3"]:
    """The video in [0, 1]; scenes are drawn with at least `side` pixels on the lower side.

    Unchecked: values may be NaN, and frames may be none. Larger pictures of a scene are as sharp as
    their own pixels, without the blur that whoever shows a scene larger gives it
    (`drawing.footprint`): matchers find corners in them.
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
    return np.clip(frames, 0, 1).astype(np.float32)

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
    found = hashlib.sha256(self.path.read_bytes())
    for suffix in (".txt", ".json"):
      beside = self.path.with_suffix(suffix)
      found.update(beside.read_bytes() if beside.is_file() else b"")
    return found.hexdigest()

  def frames(self, side: int | None = None) -> Float[np.ndarray, "f h w 3"]:
    """See the base class; a video keeps its size."""
    del side
    if self.path.suffix.lower() != ".npy":
      return read_video(self.path)
    try:
      array = np.load(self.path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
      raise ValueError(f"{self.path} cannot be read as an array ({error}).") from error
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
    return None if self.path.suffix.lower() == ".npy" else frame_rate(self.path)

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
    found = hashlib.sha256()
    for name in (scene.ARRAYS, scene.DESCRIPTION):
      found.update((self.path / name).read_bytes())
    for what in sorted(self.has & set(_BESIDE_SCENES)):
      found.update((self.path / _BESIDE_SCENES[what]).read_bytes())
    return found.hexdigest()

  def frames(self, side: int | None = None) -> Float[np.ndarray, "f h w 3"]:
    """See the base class."""
    dynamic, metadata = self.read
    cameras = metadata.cameras
    factor = max(1, -(-(side or 1) // min(cameras.height, cameras.width)))
    cameras = self.cameras(cameras.height * factor, cameras.width * factor)
    drawn = draw(dynamic, cameras, np.asarray(metadata.times), "")
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
    found = hashlib.sha256()
    for views in (self.clip.source, self.clip.target):
      for array in (views.images, views.depth, views.times, views.cameras.world_from_camera):
        found.update(np.ascontiguousarray(array).tobytes())
    found.update(np.ascontiguousarray(self.clip.tracks.points).tobytes())
    return found.hexdigest()

  def frames(self, side: int | None = None) -> Float[np.ndarray, "f h w 3"]:
    """See the base class; a clip keeps its size."""
    del side
    return np.asarray(self.clip.source.images)

  @property
  def text(self) -> str:
    """See the base class."""
    return str(self.clip.text)

  def cameras(self, height: int, width: int) -> Cameras:
    """See the base class."""
    return pinhole.resize(self.clip.source.cameras, height, width)


@dataclasses.dataclass(frozen=True)
class SampleSet:
  """The samples of one folder.

  Attributes:
    name: of the set.
    samples: by name, in alphabetical order.
    ignored: names of what lies there and is no sample.
  """

  name: str
  samples: dict[str, Sample]
  ignored: tuple[str, ...] = ()


def open_set(folder: pathlib.Path, name: str = "") -> SampleSet:
  """The samples of a folder.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it has no samples, or two of one name.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"No folder {folder}; expected scenes or videos in it.")
  if (folder / SOURCE).is_file():
    return SampleSet(name or folder.name, _clips(folder / SOURCE))
  samples: dict[str, Sample] = {}
  ignored = []
  for entry in sorted(folder.iterdir()):
    kind = _kind(entry)
    if kind is None:
      if not entry.name.startswith(".") and entry.suffix not in _BESIDE:
        ignored.append(entry.name)
      continue
    key = entry.name if kind is Scene else entry.stem
    if key in samples:
      raise ValueError(f"{folder} has two samples named {key!r}; expected one of each name.")
    samples[key] = kind(key, entry)
  if not samples:
    raise ValueError(
      f"{folder} has no samples; expected scene folders or videos ({', '.join(VIDEOS)})."
    )
  return SampleSet(name or folder.resolve().name, samples, tuple(ignored))


def _kind(entry: pathlib.Path) -> type[Sample] | None:
  if entry.is_dir():
    return Scene if (entry / scene.DESCRIPTION).is_file() else None
  return Video if entry.suffix.lower() in VIDEOS and not entry.name.startswith(".") else None


def _clips(path: pathlib.Path) -> dict[str, Sample]:
  value = checked.parse(checked.read_bytes(path, _LONGEST_JSON, "source"), str(path))
  found = checked.fields(value, str(path), ("source", "options", "clips"))
  if not isinstance(found["options"], dict) or not isinstance(found["clips"], dict):
    raise ValueError(f"{path}: options and clips; expected objects.")
  try:
    source = open_source(checked.text(found["source"], f"{path}: source", 1000), **found["options"])
  except TypeError as error:
    raise ValueError(f"{path}: options that the source doesn't know ({error}).") from error
  if not found["clips"]:
    raise ValueError(f"{path} has no clips; expected at least one.")
  return {
    name: SourceClip(
      name,
      path,
      source,
      checked.integer(number, f"{path}: clips[{name!r:.60}]", 0, len(source) - 1),
    )
    for name, number in sorted(found["clips"].items())
  }
