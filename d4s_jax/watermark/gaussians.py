"""A mark in the colours of Gaussians, which travels with a scene into every format.

A Gaussian's red and green, in steps of 8 of 255, name a cell; the key draws an angle for each cell;
the Gaussian's blue is moved most of the way to the nearest place of a comb whose teeth are 10 of
255 apart and whose offset is that angle (quantisation index modulation of Chen and Wornell, 2001,
with their distortion compensation). So the mark of a Gaussian depends on its own colour alone: not
on order, place, size or number, nor on time, since colours don't deform. A comb is much wider than
what formats round: 1 of 255 in .splat, 2 in .spz.

Evidence comes from cells, not Gaussians: a scene of few colours can bear little of it.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from d4s_jax.geometry import AnyArray, harmonics
from d4s_jax.types import DynamicGaussians
from d4s_jax.watermark import keys
from d4s_jax.watermark.evidence import NOTHING, Evidence, log10_bound, score

# Of colours that run to 255: the width of a cell, and the distance between teeth of the comb.
_CELL, _TOOTH = 8, 10.0
_CELLS = 256 // _CELL
# How much of the way to the tooth blue is moved: what is left hides the comb a little, and costs
# hardly any evidence.
_SHARE = 0.8
# Colours nearer to black or white than this are left alone: formats clip them.
_MARGIN = 3.0


def mark(dynamic: DynamicGaussians, key: str) -> DynamicGaussians:
  """The scene with a mark; blue changes by at most 4 of 255, by 2 to 3 in the mean square.

  Args:
    dynamic: one scene.
    key: of the mark.
  """
  arrays = np.array(dynamic.harmonics, np.float32)
  colors = colors_of(arrays)
  inside, cell = _cells(colors)
  offset = _angles(key)[cell] / (2 * np.pi)
  blue = 255 * colors[inside, 2].astype(np.float64) / _TOOTH
  moved = blue + _SHARE * (np.round(blue - offset) + offset - blue)
  arrays[inside, 0, 2] = (moved * _TOOTH / 255 - 0.5) / harmonics.C0
  return dataclasses.replace(dynamic, harmonics=arrays)


def detect(colors: Float[AnyArray, "n 3"], key: str) -> Evidence:
  """Looks for the mark.

  Args:
    colors: of all Gaussians that can be seen, degree 0 alone, 0.5 + C0 c; in any order.
    key: of the mark.
  """
  found = np.asarray(colors, np.float64)
  inside, cell = _cells(found)
  if not inside.any():
    return NOTHING
  turn = 2 * np.pi * 255 * found[inside, 2] / _TOOTH
  cosines, sines = (np.bincount(cell, part, _CELLS**2) for part in (np.cos(turn), np.sin(turn)))
  count = np.bincount(cell, minlength=_CELLS**2)
  # Unmarked, the sum of a cell grows as the root of its count.
  sums = (cosines + 1j * sines) / np.sqrt(np.maximum(count, 1))
  reached = float(score(sums, _angles(key)))
  return Evidence(reached, log10_bound(reached))


def colors_of(coefficients: Float[AnyArray, "n k 3"]) -> Float[np.ndarray, "n 3"]:
  """Colours of degree 0, in [0, 1] where they can be shown."""
  return 0.5 + harmonics.C0 * np.asarray(coefficients)[:, 0]


def _cells(colors):
  """Which Gaussians can bear the mark, and the cell of each of them."""
  levels = 255 * colors.astype(np.float64)
  inside = ((levels > _MARGIN) & (levels < 255 - _MARGIN)).all(axis=1)
  red, green = (levels[inside, :2] // _CELL).astype(np.int64).T
  return inside, red * _CELLS + green


def _angles(key: str) -> Float[np.ndarray, "c"]:
  return keys.angles(key, "gaussians", _CELLS**2)
