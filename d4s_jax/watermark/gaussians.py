"""A mark in the colours of Gaussians, which travels with a scene into every format.

A Gaussian's red and green, in steps of 8 of 255, name a cell; the key draws an angle for each cell;
the Gaussian's blue is moved most of the way to the nearest place of a comb whose teeth are 10 of
255 apart and whose offset is that angle (quantisation index modulation of Chen and Wornell, 2001,
with their distortion compensation). So the mark of a Gaussian depends on its own colour alone: not
on order, place, size or number, nor on time, since colours don't deform. A comb is much wider than
what formats round: 1 of 255 in .splat, 2 in .spz. What looks for it also undoes edits of
all colours, one factor or one sum.

Evidence comes from cells, not Gaussians: a scene of few colours can bear little of it.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from d4s_jax.geometry import AnyArray, harmonics
from d4s_jax.types import DynamicGaussians
from d4s_jax.watermark import keys
from d4s_jax.watermark.evidence import Evidence, log10_bound, score

# Of colours that run to 255: the width of a cell, and the distance between teeth of the comb.
_CELL, _TOOTH = 8, 10.0
_CELLS = 256 // _CELL
# How much of the way to the tooth blue is moved: what is left hides the comb a little, and costs
# hardly any evidence.
_SHARE = 0.8
# Edits of all colours that are undone before the mark is looked for: factors, and sums of 255.
# Steps are so small that the comb stays in place between them.
_FACTORS = np.exp(np.arange(-0.25, 0.2501, 0.004))
_SUMS = np.arange(-40, 41, 1.0)
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
  given = np.asarray(colors, np.float64)
  plain = _score(given, key)
  # Half of the probability goes to colours as they are, half to all edits.
  found = [Evidence(plain, log10_bound(plain, 2))]
  places = 2 * (len(_FACTORS) + len(_SUMS))
  edits = [(given / x, f"colours multiplied by {x:.2f}") for x in _FACTORS]
  edits += [(given - x / 255, f"colours with {x:+.0f} of 255 added") for x in _SUMS]
  for edited, where in edits:
    reached = _score(edited, key)
    found.append(Evidence(reached, log10_bound(reached, places), where))
  return min(found, key=lambda one: (one.log10_false, -one.score))


def _score(colors: Float[np.ndarray, "n 3"], key: str) -> float:
  inside, cell = _cells(colors)
  if not inside.any():
    return 0.0
  turn = 2 * np.pi * 255 * colors[inside, 2] / _TOOTH
  cosines, sines = (np.bincount(cell, part, _CELLS**2) for part in (np.cos(turn), np.sin(turn)))
  count = np.bincount(cell, minlength=_CELLS**2)
  # Unmarked, the sum of a cell grows as the root of its count.
  sums = (cosines + 1j * sines) / np.sqrt(np.maximum(count, 1))
  return float(score(sums, _angles(key)))


def colors_of(coefficients: Float[AnyArray, "n k 3"]) -> Float[np.ndarray, "n 3"]:
  """Colours of degree 0, in [0, 1] where they can be shown."""
  return 0.5 + harmonics.C0 * np.asarray(coefficients)[:, 0]


def _cells(colors):
  """Which Gaussians can bear the mark, and the cell of each of them."""
  levels = 255 * colors.astype(np.float64)
  inside = ((levels > _MARGIN) & (levels < 255 - _MARGIN)).all(axis=1)
  red, green = (levels[inside, :2] // _CELL).astype(np.int64).T
  return inside, red * _CELLS + green


@functools.lru_cache(maxsize=8)
def _angles(key: str) -> Float[np.ndarray, "c"]:
  return keys.angles(key, "gaussians", _CELLS**2)
