"""Clips that show the same thing: perceptual hashes, compared with all clips that were kept."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from d4s_jax.curation.sample import Sample

# Frames of a clip that are hashed, and bits in which two of them may differ on average.
HASHES, _DIFFER = 3, 6
# Clips that are compared at once: as many hashes as a core's cache holds.
_AT_ONCE = 1 << 14
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
  """The clips that were kept: 24 bytes of hashes each, and their names."""

  def __init__(self):
    self._names: list[str] = []
    self._hashes = np.zeros((HASHES, _AT_ONCE), np.uint64)

  def add(self, name: str, found: list[int]) -> None:
    """Takes a clip in."""
    if not found:
      return
    count = len(self._names)
    if count == self._hashes.shape[1]:
      self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)], axis=1)
    self._hashes[:, count] = found
    self._names.append(name)

  def like(self, found: list[int]) -> tuple[str, float] | None:
    """The first clip that shows the same as these hashes, and the bits that differ on average."""
    if not found:
      return None
    wanted = np.array(found, np.uint64)[:, None]
    for start in range(0, len(self._names), _AT_ONCE):
      some = self._hashes[:, start : min(start + _AT_ONCE, len(self._names))]
      differ = np.add.reduce(np.bitwise_count(some ^ wanted), axis=0, dtype=np.uint8)
      first = int(np.argmax(differ <= _DIFFER * HASHES))
      if differ[first] <= _DIFFER * HASHES:
        return self._names[start + first], float(differ[first]) / HASHES
    return None
