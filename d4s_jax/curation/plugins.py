"""Heavy estimators, from outside: cameras, depth, tracks, lengths, matches, captions.

A plug-in is named by a text:

- "files:DIR" reads what was computed before: DIR/UNIT.npz, whose arrays run over all frames of the
  unit (a dataset's scene or a video file); for captions DIR/UNIT.txt.
- "MODULE:NAME" is a Python entry point: called without arguments, once in each worker, it returns a
  function from a list of `Excerpt` to a list of results, one for each.
- for captions, "http://..." or "https://..." is an OpenAI-compatible endpoint, and "endpoint" the
  one of OPENAI_BASE_URL.

A result is a mapping of arrays, as in RESULTS, or a text for captions.
"""

import codecs
import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from d4s_jax.captioning import Endpoint
from d4s_jax.curation.guard import may_pass
from d4s_jax.data.datasets.assembly import check_lens
from d4s_jax.formats.arrays import ArrayArchive
from d4s_jax.formats.cameras import nearest_rigid, rigid
from d4s_jax.types import Cameras

KINDS = ("cameras", "depth", "tracks", "lengths", "matches", "captions")
# What the arrays of a result are: name to axes, of which f are the clip's frames.
RESULTS: dict[str, dict[str, tuple[str, ...]]] = {
  # Poses in any unit, pixels of the pictures given; points of structure from motion if there are,
  # and poses of a second camera on the same rig, NaN where it has none.
  "cameras": {
    "world_from_camera": ("f", "4", "4"),
    "intrinsics": ("f", "3", "3"),
    "points": ("n", "3"),
    "visible": ("f", "n"),
    "second": ("f", "4", "4"),
  },
  # One of: z-depth in metres; z-depth up to a factor; disparity (1 / depth) up to a factor and a
  # shift. 0 where unknown.
  "depth": {
    "depth": ("f", "h", "w"),
    "relative": ("f", "h", "w"),
    "disparity": ("f", "h", "w"),
  },
  # Pixels (x, y) of points in each frame.
  "tracks": {"pixels": ("f", "n", "2"), "visible": ("f", "n")},
  # Things of known size: both ends of a length in the world of the poses, metres, and the number
  # of the thing.
  "lengths": {"ends": ("n", "2", "3"), "metres": ("n",), "objects": ("n",)},
  # Of a rectified stereo pair whose left picture is the clip's: number of the frame, pixels (x, y)
  # in both pictures at the size given, and cx of the right one less that of the left one (0).
  "matches": {"frame": ("n",), "left": ("n", "2"), "right": ("n", "2"), "offset": ("n",)},
}
_OPTIONAL = {"points", "visible", "second", "depth", "relative", "disparity", "offset"}
# NaN stands for what isn't known.
_WITH_GAPS = {"second"}
_LONGEST = 5000


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Excerpt:
  """What an estimator is given: frames of one clip, at the size that is kept.

  Attributes:
    unit: name of the scene or file.
    frames: numbers of the frames in it.
    images: the frames.
    jpegs: the frames as files.
    cameras: of the frames, if they are known.
  """

  unit: str
  frames: np.ndarray
  images: UInt8[np.ndarray, "f h w 3"]
  jpegs: list[bytes]
  cameras: Cameras | None


Estimator = Callable[[list[Excerpt]], list[Any]]


def check(kind: str, name: str) -> None:
  """Refuses a plug-in that can't be, before any work is done.

  Raises:
    ValueError, OSError: its text, folder or module is none.
  """
  open_estimator(kind, name)


def reach(kind: str, name: str) -> None:
  """Refuses an endpoint that doesn't answer, before any work is done.

  Raises:
    ConnectionError, ValueError: see `captioning.Endpoint.reach`.
  """
  if _is_endpoint(kind, name):
    _endpoint(name).reach()


def _is_endpoint(kind: str, name: str) -> bool:
  return kind == "captions" and (name == "endpoint" or name.startswith(("http://", "https://")))


def _endpoint(name: str) -> Endpoint:
  return Endpoint("" if name == "endpoint" else name)


def open_estimator(kind: str, name: str) -> Estimator:
  """The function of a plug-in.

  Raises:
    ValueError: its text names nothing; the message says what was expected.
    OSError: there is no such folder.
  """
  if _is_endpoint(kind, name):
    return _Captions(_endpoint(name))
  place, colon, rest = name.partition(":")
  if not colon or not rest:
    raise ValueError(f"--plugin={kind}={name}; expected files:DIR or MODULE:NAME.")
  if place == "files":
    folder = pathlib.Path(rest)
    if not folder.is_dir():
      raise NotADirectoryError(f"No folder at {folder}; expected the files of --plugin={kind}.")
    return _Files(kind, folder)
  try:
    made: Any = getattr(importlib.import_module(place), rest)()
  except (ImportError, AttributeError, TypeError) as error:
    raise ValueError(
      f"--plugin={kind}={name} can't be called ({error}); expected a function of no arguments in a"
      " module that Python finds (PYTHONPATH)."
    ) from error
  if not callable(made):
    raise ValueError(f"--plugin={kind}={name} returned {type(made).__name__}; expected a function.")
  estimator: Any = made
  return estimator


