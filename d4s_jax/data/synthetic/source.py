"""SyntheticScenes: clips of procedural scenes, a pure function of (seed, split, index)."""

from typing import Any

import numpy as np
from einops import repeat

from d4s_jax.data.synthetic.camera_paths import near_path, off_path
from d4s_jax.data.synthetic.caption import caption
from d4s_jax.data.synthetic.compose import Setting, is_clear, random_setting
from d4s_jax.data.synthetic.tracks import sample_tracks
from d4s_jax.data.transforms import check_frame_count
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.geometry import poses
from d4s_jax.types import Cameras, Clip, Views

_SPLITS = {"train": 0, "heldout": 1}
_KINDS = ("static", "dynamic", "mixed")
# Chance of motion in a clip of the mixed kind.
_DYNAMIC_SHARE = 0.7
# A solid is seen, and named in the caption, if it covers this fraction of a source frame.
_SEEN = 0.002


class SyntheticScenes:
  """Clips of textured rooms, yards and landscapes with solids that move or stand.

  Everything is exact: depth, poses, instances, tracks. A clip depends on (seed, split, index) and
  on the sizes asked for; the splits share neither scenes nor textures.

  Args:
    seed: of all scenes.
    split: "train" or "heldout".
    kind: "static" (nothing moves), "dynamic" (something does) or "mixed".
    frames: source frames, 1 + 4k.
    height: image height, pixels.
    width: image width, pixels.
    views: target views.
    off_path: fraction of the target views that leave the source camera's path.
    tracks: number of point tracks.
    length: number of clips.

  Raises:
    ValueError: a name is unknown or a number is out of range.
  """

  def __init__(
    self,
    seed: int = 0,
    split: str = "train",
    kind: str = "mixed",
    *,
    frames: int = 9,
    height: int = 64,
    width: int = 64,
    views: int = 6,
    off_path: float = 0.5,
    tracks: int = 256,
    length: int = 100_000,
  ):
    if split not in _SPLITS:
      raise ValueError(f"Unknown split {split!r}; expected one of {', '.join(_SPLITS)}.")
    if kind not in _KINDS:
      raise ValueError(f"Unknown kind {kind!r}; expected one of {', '.join(_KINDS)}.")
    check_frame_count(frames)
    if min(height, width, length) < 1 or min(views, tracks) < 0 or not 0 <= off_path <= 1:
      raise ValueError(
        f"Clips of {height}x{width} pixels, {views} views ({off_path} off the path), {tracks} "
        f"tracks, {length} in all; expected positive sizes and a fraction from 0 to 1."
      )
    self._entropy = (seed, _SPLITS[split])
    self._kind, self._length = kind, length
    self._frames, self._height, self._width = frames, height, width
    self._views, self._off_path, self._tracks = views, off_path, tracks

  def __len__(self) -> int:
    return self._length

  def setting(self, index: int) -> Setting:
    """The scene, camera path and field of view of a clip."""
    self._check(index)
    rng = np.random.default_rng((*self._entropy, index, 0))
    dynamic = self._kind == "dynamic"
    if self._kind == "mixed":
      dynamic = rng.random() < _DYNAMIC_SHARE
    return random_setting(rng, dynamic, self._entropy)

  def read(self, index: int) -> Clip:
    """Draws one clip; its caption is text."""
    setting = self.setting(index)
    # Views and tracks have their own chance, so that the scene does not depend on their number.
    rng = np.random.default_rng((*self._entropy, index, 1))
    times = np.linspace(0, 1, self._frames, dtype=np.float32)
    source_poses = setting.path.at(times)
    target_poses, target_times = self._targets(rng, setting)
    cameras = self._cameras(setting, np.concatenate([source_poses, target_poses]))
    # Any: the pytrees are typed for JAX arrays, and take NumPy's.
    scene: Any = setting.scene
    all_times: Any = np.concatenate([times, target_times])
    dynamic: Any = np.asarray(scene.dynamic)
    metres: Any = np.float32(1)
    images, depth, instances = scene.render(cameras, all_times)
    source, target = (
      Views(images=images[s], depth=depth[s], cameras=cameras[s], times=all_times[s])
      for s in (slice(None, self._frames), slice(self._frames, None))
    )
    instances = instances[: self._frames]
    return Clip(
      source=source,
      target=target,
      tracks=sample_tracks(rng, scene, source, instances, self._tracks),
      instances=instances,
      dynamic=dynamic,
      scale=metres,
      text=caption(setting, _seen(instances, len(scene.bodies))),
    )

  def _check(self, index: int) -> None:
    if not 0 <= index < self._length:
      raise IndexError(f"Clip {index}; expected 0 to {self._length - 1}.")

  def _cameras(self, setting: Setting, world_from_camera) -> Cameras:
    intrinsics: Any = camera_geometry.intrinsics_from_fov(setting.fov, self._height, self._width)
    return Cameras(
      world_from_camera=world_from_camera.astype(np.float32),
      intrinsics=repeat(intrinsics, "i j -> v i j", v=len(world_from_camera)),
      height=self._height,
      width=self._width,
    )

  def _targets(self, rng, setting: Setting):
    """Poses and times of the target views, in order of time."""
    times = np.sort(rng.random(self._views)).astype(np.float32)
    away = rng.permutation(self._views) < round(self._off_path * self._views)
    views = near_path(rng, setting.path, times)
    missing = away
    while missing.any():  # ends, because near the path every place is clear
      views[missing] = off_path(rng, setting.path, int(missing.sum()))
      eyes = poses.compose(setting.scene.room_from_world[None], views)[:, :3, 3]
      missing = away & ~is_clear(setting.scene.bodies, eyes, times)
    return views, times


def _seen(instances, bodies: int) -> list[int]:
  """Indices of the solids that cover enough of some frame to be spoken of."""
  covered = [(instances == number + 1).mean(axis=(1, 2)).max() for number in range(bodies)]
  return [number for number, share in enumerate(covered) if share > _SEEN]
