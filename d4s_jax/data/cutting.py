"""A clip cut out of footage: the same for records of shards and for scenes of datasets.

Which frames, which part of the picture and which unit of length is `data.sampling`'s choice; here
it is carried out. What isn't known is masked: depth 0, tracks invalid, instances all background.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from d4s_jax.data import identity, sampling
from d4s_jax.data.sampling import Augmentation
from d4s_jax.data.wanted import Wanted
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras, Clip, Tracks, Views

# The lens of footage whose lens is unknown, degrees.
_FOV = 60.0
# Depth beyond, metres, says nothing about shape, and sky is often a large number.
_FAR = 1000.0
# What is put before the caption of a clip that is played backwards: it tells how things move.
BACKWARDS = "Played backwards: "

Window = tuple[int, int, int, int]


class Filmed(sampling.Frames, Protocol):
  """Frames of one or several cameras, all of one size, and what is known of them.

  Indices are into the list of all frames. The readers raise ValueError or OSError.

  Attributes:
    caption: what is seen, or "".
    metric: whether lengths are metres.
    height: pixels.
    width: pixels.
    world_from_camera: of each frame; None if unknown.
    intrinsics: of each frame, pixels; None if unknown.
  """

  caption: str
  metric: bool
  height: int
  width: int
  world_from_camera: Float[np.ndarray, "k 4 4"] | None
  intrinsics: Float[np.ndarray, "k 3 3"] | None

  def picture(
    self, index: int, window: Window, to: tuple[int, int]
  ) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A window (top, left, height, width) of a frame, resized."""
    ...

  def depth(self, index: int) -> Float[np.ndarray, "h w"] | None:
    """Z-depth of a frame, 0 where unknown; None if all is."""
    ...

  def instances(self, index: int) -> Int[np.ndarray, "h w"] | None:
    """Instance of each pixel, 0 the background; None if unknown."""
    ...

  def tracks(self, source: Int[np.ndarray, "f"]) -> Tracks | None:
    """Tracks over frames of one camera, in any order; None if there are none."""
    ...


@dataclasses.dataclass(frozen=True)
class Cut:
  """How clips are cut.

  Attributes:
    wanted: sizes.
    posed: whether cameras must be known; else footage of unknown scale counts as metric.
    distance: units that the median known depth is scaled to, in each clip; 0 keeps the lengths.
    augment: what is random.
  """

  wanted: Wanted
  posed: bool = True
  distance: float = 0.0
  augment: Augmentation = dataclasses.field(
    default_factory=lambda: Augmentation(reverse=0, crop=False)
  )

  def contents(self, names: Iterable[str]) -> dict[str, Any]:
    """What clips are cut out of, as a hash of names, and what is random or scaled about it."""
    how = {**dataclasses.asdict(self.augment), "distance": self.distance}
    return {"hash of names": identity.digest(names), **how}

  def __call__(self, footage: Filmed, rng: np.random.Generator) -> Clip:
    """One clip, a pure function of footage and generator; its images are still in 8 bits.

    Raises:
      NoLength: there is nothing to take a unit of length from; no fault of the files.
      ValueError, OSError: a frame can't be read, or there are too few.
    """
    wanted, how = self.wanted, self.augment
    chosen = sampling.choose_frames(footage, wanted.frames, wanted.views, rng, how)
    to = (wanted.height, wanted.width)
    window = sampling.choose_window((footage.height, footage.width), to, rng, how)
    # Each once, in the order of their cameras and times: decoders of videos only go ahead.
    needed, places = np.unique([*chosen.source, *chosen.target], return_inverse=True)
    frames = _views(footage, needed, window, to)
    source, target = (
      _some(frames, index, times)
      for index, times in (
        (places[: wanted.frames], chosen.times),
        (places[wanted.frames :], chosen.target_times),
      )
    )
    known = footage.tracks(chosen.source)
    tracks = sampling.cap_tracks(known, wanted.tracks, wanted.frames, rng)
    first, scale = np.asarray(source.cameras.world_from_camera[0]), 1.0
    if self.distance and self.posed:
      poses = np.asarray(source.cameras.world_from_camera)
      all_poses = poses if footage.world_from_camera is None else footage.world_from_camera
      depth, about = np.asarray(source.depth), {"metric": footage.metric, "distance": self.distance}
      scale = sampling.unit(depth, known, poses, all_poses, **about)
    metres: Any = np.float32(scale if footage.metric or not self.posed else 0)
    dynamic: Any = np.asarray(footage.dynamic)
    said = footage.caption
    return Clip(
      source=_moved(source, first, scale),
      target=_moved(target, first, scale),
      tracks=_moved_tracks(tracks, first, scale),
      instances=_instances(footage, chosen.source, window, to),
      dynamic=dynamic,
      scale=metres,
      text=BACKWARDS + said if said and chosen.backwards else said,
    )


