"""Textures: smooth aperiodic noise images with levels of detail, looked up at scattered points.

An image-sized pattern with a short period, or one near the pixel grid's limit, makes matching
ambiguous: a model then learns nothing about depth from colour. These textures are therefore noise
of many wavelengths, and a lookup takes the level of detail whose shortest wavelength is about
SHORTEST_PIXELS pixels in the picture.
"""

import functools

import numpy as np
from jaxtyping import Float

# Texels along one side of the finest level; a texture repeats after one tile, its whole side.
SIZE = 256
SHORTEST_PIXELS = 8.0
# Levels of detail lie so close that no seam shows where one takes over from the next.
_OCTAVES = 6
_LEVELS_PER_OCTAVE = 4
_LEVELS = _OCTAVES * _LEVELS_PER_OCTAVE
# The shortest wavelength that a level holds, in its own texels: short of its sampling limit by two.
_SHORTEST_TEXELS = 4.0
# The longest wavelength is about a quarter of a tile, so that no tile is a single blob.
_LONGEST = 0.25

_OCTAVE = np.arange(_LEVELS) // _LEVELS_PER_OCTAVE
_SIDES = SIZE >> _OCTAVE
_STARTS = np.concatenate([[0], np.cumsum(_SIDES**2)])[:-1]


@functools.lru_cache(maxsize=4)
def atlas(*seed: int) -> Float[np.ndarray, "textures texels"]:
  """All textures of a seed, values in [0, 1], each as its levels of detail one after the other."""
  rng = np.random.default_rng(seed)
  images = [pattern(rng) for pattern in _PATTERNS for _ in range(2)]
  return np.stack([_levels(image) for image in images])


def lookup(
  texture: Float[np.ndarray, "texels"],
  u: Float[np.ndarray, "r"],
  v: Float[np.ndarray, "r"],
  footprint: Float[np.ndarray, "r"],
) -> Float[np.ndarray, "r"]:
  """Texture values in [0, 1] at positions in tiles; `footprint` is a pixel's width in tiles."""
  texels = np.maximum(footprint, 1e-9) * np.float32(SIZE * SHORTEST_PIXELS / _SHORTEST_TEXELS)
  level = np.log2(texels) * _LEVELS_PER_OCTAVE + 0.5
  level = np.clip(level, 0, _LEVELS - 1).astype(np.intp)
  side, start = _SIDES[level], _STARTS[level]
  scale = side.astype(np.float32)
  x, y = u * scale, v * scale
  column, row = np.floor(x), np.floor(y)
  x -= column
  y -= row
  wrap = side - 1
  left, top = column.astype(np.intp) & wrap, row.astype(np.intp) & wrap
  right, bottom = (left + 1) & wrap, ((top + 1) & wrap) * side + start
  top = top * side + start
  upper = texture[top + left]
  upper += (texture[top + right] - upper) * x
  lower = texture[bottom + left]
  lower += (texture[bottom + right] - lower) * x
  return upper + (lower - upper) * y


def _levels(image):
  """The levels of detail of one texture, flat: each is smoothed before it is thinned out."""
  spectrum = np.fft.rfft2(image)
  frequency = _frequency()
  levels = []
  for level, octave in enumerate(_OCTAVE):
    shortest = _SHORTEST_TEXELS / SIZE * 2 ** (level / _LEVELS_PER_OCTAVE)
    smooth = np.fft.irfft2(spectrum * np.exp(-((frequency * shortest) ** 2)), s=(SIZE, SIZE))
    levels.append(smooth[:: 1 << octave, :: 1 << octave].ravel())
  return np.concatenate(levels).astype(np.float32)


def _frequency(stretch: float = 1.0):
  """Cycles per tile of each coefficient of a real Fourier transform."""
  vertical, horizontal = np.fft.fftfreq(SIZE) * SIZE, np.fft.rfftfreq(SIZE) * SIZE
  return np.hypot(vertical[:, None], horizontal[None] * stretch)


def _noise(rng, slope: float, longest: float = _LONGEST, stretch: float = 1.0):
  """Gaussian noise of unit variance whose amplitude falls with frequency to the power `slope`."""
  frequency = _frequency(stretch)
  amplitude = np.maximum(frequency, 1) ** -slope * -np.expm1(-((frequency * longest) ** 4))
  phases = np.exp(2j * np.pi * rng.random(frequency.shape))
  noise = np.fft.irfft2(amplitude * phases, s=(SIZE, SIZE))
  return noise / noise.std()


def _clouds(rng):
  return np.clip(0.5 + 0.3 * _noise(rng, 1.6), 0, 1)


def _patches(rng):
  return 0.5 + 0.5 * np.tanh(2.5 * _noise(rng, 2.2))


def _veins(rng):
  return 0.5 + 0.5 * np.sin(3.5 * _noise(rng, 2.6))


def _spots(rng):
  return 0.5 + 0.5 * np.tanh(4 * (_noise(rng, 2.5, longest=0.08) - 0.4))


def _grain(rng):
  return np.clip(0.5 + 0.3 * _noise(rng, 1.5, stretch=0.25), 0, 1)


def _islands(rng):
  return np.clip(_patches(rng) + 0.25 * _noise(rng, 1.4, longest=0.1), 0, 1)


_PATTERNS = (_clouds, _patches, _veins, _spots, _grain, _islands)
COUNT = 2 * len(_PATTERNS)
