"""Pictures: stills of a film as pop-up cards, a floor before a wall, with exact cameras and depth.

The embedded scenes are drawn; photographs aren't. A model that has seen only the former gives the
latter the former's colours and shapes. Depth of a still is unknown, so it is made up: what the
first camera sees is painted on a floor and a wall behind it, where a photograph's ground and the
rest of it often are. Nothing moves.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from d4s_jax.data.film import MARGIN, about, decoded, starts
from d4s_jax.data.synthetic.camera_paths import CameraPath, near_path, off_path, random_path
from d4s_jax.data.synthetic.caption import CAMERA_WORDS
from d4s_jax.data.wanted import Wanted
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.geometry.trajectories import TRAJECTORIES
from d4s_jax.types import Cameras, Clip, Tracks, Views

# From the side a card shows nothing.
_PATHS = [name for name in TRAJECTORIES if name != "orbit"]
_HEIGHTS, _PITCHES = (1.3, 2.1), (-2.0, 22.0)
# Of the wall, as a multiple of the distance to what the camera looks at.
_WALLS = (0.9, 2.0)
# A ray that meets neither floor nor wall ends here, metres.
_FAR = 100.0
_OFF_PATH = 0.5


class _Card(NamedTuple):
  """A still and the planes that it is painted on, in the axes of the first camera.

  Attributes:
    still: the picture, larger than what the first camera sees of it.
    corner: where in it the first camera's picture begins, (row, column).
    down: unit direction of gravity.
    ahead: unit direction to the wall.
    height: of the first camera above the floor, metres.
    wall: distance of the wall from it, metres.
  """

  still: UInt8[np.ndarray, "H W 3"]
  corner: tuple[int, int]
  down: Float[np.ndarray, "3"]
  ahead: Float[np.ndarray, "3"]
  height: float
  wall: float


class Pictures:
  """Clips of still pop-up cards; see the module.

  The film is decoded as by `data.film`, and the same shots are held out.

  Args:
    path: a video file.
    split: "train" or "heldout".
    kind: "static" or "mixed".
    **sizes: the other fields of `Wanted`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no video, or an argument is out of range.
  """

  def __init__(
    self,
    path: str,
    split: str = "train",
    kind: str = "mixed",
    **sizes: Any,
  ):
    self._wanted = wanted = Wanted(split=split, kind=kind, **sizes)
    if kind == "dynamic":
      raise ValueError("Pictures stand still; expected scenes of kind 'static' or 'mixed'.")
    self._path = pathlib.Path(path)
    self._file = decoded(self._path, round(MARGIN * max(wanted.height, wanted.width)))
    self._stills = starts(np.load(self._file, mmap_mode="r"), 1, split == "heldout")
    if not len(self._stills):
      raise ValueError(f"{path} has no stills for the split {split!r}; expected a longer film.")

  def __len__(self) -> int:
    return self._wanted.length

  def contents(self) -> dict[str, Any]:
    """What tells the film from others."""
    return about(self._path)

  def read(self, index: int) -> Clip:
    """Draws one clip."""
    self._wanted.check(index, len(self))
    rng = np.random.default_rng((*self._wanted.entropy, 1, index))
    name, height = str(rng.choice(_PATHS)), rng.uniform(*_HEIGHTS)
    path, fov = random_path(rng, name, height), float(rng.uniform(50, 70))
    card = self._card(rng, path, height)
    times = np.linspace(0, 1, self._wanted.frames, dtype=np.float32)
    target_times = np.sort(rng.random(self._wanted.views)).astype(np.float32)
    targets = near_path(rng, path, target_times)
    away = rng.permutation(self._wanted.views) < round(_OFF_PATH * self._wanted.views)
    targets[away] = off_path(rng, path, int(away.sum()))
    source = self._draw(card, path.at(times), times, fov)
    dynamic: Any = np.asarray(False)
    metres: Any = np.float32(1)
    nothing: Any = np.zeros(source.depth.shape, np.int32)
    return Clip(
      source=source,
      target=self._draw(card, targets, target_times, fov),
      tracks=_tracks(rng, source, self._wanted.tracks),
      instances=nothing,
      dynamic=dynamic,
      scale=metres,
      text=f"A picture. The camera {CAMERA_WORDS[name]}.",
    )

  def _card(self, rng: np.random.Generator, path: CameraPath, height: float) -> _Card:
    # Opened here: a source is pickled to worker processes, and a mapped file would go as a copy.
    still = np.load(self._file, mmap_mode="r")[int(rng.choice(self._stills))]
    if rng.random() < 0.5:
      still = still[:, ::-1]
    row, column = (
      int(rng.integers(there - wanted + 1))
      for there, wanted in zip(still.shape, (self._wanted.height, self._wanted.width))
    )
    pitch = np.radians(rng.uniform(*_PITCHES))
    down = np.array([0, np.cos(pitch), np.sin(pitch)])
    ahead = np.array([0, -np.sin(pitch), np.cos(pitch)])
    wall = path.pivot * float(rng.uniform(*_WALLS))
    return _Card(still, (row, column), down, ahead, height, wall)

  def _draw(self, card: _Card, poses, times, fov: float) -> Views:
    """What cameras at `poses` [v 4 4] see of a card."""
    lens = np.asarray(
      camera_geometry.intrinsics_from_fov(fov, self._wanted.height, self._wanted.width)
    )
    x, y = np.meshgrid(np.arange(self._wanted.width) + 0.5, np.arange(self._wanted.height) + 0.5)
    center, focal = lens[:2, 2], lens[[0, 1], [0, 1]]
    rays = np.stack([(x - center[0]) / focal[0], (y - center[1]) / focal[1], np.ones_like(x)], -1)
    rays = np.einsum("vij,hwj->vhwi", poses[:, :3, :3], rays)
    eyes = poses[:, None, None, :3, 3]
    # A ray is 1 deep, so that the way along it is z-depth.
    depth = np.full(rays.shape[:-1], _FAR)
    for normal, distance in ((card.down, card.height), (card.ahead, card.wall)):
      way = (distance - eyes @ normal) / np.where(np.abs(rays @ normal) < 1e-9, 1e-9, rays @ normal)
      depth = np.where((way > 0) & (way < depth), way, depth)
    points = eyes + depth[..., None] * rays
    # Seen by the first camera; behind it, anything.
    ahead = np.maximum(points[..., 2:], 1e-3)
    pixels = points[..., :2] / ahead * focal + center
    images: Any = _sample(card.still, pixels + card.corner[::-1]).astype(np.float32)
    lenses: Any = np.tile(lens.astype(np.float32), (len(poses), 1, 1))
    world_from_camera: Any = poses.astype(np.float32)
    distances: Any = depth.astype(np.float32)
    cameras = Cameras(
      world_from_camera=world_from_camera,
      intrinsics=lenses,
      height=self._wanted.height,
      width=self._wanted.width,
    )
    return Views(images=images, depth=distances, cameras=cameras, times=times)


def _sample(still, pixels: Float[np.ndarray, "*v 2"]) -> Float[np.ndarray, "*v 3"]:
  """Colours in [0, 1] at pixel positions (x, y), bilinear, mirrored at the border."""
  height, width = still.shape[:2]
  x, y = _folded(pixels[..., 0] - 0.5, width - 1), _folded(pixels[..., 1] - 0.5, height - 1)
  left, top = np.floor(x).astype(int), np.floor(y).astype(int)
  right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
  x, y = (x - left)[..., None], (y - top)[..., None]
  upper = still[top, left] * (1 - x) + still[top, right] * x
  lower = still[bottom, left] * (1 - x) + still[bottom, right] * x
  return (upper * (1 - y) + lower * y) / 255


def _folded(x, most: int):
  """Positions on a line that is reflected at 0 and at `most`, as positions between the two."""
  return most - np.abs(np.mod(x, 2 * most) - most)


def _tracks(rng: np.random.Generator, source: Views, count: int) -> Tracks:
  """Points that stand still, drawn from the pixels of all source frames."""
  depth, cameras = np.asarray(source.depth), source.cameras
  frame, row, column = np.unravel_index(rng.integers(depth.size, size=count), depth.shape)
  lens, poses = np.asarray(cameras.intrinsics), np.asarray(cameras.world_from_camera)
  local = np.linalg.inv(lens[0]) @ np.stack([column + 0.5, row + 0.5, np.ones(count)])
  local = local.T * depth[frame, row, column, None]
  world = np.einsum("nij,nj->ni", poses[frame, :3, :3], local) + poses[frame, :3, 3]
  # A floor before a wall hides nothing of itself.
  seen = np.einsum("fji,nfj->nfi", poses[:, :3, :3], world[:, None] - poses[None, :, :3, 3])
  pixels = seen @ lens[0].T
  pixels = pixels[..., :2] / np.maximum(pixels[..., 2:], 1e-6)
  size = (cameras.width, cameras.height)
  visible: Any = (seen[..., 2] > 0) & (pixels >= 0).all(-1) & (pixels < size).all(-1)
  points: Any = np.repeat(world[:, None], len(poses), axis=1).astype(np.float32)
  return Tracks(points=points, visible=visible, valid=np.full_like(visible, True))
