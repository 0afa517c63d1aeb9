"""A dataset as a source of clips: some frames of one camera, and other views of the same moments.

Frames are cut to the middle and resized. Nothing else is done to them: what augments, normalises or
fills in is elsewhere.
"""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int

from d4s_jax.data.datasets.registry import entry, open_dataset
from d4s_jax.data.datasets.scene import Dataset, Scene, View, make_tracks
from d4s_jax.data.record import CorruptRecord
from d4s_jax.data.transforms import check_frame_count
from d4s_jax.formats.images import center_crop, fit
from d4s_jax.geometry import poses
from d4s_jax.types import Cameras, Clip, Tracks, Views

_SPLITS = ("train", "heldout")
# Of this many groups of scenes, one is held out where the dataset has no splits of its own.
_HELD_OUT = 10
# Scenes that are tried for one that is long enough.
_TRIES = 50


class Windows:
  """Clips of a dataset of the registry.

  A clip depends on (seed, split, index), on the sizes asked for, and on what is in the folder. Its
  captions are empty.

  Args:
    dataset: a name of the registry.
    path: its folder.
    split: "train" or "heldout".
    kind: "static" or "dynamic", which the dataset must be, or "mixed".
    frames: source frames, 1 + 4k.
    height: image height, pixels.
    width: image width, pixels.
    views: target views: frames of any camera of the scene between the first and the last source
      frame, other than those where there are others.
    tracks: number of point tracks; those that the dataset doesn't have are not valid.
    seed: of the choice of clips.
    length: number of clips.

  Raises:
    OSError: there is no such folder.
    ValueError: it holds no scenes of the dataset, or an argument is out of range.
  """

  def __init__(
    self,
    dataset: str,
    path: str,
    split: str = "train",
    kind: str = "mixed",
    *,
    frames: int = 9,
    height: int = 64,
    width: int = 64,
    views: int = 6,
    tracks: int = 256,
    seed: int = 0,
    length: int = 100_000,
  ):
    line = entry(dataset)
    own = "dynamic" if line.dynamic else "static"
    if kind not in (own, "mixed"):
      raise ValueError(f"{line.title} has scenes of kind {own!r}; expected it instead of {kind!r}.")
    check_frame_count(frames)
    if min(height, width, views, length) < 1 or tracks < 0:
      raise ValueError(
        f"Clips of {height}x{width} pixels, {views} views, {tracks} tracks, {length} in all;"
        " expected positive sizes."
      )
    self._dataset = open_dataset(dataset, pathlib.Path(path))
    self._names = split_names(self._dataset, split)
    self._frames, self._height, self._width = frames, height, width
    self._views, self._tracks, self._length = views, tracks, length
    self._stride = max(1, line.span // max(frames - 1, 1))
    self._entropy = (seed, _SPLITS.index(split))

  def __len__(self) -> int:
    return self._length

  def read(self, index: int) -> Clip:
    """Reads one clip.

    Raises:
      CorruptRecord: a file is missing or damaged.
      ValueError: no scene is long enough.
    """
    if not 0 <= index < self._length:
      raise IndexError(f"Clip {index}; expected 0 to {self._length - 1}.")
    rng = np.random.default_rng((*self._entropy, index))
    for _ in range(_TRIES):
      name = self._names[rng.integers(len(self._names))]
      try:
        scene = self._dataset.open(name)
        view = scene.views[rng.integers(len(scene.views))]
        if len(view) >= self._frames:
          return self._cut(rng, scene, view)
      except (ValueError, OSError) as error:
        raise CorruptRecord(f"Clip {index}, scene {name}: {error}") from error
    raise ValueError(
      f"None of {_TRIES} scenes in {self._dataset.root} has {self._frames} frames; expected a"
      " shorter clip, or longer scenes."
    )

  def _cut(self, rng: np.random.Generator, scene: Scene, view: View) -> Clip:
    """A window of a view."""
    longest = (len(view) - 1) // max(self._frames - 1, 1)
    stride = int(rng.integers(1, min(self._stride, max(longest, 1)) + 1))
    start = int(rng.integers(len(view) - stride * (self._frames - 1)))
    chosen = start + stride * np.arange(self._frames)
    first, last = view.numbers[chosen[0]], view.numbers[chosen[-1]]
    origin = view.cameras.world_from_camera[chosen[0]]
    begin, end = float(view.times[chosen[0]]), float(view.times[chosen[-1]])

    def read(what: View, index: Int[np.ndarray, "v"]) -> Views:
      return self._read(what, index, origin, (begin, end))

    # Frames that aren't in the source tell more; of one camera without gaps there are none.
    others = []
    for other in scene.views:
      there = np.flatnonzero((other.numbers >= first) & (other.numbers <= last))
      there = np.setdiff1d(there, chosen) if other is view else there
      if len(there):
        others.append((other, there))
    targets = []
    for _ in range(self._views):
      what, among = others[rng.integers(len(others))] if others else (view, chosen)
      targets.append(read(what, among[[rng.integers(len(among))]]))
    dynamic: Any = np.asarray(scene.dynamic)
    metres: Any = np.float32(scene.metric)
    return Clip(
      source=read(view, chosen),
      target=_joined(targets),
      tracks=self._follow(rng, view, chosen, origin),
      instances=self._instances(view, chosen),
      dynamic=dynamic,
      scale=metres,
      text="",
    )

  def _read(self, view: View, index, origin, span: tuple[float, float]) -> Views:
    cameras = view.cameras[index]
    window = center_crop(cameras.height, cameras.width, self._height, self._width)
    images: Any = np.stack([fit(view.image(int(i)), self._height, self._width) for i in index])
    depth: Any = np.zeros(images.shape[:-1], np.float32)
    if view.depth is not None:
      depth = np.stack([self._nearest(view.depth(int(i)), window) for i in index])
    top, left, height, width = window
    shift = np.array([[0, 0, left], [0, 0, top], [0, 0, 0]])
    scale = np.array([[self._width / width], [self._height / height], [1]])
    intrinsics: Any = ((cameras.intrinsics - shift) * scale).astype(np.float32)
    world: Any = poses.relative_to(np.asarray(cameras.world_from_camera), origin).astype(np.float32)
    begin, end = span
    times: Any = ((view.times[index] - begin) / max(end - begin, 1e-9)).astype(np.float32)
    cameras = Cameras(
      world_from_camera=world, intrinsics=intrinsics, height=self._height, width=self._width
    )
    return Views(images=images, depth=depth, cameras=cameras, times=times)

  def _nearest(self, values: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray:
    """Values at the pixels nearest to those of the cut and resized picture."""
    top, left, height, width = window
    rows = top + (np.arange(self._height) + 0.5) * height / self._height
    columns = left + (np.arange(self._width) + 0.5) * width / self._width
    return values[np.ix_(rows.astype(int), columns.astype(int))]

  def _instances(self, view: View, chosen) -> Any:
    """Instances, numbered anew from 1; all background where the dataset doesn't tell."""
    shape = (len(chosen), self._height, self._width)
    if view.instances is None:
      return np.zeros(shape, np.int32)
    cameras = view.cameras
    window = center_crop(cameras.height, cameras.width, self._height, self._width)
    found = np.stack([self._nearest(view.instances(int(i)), window) for i in chosen])
    names, numbers = np.unique(np.append(found.ravel(), 0), return_inverse=True)
    # 0 stays 0: names are sorted and not negative.
    assert names[0] == 0
    return numbers[:-1].reshape(shape).astype(np.int32)

  def _follow(self, rng: np.random.Generator, view: View, chosen, origin) -> Tracks:
    """So many tracks, of those that are seen in some frame; the rest is not valid."""
    shape = (self._tracks, len(chosen))
    points, valid = np.zeros((*shape, 3), np.float32), np.zeros(shape, bool)
    visible = valid.copy()
    if view.tracks is not None and self._tracks:
      found = view.tracks(chosen)
      seen = np.flatnonzero(np.asarray(found.visible).any(-1))
      seen = np.sort(rng.permutation(seen)[: self._tracks])
      inverse = poses.invert(origin)
      world = np.asarray(found.points)[seen].astype(np.float64)
      points[: len(seen)] = world @ inverse[:3, :3].T + inverse[:3, 3]
      valid[: len(seen)] = np.asarray(found.valid)[seen]
      visible[: len(seen)] = np.asarray(found.visible)[seen]
    return make_tracks(points, visible, valid)


def split_names(dataset: Dataset, split: str) -> list[str]:
  """Scenes of a split: the dataset's own where it has splits, else every tenth group is held out.

  Of fewer than ten groups the last is held out.

  Raises:
    ValueError: the split is unknown, or empty.
  """
  if split not in _SPLITS:
    raise ValueError(f"Unknown split {split!r}; expected one of {', '.join(_SPLITS)}.")
  groups = sorted({dataset.group(name) for name in dataset.names if not dataset.official(name)})
  held = set(groups[_HELD_OUT - 1 :: _HELD_OUT] or groups[1:][-1:])
  own = {
    name: dataset.official(name) or _SPLITS[dataset.group(name) in held] for name in dataset.names
  }
  names = [name for name in dataset.names if own[name] == split]
  if not names:
    raise ValueError(
      f"{dataset.root} has no scenes of the split {split!r} among {len(dataset.names)}; expected"
      " more of the dataset."
    )
  return names


def _joined(parts: list[Views]) -> Views:
  """Views one after another."""
  cameras = [part.cameras for part in parts]
  images, depth, times, world, lenses = (
    np.concatenate([np.asarray(x) for x in arrays])
    for arrays in (
      [part.images for part in parts],
      [part.depth for part in parts],
      [part.times for part in parts],
      [camera.world_from_camera for camera in cameras],
      [camera.intrinsics for camera in cameras],
    )
  )
  values: Any = images, depth, times, world, lenses
  images, depth, times, world, lenses = values
  joined = Cameras(
    world_from_camera=world,
    intrinsics=lenses,
    height=cameras[0].height,
    width=cameras[0].width,
  )
  return Views(images=images, depth=depth, cameras=joined, times=times)