def checked(kind: str, result: Any, footage: Excerpt) -> dict[str, np.ndarray]:
  """The arrays of a result, if they are what they should be; poses are the nearest rigid ones.

  Raises:
    ValueError: an array is missing, has another shape, is not finite, or is of no camera.
  """
  if not isinstance(result, Mapping):
    raise ValueError(f"a {type(result).__name__}; expected arrays by name.")
  frames, height, width, _ = footage.images.shape
  sizes = {"f": frames, "h": height, "w": width}
  arrays = {}
  if kind == "depth" and len(set(RESULTS[kind]) & set(result)) != 1:
    raise ValueError(f"arrays {sorted(result)}; expected one of {', '.join(RESULTS[kind])}.")
  for name, axes in RESULTS[kind].items():
    if name not in result:
      if name in _OPTIONAL:
        continue
      raise ValueError(f"no array {name!r}; expected {', '.join(RESULTS[kind])}.")
    array = np.asarray(result[name])
    expected = [sizes.get(axis) or (int(axis) if axis.isdigit() else None) for axis in axes]
    fits = array.ndim == len(axes) and all(
      there is None or there == here for here, there in zip(array.shape, expected)
    )
    if not fits:
      shape = ", ".join(axis if size is None else str(size) for axis, size in zip(axes, expected))
      raise ValueError(f"{name} of shape {array.shape}; expected ({shape}), as the pictures have.")
    gaps = np.isnan(array) if array.dtype.kind == "f" and name in _WITH_GAPS else False
    if array.dtype.kind not in "fiub" or not (np.isfinite(array) | gaps).all():
      raise ValueError(f"{name} has NaN or infinite values, or is no number.")
    arrays[name] = array
  for name in ("world_from_camera", "second"):
    if name in arrays:
      arrays[name] = _poses(arrays[name], name)
  for number, lens in enumerate(arrays.get("intrinsics", ())):
    check_lens(lens, height, width, f"intrinsics of frame {number}")
  return arrays


def _poses(given: np.ndarray, name: str) -> Float[np.ndarray, "f 4 4"]:
  given = given.astype(np.float64)
  made, sound = nearest_rigid(given)
  for number in np.flatnonzero(~sound & np.isfinite(given).all((1, 2))):
    rigid(given[number], f"{name} of frame {number}")
  return made


class _Captions:
  def __init__(self, endpoint: Endpoint):
    self._endpoint = endpoint

  def __call__(self, clips: list[Excerpt]) -> list[str]:
    answers = []
    for clip in clips:
      shown = np.unique(np.linspace(0, len(clip.jpegs) - 1, 6).round().astype(int))
      answers.append(self._endpoint.caption([clip.jpegs[index] for index in shown]))
    return answers


class _Files:
  """Results that were computed before, by unit."""

  def __init__(self, kind: str, folder: pathlib.Path):
    self._kind, self._folder = kind, folder

  def __call__(self, clips: list[Excerpt]) -> list[Any]:
    return [self._one(clip) for clip in clips]

  def _one(self, clip: Excerpt) -> Any:
    suffix = ".txt" if self._kind == "captions" else ".npz"
    path = self._folder / (clip.unit + suffix)
    if not path.resolve().is_relative_to(self._folder.resolve()):
      raise ValueError(f"{clip.unit!r} leads out of {self._folder}; rename it.")
    if not path.is_file():
      raise FileNotFoundError(f"No {path}; expected the {self._kind} of {clip.unit}.")
    if suffix == ".txt":
      return _text(path)
    return _arrays(path, RESULTS[self._kind], clip.frames)


def _text(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    contents = file.read(_LONGEST)
  try:
    # The end may be within a character.
    text, _ = codecs.utf_8_decode(contents, "strict", len(contents) < _LONGEST)
    if "\0" in text:  # UTF-16, for one
      raise ValueError
  except ValueError:
    raise ValueError(f"{path} is no text; expected a caption in UTF-8.") from None
  return " ".join(text.split())


def _arrays(path: pathlib.Path, axes, frames: np.ndarray) -> dict[str, np.ndarray]:
  """The arrays of a unit's file, of those over its frames the rows of these."""
  try:
    archive = ArrayArchive(path)
    shapes = {name: archive.spec(name).shape for name in axes if name in archive}
    for name, shape in shapes.items():
      if axes[name][0] == "f" and shape[:1] <= (frames.max(),):
        raise ValueError(f"{name} of shape {shape}; expected frame {frames.max()} to be in it")
    return {
      name: archive.read(name, frames.tolist() if axes[name][0] == "f" else None) for name in shapes
    }
  except ValueError as error:
    remedy = "see to its disk" if may_pass(error) else "compute it again"
    raise ValueError(f"{path} cannot be read ({error}); {remedy}.") from error


def lifted(
  pixels: Float[np.ndarray, "f n 2"], depth: Float[np.ndarray, "f h w"], cameras: Cameras
) -> tuple[Float[np.ndarray, "n f 3"], np.ndarray]:
  """World points of tracked pixels, by depth; and where they are known [n f]."""
  column = np.floor(pixels[..., 0]).astype(int)
  row = np.floor(pixels[..., 1]).astype(int)
  height, width = depth.shape[1:]
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  frame = np.arange(len(depth))[:, None]
  z = depth[frame, np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
  known = inside & (z > 0)
  lens = np.asarray(cameras.intrinsics, np.float64)[:, None]
  local = np.stack(
    [
      (pixels[..., 0] - lens[..., 0, 2]) / lens[..., 0, 0] * z,
      (pixels[..., 1] - lens[..., 1, 2]) / lens[..., 1, 1] * z,
      z,
    ],
    axis=-1,
  )
  poses = np.asarray(cameras.world_from_camera, np.float64)
  world = np.einsum("fij,fnj->fni", poses[:, :3, :3], local) + poses[:, None, :3, 3]
  return np.where(known[..., None], world, 0).transpose(1, 0, 2), known.T
