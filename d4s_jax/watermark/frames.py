"""A mark in the pictures of a video: one faint pattern, the same in all frames (spread spectrum).

The pattern is periodic, with a tile of half the frame's height: waves of all directions, 7 to 48
periods a frame, whose phases the key draws. It is added to brightness. What looks for it makes
every picture 256 pixels high, divides what is left after smoothing by its local size, adds all
frames up, folds the sum to one tile for each scale that a crop may have led to, and correlates it
with the pattern at all shifts by Fourier transforms. So neither a resize, nor a crop, nor a mirror,
nor a cut in time hides it, and every frame adds evidence.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from d4s_jax.watermark import keys
from d4s_jax.watermark.evidence import NOTHING, Evidence, log10_bound, score

# Root mean square of the pattern, of 255: 46 dB.
_STRENGTH = 1.2
# The height at which marks are looked for, and pixels of a tile there, both ways.
_HEIGHT, _TILE = 256, 128
# Periods a tile. Slower ones drown in the picture, faster ones in the codec.
_SLOWEST, _FASTEST = 3.5, 24.0
# Scales at which a crop may show the pattern: from a picture with margins to half of one.
_SCALES = np.exp(np.arange(math.log(0.7), math.log(2.2), 0.007))
# Radius of smoothing, canonical pixels; and how far a pixel may stand out, in local sizes.
_SMOOTH, _MOST = 10.0, 2.0
# BT.601, as JPEG has it; H.264's differs too little to matter.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Smaller or longer pictures show no pattern.
_LEAST_SIDE, _MOST_ASPECT = 16, 16
# Shapes whose sums are kept in memory; a window that is dragged goes through many.
_MOST_SHAPES = 8


def mark(
  frames: Float[np.ndarray, "f h w 3"], key: str, stretch: float = 1.0
) -> Float[np.ndarray, "f h w 3"]:
  """The frames with the pattern; about 46 dB from what they were, in [0, 1].

  Args:
    frames: RGB in [0, 1], of any size.
    key: of the mark.
    stretch: width of a pixel over its height, where the picture is shown so that it isn't 1.
  """
  _, height, width, _ = frames.shape
  return np.clip(frames + _pattern(key, height, width, stretch)[:, :, None], 0, 1)


def levels(key: str) -> Float[np.ndarray, "t t"]:
  """One tile of what `mark` adds, of 255, for programs that mark what they draw themselves."""
  return _STRENGTH * _tile(key)


# A viewer draws one picture after another of the same size.
@functools.lru_cache(maxsize=4)
def _pattern(key: str, height: int, width: int, stretch: float) -> Float[np.ndarray, "h w"]:
  """What is added to a picture in [0, 1]."""
  step = 2 * _TILE / height
  rows = (np.arange(height) + 0.5) * step - 0.5
  columns = (np.arange(width) + 0.5) * step * stretch - 0.5
  grid = np.meshgrid(rows, columns, indexing="ij")
  pattern = ndimage.map_coordinates(_tile(key), grid, order=3, mode="grid-wrap")
  return (_STRENGTH / 255 * pattern).astype(np.float32)


def detect(frames: Iterable[Float[np.ndarray, "_ _ 3"]], key: str) -> Evidence:
  """Looks for the mark in pictures; of those whose shapes differ, in the most of one shape.

  Args:
    frames: RGB in [0, 1]; one picture is enough to look at, many show more.
    key: of the mark.
  """
  totals: dict[tuple[int, ...], np.ndarray] = {}
  counts, number = collections.Counter[tuple[int, ...]](), 0
  for frame in frames:
    number += 1
    height, width, _ = frame.shape
    if min(height, width) < _LEAST_SIDE or max(height, width) > _MOST_ASPECT * min(height, width):
      continue
    # Pictures of one aspect have one shape here, whatever their size.
    residual = _residual(frame)
    shape = residual.shape
    if shape not in totals and len(totals) == _MOST_SHAPES:
      rarest = min(totals, key=counts.__getitem__)
      del totals[rarest], counts[rarest]
    totals[shape] = totals.get(shape, 0) + residual
    counts[shape] += 1
  if not counts:
    return NOTHING
  shape, count = counts.most_common(1)[0]
  return dataclasses.replace(_look(totals[shape], key), left_out=number - count)


def _look(total: Float[np.ndarray, "H W"], key: str) -> Evidence:
  """What the sum of residuals shows."""
  if not total.any():
    return NOTHING
  turned = keys.angles(key, "frames", len(_ROWS))
  # Half of the probability goes to the whole picture, where it was put; half to everything else.
  values = _spectrum(total, 1.0)
  whole = float(score(values, turned))
  found = [Evidence(whole, log10_bound(whole, 2), "the whole picture")]
  sides = {"": total, ", mirrored": total[:, ::-1]}
  places = 2 * len(sides) * len(_SCALES) * _TILE**2
  for (side, seen), scale in itertools.product(sides.items(), _SCALES):
    values = _spectrum(seen, scale)
    shifts = np.zeros((_TILE, _TILE), complex)
    shifts[_ROWS, _COLUMNS] = values * np.exp(-1j * turned)
    size = math.sqrt(np.sum(np.abs(values) ** 2) / 2)
    best = float(np.fft.ifft2(shifts).real.max()) * _TILE**2 / size if size > 0 else 0.0
    where = f"a part, {1 / scale:.0%} of the height that was marked{side}"
    found.append(Evidence(best, log10_bound(best, places), where))
  return min(found, key=lambda one: (one.log10_false, -one.score))


def _waves() -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns, in a tile's Fourier transform, of the pattern's waves: one of each pair."""
  periods = np.fft.fftfreq(_TILE, 1 / _TILE)
  rows, columns = np.meshgrid(periods, periods, indexing="ij")
  radius = np.hypot(rows, columns)
  half = (rows > 0) | ((rows == 0) & (columns > 0))
  found = np.argwhere((radius >= _SLOWEST) & (radius < _FASTEST) & half)
  return found[:, 0], found[:, 1]


