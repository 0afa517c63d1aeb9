"""SOG version 2 of PlayCanvas: a zip of a description and lossless WebP, a pixel a Gaussian.

Positions have 16 bits on a logarithmic scale, quaternions three bytes, scales and colours a table
of 256 numbers each, opacity a byte. Harmonics above degree 0 are rows of a palette of at most
65,536, of a table of 256 numbers too; up to so many Gaussians each has a row of its own. Axes are
ours, as in plain PLY.
"""

import io
import json
import os
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.spatial import KDTree

from d4s_jax.formats.visible import byte, morton, visible, write_bytes
from d4s_jax.types import Gaussians

_TABLE = 256
# Rows of the palette of harmonics, which labels of 16 bits name, and how many lie side by side.
_MOST_ROWS, _ACROSS = 2**16, 64
# Rounds of moving a table's numbers to the middle of what is nearest to them.
_ROUNDS = 8
# So that the same scene is the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


def write(path: str | os.PathLike, gaussians: Gaussians) -> None:
  """Writes Gaussians of one scene at one time, [n], in an order that keeps neighbours together.

  Raises:
    ValueError: a value is NaN or infinite, or nothing is visible.
  """
  g = visible(gaussians)
  order = morton(g.means)
  count = len(order)
  places = np.sign(g.means[order]) * np.log1p(np.abs(g.means[order]))
  low, high = places.min(axis=0), places.max(axis=0)
  fixed = np.round((places - low) / np.maximum(high - low, 1e-12) * 65535).astype(np.uint32)
  sizes, size_table = _table(np.log(np.maximum(g.scales[order], 1e-30)))
  colours, colour_table = _table(g.harmonics[order, 0])
  full = np.full((count, 1), 255, np.uint8)
  planes = {
    "means_l": np.concatenate([(fixed & 255).astype(np.uint8), full], axis=1),
    "means_u": np.concatenate([(fixed >> 8).astype(np.uint8), full], axis=1),
    "scales": np.concatenate([sizes, full], axis=1),
    "quats": _smallest_three(g.quaternions[order]),
    "sh0": np.concatenate([colours, byte(255 * g.opacities[order, None])], axis=1),
  }
  description: dict[str, Any] = {
    "version": 2,
    "asset": {"generator": "d4s_jax"},
    "count": count,
    "antialias": False,
    "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": _files("means_l", "means_u")},
    "scales": {"codebook": size_table.tolist(), "files": _files("scales")},
    "quats": {"files": _files("quats")},
    "sh0": {"codebook": colour_table.tolist(), "files": _files("sh0")},
  }
  pictures = {name: _picture(plane) for name, plane in planes.items()}
  if (bands := round(g.harmonics.shape[1] ** 0.5) - 1) > 0:
    labels, rows = _palette(g.harmonics[order, 1:].reshape(count, -1))
    numbers, rest_table = _table(rows.reshape(-1, 3))
    numbers = np.concatenate([numbers, np.full((len(numbers), 1), 255, np.uint8)], axis=1)
    pictures["shN_centroids"] = _picture(numbers, _ACROSS * ((bands + 1) ** 2 - 1))
    low_high = np.stack([labels & 255, labels >> 8], axis=1).astype(np.uint8)
    blank = np.tile(np.array([[0, 255]], np.uint8), (count, 1))
    pictures["shN_labels"] = _picture(np.concatenate([low_high, blank], axis=1))
    description["shN"] = {
      "count": len(rows),
      "bands": bands,
      "codebook": rest_table.tolist(),
      "files": _files("shN_centroids", "shN_labels"),
    }
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w") as archive:
    archive.writestr(zipfile.ZipInfo("meta.json", _DATE), json.dumps(description))
    for name, picture in pictures.items():
      archive.writestr(zipfile.ZipInfo(f"{name}.webp", _DATE), picture)
  write_bytes(path, packed.getvalue())


def _files(*names: str) -> list[str]:
  return [f"{name}.webp" for name in names]


def _table(values: Float[np.ndarray, "n 3"]):
  """256 numbers, rising, and which of them is nearest to each value [n 3]."""
  flat = np.sort(values, axis=None).astype(np.float64)
  # Half by how many values there are, half by where: no tail is left without a number.
  spread = np.linspace(flat[0], flat[-1], _TABLE // 2)
  common = np.quantile(flat, np.linspace(0, 1, _TABLE - len(spread)))
  table = np.sort(np.concatenate([spread, common]))
  sums = np.concatenate([[0], np.cumsum(flat)])
  for _ in range(_ROUNDS):
    cuts = np.searchsorted(flat, (table[1:] + table[:-1]) / 2)
    edges = np.concatenate([[0], cuts, [len(flat)]])
    counts = np.diff(edges)
    table = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), table)
  table = np.sort(table).astype(np.float32)
  return np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint8), table


def _palette(values: Float[np.ndarray, "n c"]):
  """At most 65,536 rows [k c], and which of them stands for each of the values [n]."""
  if len(values) <= _MOST_ROWS:
    return np.arange(len(values)), values
  some = np.random.default_rng(0).choice(len(values), _MOST_ROWS, replace=False)
  labels = KDTree(values[some]).query(values, workers=-1)[1]
  sums = np.stack([np.bincount(labels, column, _MOST_ROWS) for column in values.T], axis=1)
  counts = np.bincount(labels, minlength=_MOST_ROWS)
  # Equal values leave rows that stand for none.
  rows = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], values[some])
  return labels, rows.astype(np.float32)


def _smallest_three(quaternions: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
  """The smaller three of w x y z in a byte each; the fourth names the one that is left out."""
  largest = np.argmax(np.abs(quaternions), axis=1)
  rows = np.arange(len(quaternions))
  signed = quaternions * np.where(quaternions[rows, largest] < 0, -1, 1)[:, None]
  others = np.array([[j for j in range(4) if j != i] for i in range(4)])[largest]
  three = byte((np.take_along_axis(signed, others, axis=1) * 2**-0.5 + 0.5) * 255)
  return np.concatenate([three, (252 + largest)[:, None].astype(np.uint8)], axis=1)


def _picture(plane: UInt8[np.ndarray, "n 4"], width: int | None = None) -> bytes:
  """A pixel for each, row by row; sides are multiples of 4, about equal unless a width is given."""
  width = width or -(-int(np.ceil(len(plane) ** 0.5)) // 4) * 4
  height = -(-len(plane) // (4 * width)) * 4
  pixels = np.zeros((height * width, 4), np.uint8)
  pixels[: len(plane)] = plane
  contents = io.BytesIO()
  image = Image.fromarray(pixels.reshape(height, width, 4))
  image.save(contents, "WEBP", lossless=True, exact=True, quality=30, method=0)
  return contents.getvalue()
