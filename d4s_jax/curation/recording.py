"""Records of clips as they are found, and the small copies that are measured."""

import base64
import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from d4s_jax.curation import sample
from d4s_jax.curation.guard import may_pass
from d4s_jax.curation.units import Opened, Span, View
from d4s_jax.data import record as records
from d4s_jax.data.record import Record
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras, Tracks

_THUMBNAIL = 72


class _Part(NamedTuple):
  """What one view gives to a record; `depths` and `instances` are empty where it has none."""

  size: tuple[int, int]
  pictures: list[bytes]
  depths: list[bytes]
  instances: list[bytes]
  times: Float[np.ndarray, "g"]
  poses: list[Any]
  lenses: list[Any]
  tracks: Tracks | None


def to_record(span: Span, opened: Opened, side: int) -> tuple[Record, list[str]]:
  """A clip's frames at the size that is kept, and all that its dataset knows of them.

  Returns:
    The record, and sentences about views, other than the first, that can't be read: they are left
    out.
  """
  parts: list[_Part] = []
  notes: list[str] = []
  for view, frames in zip(opened.views, opened.frames):
    try:
      parts.append(_part(view, frames, parts[0].size if parts else None, side))
    except (OSError, ValueError) as error:
      if not parts or may_pass(error):
        raise
      notes.append(f"the camera {view.name!r} is left out: {error}")
  size, counts = parts[0].size, [len(part.pictures) for part in parts]

  def all_of(name: str) -> list[bytes] | None:
    maps = [getattr(part, name) for part in parts]
    # Of views that have none.
    filled = [own or [b""] * count for own, count in zip(maps, counts)]
    return sum(filled, []) if any(maps) else None

  poses, lenses = sum((part.poses for part in parts), []), sum((part.lenses for part in parts), [])
  tracks = next(
    (
      _padded(sum(counts[:place]), part.tracks, sum(counts))
      for place, part in enumerate(parts)
      if part.tracks is not None
    ),
    None,
  )
  record = Record(
    **{"name": span.name, "caption": "", "metric": opened.metric},
    dynamic=bool(opened.dynamic),
    view=np.repeat(np.arange(len(parts)), counts),
    times=np.concatenate([part.times for part in parts]).astype(np.float64),
    height=size[0],
    width=size[1],
    images=sum((part.pictures for part in parts), []),
    world_from_camera=np.stack(poses) if poses else None,
    intrinsics=np.stack(lenses) if poses else None,
    depth=all_of("depths"),
    instances=all_of("instances"),
    tracks=tracks,
  )
  return record, notes


def _part(
  view: View, frames: Int[np.ndarray, "g"], size: tuple[int, int] | None, side: int
) -> _Part:
  """What a view gives at a size, or else at that which is kept of its own."""
  pictures, depths, instances, poses, lenses = [], [], [], [], []
  for index in frames.tolist():
    image = view.pixels(index)
    size = size or kept_size(image.shape[0], image.shape[1], side)
    pictures.append(records.to_jpeg(_resized(image, size)))
    if view.depth is not None:
      depths.append(records.to_depth_png(nearest(view.depth(index), size)))
    if view.instances is not None:
      instances.append(records.to_instance_png(nearest(view.instances(index), size)))
    if view.cameras is not None:
      poses.append(np.asarray(view.cameras.world_from_camera)[index])
      cut = camera_geometry.resize(view.cameras[np.array([index])], *size)
      lenses.append(np.asarray(cut.intrinsics)[0])
  tracks = view.tracks(frames) if view.tracks is not None else None
  assert size is not None
  times = view.times[frames]
  return _Part(size, pictures, depths, instances, times, poses, lenses, tracks)


def kept_size(height: int, width: int, side: int) -> tuple[int, int]:
  """Height and width with a shorter side of at most `side`."""
  shrink = min(1.0, side / min(height, width))
  return max(1, round(height * shrink)), max(1, round(width * shrink))


def _resized(image, size: tuple[int, int]):
  picture = Image.fromarray(image)
  if picture.size != size[::-1]:
    picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
  return np.asarray(picture)


def nearest(pixels: Any, size: tuple[int, int]) -> Any:
  """A map [h w] at another size, without mixing values."""
  rows, columns = (
    ((np.arange(to) + 0.5) * have / to).astype(int) for to, have in zip(size, pixels.shape)
  )
  return pixels[rows[:, None], columns]


def _padded(first: int, tracks: Tracks, count: int) -> Tracks:
  """Tracks of one view's frames as tracks of all frames."""
  here = np.asarray(tracks.points)
  points = np.zeros((len(here), count, 3), np.float32)
  visible, valid = np.zeros(points.shape[:2], bool), np.zeros(points.shape[:2], bool)
  mine = slice(first, first + here.shape[1])
  points[:, mine], visible[:, mine] = here, np.asarray(tracks.visible)
  valid[:, mine] = np.asarray(tracks.valid)
  found: Any = {"points": points, "visible": visible, "valid": valid}
  return Tracks(**found)


def small_copy(record: Record, every: bool = False) -> sample.Sample:
  """The sample of a record's first view that the stages measure; `every` for all of its frames."""
  mine = np.flatnonzero(record.view == 0)
  mine = mine if every else mine[sample.chosen(len(mine))]
  size = (record.height, record.width)
  small = kept_size(*size, sample.SIDE)
  whole = (0, 0, *size)
  pictures = np.stack([records.read_image(record.images[i], size, whole, small) for i in mine])
  cameras, depth, mask, tracks = cameras_of(record, mine), None, None, None
  if cameras is not None:
    cameras = camera_geometry.resize(cameras, *small)
  if record.depth is not None:
    depth = np.stack([nearest(records.read_depth(record.depth[i], size), small) for i in mine])
    depth = depth if depth.any() else None
  if record.instances is not None and record.dynamic:
    mask = np.stack(
      [nearest(records.read_instances(record.instances[i], size), small) > 0 for i in mine]
    )
  if record.tracks is not None:
    parts = {
      field.name: np.asarray(getattr(record.tracks, field.name))[:, mine]
      for field in dataclasses.fields(record.tracks)
    }
    tracks = Tracks(**parts)  # pyright: ignore[reportArgumentType]
  step = np.median(np.diff(record.times[mine])) if len(mine) > 1 else 0
  fps = 1 / float(step) if 0 < step < 1 and record.metric else 0.0
  about: Any = {"fps": fps, "metric": record.metric}
  return sample.Sample(
    images=pictures, cameras=cameras, depth=depth, moving=mask, tracks=tracks, **about
  )


def cameras_of(record: Record, chosen: Any) -> Cameras | None:
  """Cameras of some frames; None if they are unknown."""
  if record.world_from_camera is None or record.intrinsics is None:
    return None
  found: Any = {
    "world_from_camera": record.world_from_camera[chosen],
    "intrinsics": record.intrinsics[chosen],
  }
  return Cameras(**found, height=record.height, width=record.width)


def thumbnail(small: sample.Sample) -> str:
  """Four frames side by side as a JPEG, for the report."""
  shown = small.images[np.linspace(0, len(small.images) - 1, 4).round().astype(int)]
  strip = Image.fromarray(np.concatenate(list(shown), axis=1))
  wide = max(1, round(strip.width * _THUMBNAIL / strip.height))
  strip = strip.resize((wide, _THUMBNAIL), Image.Resampling.BICUBIC)
  return base64.b64encode(records.to_jpeg(np.asarray(strip))).decode()