_ROWS, _COLUMNS = _waves()


def _tile(key: str) -> Float[np.ndarray, "t t"]:
  """One period of the pattern, of mean 0 and mean square 1."""
  waves = np.zeros((_TILE, _TILE), complex)
  waves[_ROWS, _COLUMNS] = np.exp(1j * keys.angles(key, "frames", len(_ROWS)))
  tile = np.fft.ifft2(waves).real
  return tile / tile.std()


def _residual(frame: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "H W"]:
  """What a picture has in detail, evened out, at the height at which marks are looked for."""
  height, width, _ = frame.shape
  luma = Image.fromarray(np.asarray(255 * frame, np.float32) @ _LUMA)
  size = max(_LEAST_SIDE, round(_HEIGHT * width / height)), _HEIGHT
  luma = np.asarray(luma.resize(size, Image.Resampling.BICUBIC), np.float64)
  detail = luma - ndimage.gaussian_filter(luma, _SMOOTH)
  local = np.sqrt(ndimage.gaussian_filter(detail**2, _SMOOTH)) + 0.5
  return np.clip(detail / local, -_MOST, _MOST)


def _spectrum(residual: Float[np.ndarray, "H W"], scale: float) -> np.ndarray:
  """Phases of the pattern's waves, of size 1, in a residual folded to one tile.

  Args:
    residual: of all frames together.
    scale: tiles are so many times as large as in a whole picture.
  """
  step = scale * _HEIGHT / 2 / _TILE  # pixels of the residual to one of the tile
  tiles = [math.ceil(size / (step * _TILE)) for size in residual.shape]
  places = [(np.arange(count * _TILE) + 0.5) * step - 0.5 for count in tiles]
  if step > 1:
    residual = ndimage.gaussian_filter(residual, 0.4 * step)
  grid = np.meshgrid(*places, indexing="ij")
  sampled = ndimage.map_coordinates(residual, grid, order=1, mode="constant")
  folded = sampled.reshape(tiles[0], _TILE, tiles[1], _TILE).sum(axis=(0, 2))
  values = np.fft.fft2(folded)[_ROWS, _COLUMNS]
  size = np.abs(values)
  return np.divide(values, size, out=np.zeros_like(values), where=size > 0)
