"""Exact tracks of points that the source camera sees."""

from typing import Any

import numpy as np
from jaxtyping import Int

from d4s_jax.data.synthetic.scene import Scene
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Tracks, Views


def sample_tracks(
  rng: np.random.Generator,
  scene: Scene,
  source: Views,
  instances: Int[np.ndarray, "f h w"],
  count: int,
) -> Tracks:
  """Follows `count` points, drawn from the pixels of all source frames, through all of them.

  Half of the points lie on moving solids when any is seen; the others anywhere.
  """
  moving = [i + 1 for i, body in enumerate(scene.bodies) if body.motion.moves]
  on_moving = np.flatnonzero(np.isin(instances, moving))
  pixels = rng.integers(instances.size, size=count)
  if len(on_moving):
    movers = (count + 1) // 2
    pixels[:movers] = on_moving[rng.integers(len(on_moving), size=movers)]
  frame, row, column = np.unravel_index(pixels, instances.shape)
  number = instances[frame, row, column]
  points = _unproject(source, frame, row, column)
  times = np.asarray(source.times)
  positions: Any = scene.positions(points, number, times[frame], times)
  visible: Any = scene.sees(positions, number, source.cameras, times)
  return Tracks(points=positions, visible=visible, valid=np.full_like(visible, True))


def _unproject(source, frame, row, column):
  """World points of some pixels of some frames."""
  focal, center = camera_geometry.focal_and_center(source.cameras.intrinsics)
  slopes = (np.stack([column, row], axis=-1) + 0.5 - center[frame]) / focal[frame]
  local = np.append(slopes, np.ones((len(slopes), 1)), axis=1)
  local *= source.depth[frame, row, column, None]
  pose = source.cameras.world_from_camera[frame]
  return np.einsum("nij,nj->ni", pose[:, :3, :3], local) + pose[:, :3, 3]
