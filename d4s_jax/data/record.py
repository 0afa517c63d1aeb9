"""One curated clip as bytes: the record of a shard.

Safetensors, which no reader executes: JPEG pictures one by one, so that any few frames are read
without the others; depth as 16-bit PNG, instances as 8-bit PNG; cameras, times and tracks as
arrays; the rest as JSON.
"""

import dataclasses
import io
import json
import math
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError

from d4s_jax.formats.checked import fields, integer, parse, text
from d4s_jax.formats.images import MAX_PIXELS
from d4s_jax.types import Tracks

VERSION = 1
MOST_FRAMES, _MOST_VIEWS, _MOST_TEXT = 4096, 64, 20_000
# Chroma isn't halved: thin colours would bleed.
_JPEG = {"quality": 93, "subsampling": 0}
# Depths that 16 bits hold, in even steps of the logarithm: 0.025% each.
_NEAREST, _FARTHEST = 1e-3, 1e4
_STEPS = 65534
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


class CorruptRecord(ValueError):
  """A record's bytes aren't those of a record; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Record:
  """A clip as it was filmed: frames of one or several cameras, and what is known of them.

  Frames of all views lie in one list, each view's in a row, with rising times.

  Attributes:
    name: unique among all datasets, such as "spring/0001/left/0-96".
    caption: what is seen; "" if there is none.
    metric: whether lengths are metres; else they have a factor of their own.
    dynamic: whether something moves.
    view: number of each frame's camera.
    times: of each frame, seconds or counts.
    height: of the pictures.
    width: of the pictures.
    images: a JPEG for each frame.
    world_from_camera: of each frame; None if unknown.
    intrinsics: of each frame, pixels; None if unknown.
    depth: a PNG of z-depth for each frame, b"" for those without; None if there is none.
    instances: a PNG for each frame likewise.
    tracks: of points over all frames, valid nowhere in other views; None if there are none.
  """

  name: str
  caption: str
  metric: bool
  dynamic: bool
  view: Int[np.ndarray, "k"]
  times: Float[np.ndarray, "k"]
  height: int
  width: int
  images: list[bytes]
  world_from_camera: Float[np.ndarray, "k 4 4"] | None = None
  intrinsics: Float[np.ndarray, "k 3 3"] | None = None
  depth: list[bytes] | None = None
  instances: list[bytes] | None = None
  tracks: Tracks | None = None

  def __len__(self) -> int:
    return len(self.times)


def encode(record: Record) -> bytes:
  """The bytes of a record."""
  about = {
    "version": VERSION,
    **{x: getattr(record, x) for x in ("name", "caption", "metric", "dynamic")},
    **{x: getattr(record, x) for x in ("height", "width")},
  }
  arrays: dict[str, np.ndarray] = {
    "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    "view": record.view.astype(np.int32),
    "times": record.times.astype(np.float64),
  }
  for name in ("images", "depth", "instances"):
    files = getattr(record, name)
    if files is not None:
      arrays[name] = np.frombuffer(b"".join(files), np.uint8)
      arrays[f"{name}_ends"] = np.cumsum([len(file) for file in files])
  if record.world_from_camera is not None and record.intrinsics is not None:
    arrays["world_from_camera"] = record.world_from_camera.astype(np.float32)
    arrays["intrinsics"] = record.intrinsics.astype(np.float32)
  if record.tracks is not None:
    arrays["points"] = np.asarray(record.tracks.points, np.float32)
    arrays["visible"] = np.asarray(record.tracks.visible)
    arrays["valid"] = np.asarray(record.tracks.valid)
  return safetensors.numpy.save({x: np.ascontiguousarray(y) for x, y in arrays.items()})


def decode(contents: bytes) -> Record:
  """The record of some bytes; its pictures are not decoded yet.

  Raises:
    CorruptRecord: they are not those of a record.
  """
  try:
    arrays = safetensors.numpy.load(contents)
    return _record(arrays)
  except KeyError as error:
    raise CorruptRecord(f"The record has no {error}.") from None
  except (SafetensorError, ValueError, TypeError, OverflowError) as error:
    raise CorruptRecord(str(error)) from error


def _record(arrays: dict[str, np.ndarray]) -> Record:
  about = fields(
    parse(arrays["about"].tobytes(), "about"),
    "about",
    ("version", "name", "caption", "metric", "dynamic", "height", "width"),
  )
  integer(about.pop("version"), "version", VERSION, VERSION)
  for name in ("name", "caption"):
    text(about[name], name, _MOST_TEXT)
  sides = [integer(about[x], x, 1, MAX_PIXELS) for x in ("height", "width")]
  if sides[0] * sides[1] > MAX_PIXELS:
    raise ValueError(f"Pictures of {sides[1]} x {sides[0]}; expected {MAX_PIXELS} pixels at most.")
  count = len(arrays["times"])
  integer(count, "number of frames", 1, MOST_FRAMES)
  _shaped(arrays, {"times": (count,), "view": (count,)})
  view = arrays["view"].astype(np.int64)
  integer(int(view.max()), "number of a view", 0, _MOST_VIEWS)
  files: dict[str, Any] = {
    name: _files(arrays, name, count)
    for name in ("images", "depth", "instances")
    if name == "images" or name in arrays
  }
  cameras: dict[str, Any] = {}
  if "intrinsics" in arrays:
    _shaped(arrays, {"world_from_camera": (count, 4, 4), "intrinsics": (count, 3, 3)})
    cameras = {x: arrays[x] for x in ("world_from_camera", "intrinsics")}
  tracks: Any = None
  if "points" in arrays:
    points = len(arrays["points"])
    shapes = {"points": (points, count, 3), "visible": (points, count), "valid": (points, count)}
    _shaped(arrays, shapes)
    tracks = Tracks(**{x: arrays[x].astype(bool) if x != "points" else arrays[x] for x in shapes})  # pyright: ignore[reportArgumentType]
  return Record(
    **about, view=view, times=arrays["times"].astype(np.float64), tracks=tracks, **files, **cameras
  )


def _shaped(arrays, shapes: dict[str, tuple[int, ...]]) -> None:
  for name, shape in shapes.items():
    array = arrays[name]
    if array.shape != shape:
      raise ValueError(f"{name} of shape {array.shape}; expected {shape}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
      raise ValueError(f"{name} has NaN or infinite values.")


def _files(arrays, name: str, count: int) -> list[bytes]:
  contents, ends = arrays[name], arrays[f"{name}_ends"]
  starts = np.append(0, ends[:-1])
  if ends.shape != (count,) or np.any(ends < starts) or ends[-1] != len(contents):
    raise ValueError(f"{name}: lengths that don't add up.")
  return [contents[start:end].tobytes() for start, end in zip(starts, ends)]


def to_jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """A picture as a JPEG file."""
  return _saved(Image.fromarray(image), "JPEG", **_JPEG)


def to_depth_png(depth: Float[np.ndarray, "h w"]) -> bytes:
  """Z-depth as a PNG of 16 bits; what isn't between 1 mm and 10 km becomes unknown."""
  with np.errstate(divide="ignore", invalid="ignore"):
    level = np.log(depth / _NEAREST) / math.log(_FARTHEST / _NEAREST)
    known = np.isfinite(level) & (level >= 0) & (level <= 1)
  level = np.where(known, 1 + np.round(np.where(known, level, 0) * _STEPS), 0)
  return _saved(Image.fromarray(level.astype(np.uint16)), "PNG", compress_level=3)