def _views(
  footage: Filmed, chosen: Int[np.ndarray, "v"], window: Window, to: tuple[int, int]
) -> Views:
  """Frames as views: images still in 8 bits, cameras in float64, times not told."""
  images = np.stack([footage.picture(int(index), window, to) for index in chosen])
  known: Any = np.zeros(images.shape[:-1], np.float32)
  for place, index in enumerate(chosen):
    found = footage.depth(int(index))
    if found is not None:
      near = sampling.nearest(found, window, to)
      known[place] = np.where(near < _FAR, near, 0)
  size = (footage.height, footage.width)
  if footage.intrinsics is None or footage.world_from_camera is None:
    lens = camera_geometry.intrinsics_from_fov(_FOV, *size)
    lenses, poses = np.tile(lens, (len(chosen), 1, 1)), np.tile(np.eye(4), (len(chosen), 1, 1))
  else:
    lenses, poses = footage.intrinsics[chosen], footage.world_from_camera[chosen]
  whole: Any = {"world_from_camera": poses, "intrinsics": lenses}
  cameras = Cameras(**whole, height=size[0], width=size[1])
  shown: Any = images
  times: Any = np.zeros(len(chosen), np.float32)
  return Views(
    images=shown, depth=known, cameras=sampling.cut_cameras(cameras, window, to), times=times
  )


def _some(frames: Views, index: Int[np.ndarray, "v"], times: Any) -> Views:
  """Some of the views, with their times."""
  images: Any = np.asarray(frames.images)[index]
  depth: Any = np.asarray(frames.depth)[index]
  return Views(images=images, depth=depth, cameras=frames.cameras[index], times=times)


def _instances(
  footage: Filmed, source: Int[np.ndarray, "f"], window: Window, to: tuple[int, int]
) -> Any:
  """Instances of the source frames, numbered anew from 1."""
  maps = [footage.instances(int(index)) for index in source]
  if all(one is None for one in maps):
    return np.zeros((len(source), *to), np.int32)
  found = np.stack(
    [np.zeros(to, np.int64) if x is None else sampling.nearest(x, window, to) for x in maps]
  )
  there = np.bincount(found.ravel()) > 0
  there[0] = False
  return np.cumsum(there, dtype=np.int32)[found]


def _moved(views: Views, first, scale: float) -> Views:
  """The views in the world of the first camera, in units of `scale`, and in float32."""
  moved: Any = sampling.in_first(np.asarray(views.cameras.world_from_camera), first, scale)
  lenses: Any = np.asarray(views.cameras.intrinsics, np.float32)
  cameras = dataclasses.replace(views.cameras, world_from_camera=moved, intrinsics=lenses)
  depth: Any = np.asarray(views.depth) / np.float32(scale)
  return dataclasses.replace(views, cameras=cameras, depth=depth)


def _moved_tracks(tracks: Tracks, first, scale: float) -> Tracks:
  local = (np.asarray(tracks.points) - first[:3, 3]) @ first[:3, :3] / scale
  points: Any = np.where(np.asarray(tracks.valid)[..., None], local, 0).astype(np.float32)
  return dataclasses.replace(tracks, points=points)
