"""Compressed PLY, SuperSplat's layout: chunks of 256 Gaussians, each in 16 bytes.

Positions, the logarithms of scales and colours are fractions of the range that they have within a
chunk; quaternions are their three smaller components. Axes are ours, as in plain PLY.
"""

import os

import numpy as np
from jaxtyping import Float, UInt32

from d4s_jax.formats.visible import morton, visible, write_bytes
from d4s_jax.geometry import harmonics
from d4s_jax.types import Gaussians

_CHUNK = 256
# Logarithms that float16 readers stand, as SuperSplat cuts them.
_LOG_SCALES = (-20.0, 20.0)


def write(path: str | os.PathLike, gaussians: Gaussians) -> None:
  """Writes Gaussians of one scene at one time, [n], in an order that keeps neighbours together.

  Raises:
    ValueError: a value is NaN or infinite, or nothing is visible.
  """
  g = visible(gaussians)
  order = morton(g.means)
  scales = np.clip(np.log(np.maximum(g.scales[order], 1e-30)), *_LOG_SCALES)
  positions, low, high = _fractions(g.means[order])
  sizes, least, most = _fractions(scales)
  # Colours of degree 0, beyond [0, 1] too; opacity has no range of its own.
  colours, dark, bright = _fractions(0.5 + harmonics.C0 * g.harmonics[order, 0])
  words = np.stack(
    [
      _pack(positions, (11, 10, 11)),
      _smallest_three(g.quaternions[order]),
      _pack(sizes, (11, 10, 11)),
      _pack(np.concatenate([colours, g.opacities[order, None]], axis=1), (8, 8, 8, 8)),
    ],
    axis=1,
  )
  chunks = np.concatenate([low, high, least, most, dark, bright], axis=1)
  ends = [("min", "xyz"), ("max", "xyz")]
  ranges = [f"{end}_{axis}" for end, axes in ends for axis in axes]
  ranges += [f"{end}_scale_{axis}" for end, axes in ends for axis in axes]
  ranges += [f"{end}_{axis}" for end, _ in ends for axis in "rgb"]
  header = ["ply", "format binary_little_endian 1.0", f"element chunk {len(chunks)}"]
  header += [f"property float {name}" for name in ranges]
  header += [f"element vertex {len(words)}"]
  header += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
  rest = g.harmonics[order, 1:]
  if rest.shape[1]:
    header += [f"element sh {len(words)}"]
    header += [f"property uchar f_rest_{i}" for i in range(3 * rest.shape[1])]
  contents = "\n".join([*header, "end_header"]).encode("ascii") + b"\n"
  contents += chunks.astype("<f4").tobytes() + words.astype("<u4").tobytes()
  # A byte counts 256ths of the range -4 to 4; all red, then green, then blue.
  steps = np.clip(np.floor((np.swapaxes(rest, 1, 2) / 8 + 0.5) * 256), 0, 255)
  write_bytes(path, contents + steps.astype("u1").tobytes())


def _fractions(values: Float[np.ndarray, "n c"]):
  """Values as fractions of the range of their chunk, and the ends of the ranges [chunks c]."""
  count, starts = len(values), np.arange(0, len(values), _CHUNK)
  low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
  span = np.where(high > low, high - low, 1)
  chunk = np.arange(count) // _CHUNK
  return (values - low[chunk]) / span[chunk], low, high


def _pack(fractions: Float[np.ndarray, "n c"], bits: tuple[int, ...]) -> UInt32[np.ndarray, "n"]:
  """The first column takes the highest bits."""
  word = np.zeros(len(fractions), np.uint32)
  for column, width in zip(fractions.T, bits, strict=True):
    most = 2**width - 1
    step = np.clip(np.floor(column * most + 0.5), 0, most).astype(np.uint32)
    word = (word << np.uint32(width)) | step
  return word


def _smallest_three(quaternions: Float[np.ndarray, "n 4"]) -> UInt32[np.ndarray, "n"]:
  """Two bits name the largest of w x y z; ten each hold the others, over the root of a half."""
  largest = np.argmax(np.abs(quaternions), axis=1)
  rows = np.arange(len(quaternions))
  signed = quaternions * np.where(quaternions[rows, largest] < 0, -1, 1)[:, None]
  others = np.array([[j for j in range(4) if j != i] for i in range(4)])[largest]
  three = np.take_along_axis(signed, others, axis=1) * 2**-0.5 + 0.5
  return (largest.astype(np.uint32) << np.uint32(30)) | _pack(three, (10, 10, 10))