def to_instance_png(instances: Int[np.ndarray, "h w"]) -> bytes:
  """Instances as a PNG of 8 bits; beyond 255 they share numbers, but not with the background."""
  instances = np.where(instances > 0, (instances - 1) % 255 + 1, 0)
  return _saved(Image.fromarray(instances.astype(np.uint8)), "PNG", compress_level=3)


def read_image(
  contents: bytes, size: tuple[int, int], window: tuple[int, int, int, int], to: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
  """A window of a JPEG, resized.

  Args:
    contents: the file.
    size: height and width that it must have.
    window: top, left, height, width.
    to: height and width of the result.

  Raises:
    CorruptRecord: it is no such picture.
  """
  top, left, height, width = window

  def read(image: Image.Image) -> np.ndarray:
    # Decoded at a half or a quarter of its size where that is still larger than asked for.
    shrink = min(height / to[0], width / to[1])
    if shrink >= 2:
      image.draft("RGB", (int(size[1] / shrink), int(size[0] / shrink)))
    x, y = image.width / size[1], image.height / size[0]
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    if image.size == to[::-1] and box == (0, 0, *image.size):
      return np.asarray(image.convert("RGB"))
    sizing = Image.Resampling.BICUBIC
    return np.asarray(image.convert("RGB").resize((to[1], to[0]), sizing, box=box))

  return _opened(contents, "JPEG", size, read)


def read_depth(contents: bytes, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
  """Z-depth of `to_depth_png`, 0 where unknown; raises CorruptRecord as `read_image` does."""
  if not contents:
    return np.zeros(size, np.float32)
  level = _opened(contents, "PNG", size, lambda image: np.asarray(image).astype(np.uint16))
  return _depth_of_level()[level]


def read_instances(contents: bytes, size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
  """Instances of `to_instance_png`; raises CorruptRecord as `read_image` does."""
  if not contents:
    return np.zeros(size, np.int32)
  return _opened(contents, "PNG", size, lambda image: np.asarray(image.convert("L"))).astype(
    np.int32
  )


_LEVELS: list[np.ndarray] = []


def _depth_of_level() -> Float[np.ndarray, "65536"]:
  if not _LEVELS:
    logs = np.arange(-1, _STEPS + 1) / _STEPS * math.log(_FARTHEST / _NEAREST)
    table = (_NEAREST * np.exp(logs)).astype(np.float32)
    table[0] = 0
    _LEVELS.append(table)
  return _LEVELS[0]


def _opened(
  contents: bytes, kind: str, size: tuple[int, int], read: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
  try:
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    with quiet, Image.open(io.BytesIO(contents), formats=(kind,)) as image:
      # Before anything is decoded: the header alone says how much memory it takes.
      if (image.height, image.width) == size:
        return read(image)
      found = (image.height, image.width)
  except (*_BROKEN, Image.DecompressionBombError) as error:
    raise CorruptRecord(f"A {kind} that cannot be read ({error}).") from error
  raise CorruptRecord(f"A {kind} of {found[1]} x {found[0]}; expected {size[1]} x {size[0]}.")


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()
