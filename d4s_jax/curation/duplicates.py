"""Clips that show the same thing: perceptual hashes, compared with all clips that were kept."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from d4s_jax.curation.sample import Sample

# Frames of a clip that are hashed, and bits in which two of them may differ on average.
HASHES, _DIFFER = 3, 6
# A hash in parts: two that differ in fewer bits than there are parts share one.
_BANDS, _BAND_BITS = 8, 8
# Hashes of pictures with so little in them say nothing.
_FLAT = 0.01


def hashes(sample: Sample) -> list[int]:
  """Difference hashes (64 bits) of a few frames; [] for pictures without contrast."""
  grey = sample.grey()
  chosen = np.linspace(0, len(grey) - 1, HASHES).round().astype(int)
  return [] if grey[chosen].std(axis=(1, 2)).min() < _FLAT else [_hash(grey[i]) for i in chosen]


def _hash(grey: Float[np.ndarray, "h w"]) -> int:
  small = Image.fromarray(grey).resize((9, 8), Image.Resampling.BOX)
  level = np.asarray(small)
  bits = (level[:, 1:] > level[:, :-1]).ravel()
  return int.from_bytes(np.packbits(bits).tobytes())


class Seen:
  """The clips that were kept, by parts of their hashes."""

  def __init__(self):
    self._clips: list[tuple[str, list[int]]] = []
    self._bands: dict[tuple[int, int], list[int]] = {}

  def add(self, name: str, found: list[int]) -> None:
    """Takes a clip in."""
    if not found:
      return
    self._clips.append((name, found))
    for band in _bands(found[0]):
      self._bands.setdefault(band, []).append(len(self._clips) - 1)

  def like(self, found: list[int]) -> tuple[str, float] | None:
    """The first clip that shows the same as one of these hashes, and the bits that differ."""
    if not found:
      return None
    near = {number for band in _bands(found[0]) for number in self._bands.get(band, ())}
    for number in sorted(near):
      name, other = self._clips[number]
      differ = sum((a ^ b).bit_count() for a, b in zip(found, other)) / len(found)
      if differ <= _DIFFER:
        return name, differ
    return None


def _bands(value: int) -> list[tuple[int, int]]:
  return [(part, value >> part * _BAND_BITS & (1 << _BAND_BITS) - 1) for part in range(_BANDS)]
