"""Pixels of one frame, carried to another one by depth and cameras."""

import numpy as np
from jaxtyping import Bool, Float

from d4s_jax.curation.sample import Sample
from d4s_jax.geometry import cameras as camera_geometry


def carried(
  sample: Sample, one: int, other: int
) -> tuple[Bool[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
  """For each pixel of frame `one`: whether frame `other` sees its place, and what differs there.

  Returns:
    Seen (in the picture, depth known in both); log of depth there over the depth it should have
    (negative where something is in front); absolute difference of brightness.
  """
  assert sample.cameras is not None and sample.depth is not None
  grey = sample.grey()
  height, width = grey.shape[1:]
  points = camera_geometry.unproject(sample.depth[one], sample.cameras[one]).reshape(1, -1, 3)
  pixels, z = camera_geometry.project(points, sample.cameras[other : other + 1])
  x, y = (pixels[0] - 0.5).T
  inside = (z[0] > 1e-3) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
  column = np.clip(np.round(np.where(inside, x, 0)), 0, width - 1).astype(int)
  row = np.clip(np.round(np.where(inside, y, 0)), 0, height - 1).astype(int)
  there = sample.depth[other][row, column]
  seen = inside & (sample.depth[one].ravel() > 0) & (there > 0)
  ratio = np.where(seen, np.log(np.where(seen, there, 1) / np.where(seen, z[0], 1)), 0)
  change = np.abs(grey[other][row, column] - grey[one].ravel())
  shape = (height, width)
  return seen.reshape(shape), ratio.reshape(shape), change.reshape(shape)
