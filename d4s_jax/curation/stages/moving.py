"""What moves by itself: as the dataset knows it, by depth and cameras, or by stray blocks."""

import numpy as np
from jaxtyping import Bool

from d4s_jax.curation.sample import Sample
from d4s_jax.curation.stages.flow import affine_residual, block_flow
from d4s_jax.curation.stages.warp import carried

# Of brightness, and of the logarithm of depth, from which a place is not what it was.
_CHANGED, _NEARER = 0.12, 0.15
# Of the width, for blocks.
_STRAY = 0.01
_APART = 3
_PAIRS = 6


def measure(sample: Sample) -> dict[str, float]:
  """moving: share of the picture that moves by itself, of what could be compared."""
  if sample.moving is not None:
    return {"moving": float(sample.moving.mean())}
  if sample.cameras is not None and sample.depth is not None:
    mask = mask_of(sample)
    return {"moving": float(mask.mean())} if mask is not None else {}
  grey, shares = sample.grey(), []
  for one in np.unique(np.linspace(0, len(grey) - 2, _PAIRS).astype(int)) if len(grey) > 1 else []:
    center, moved = block_flow(grey[one], grey[one + 1])
    if len(center) >= 6:
      shares.append(np.mean(affine_residual(center, moved) > _STRAY * grey.shape[2]))
  return {"moving": float(np.median(shares))} if shares else {}


def mask_of(sample: Sample) -> Bool[np.ndarray, "f h w"] | None:
  """Pixels of what moves, by depth and cameras; None without these.

  A pixel moves if, both some frames before and after, its place is seen and looks otherwise while
  nothing is in front of it, or something nearer stands where it should be seen through to it.
  """
  if sample.cameras is None or sample.depth is None or len(sample.images) < 2 * _APART:
    return None
  masks = []
  count = len(sample.images)
  for one in range(count):
    votes = []
    for other in (one - _APART, one + _APART):
      # At the ends both neighbours are on one side.
      other = other if 0 <= other < count else one + (one - other) // abs(one - other) * 2
      if not 0 <= other < count:
        other = one + 1 if one + 1 < count else one - 1
      seen, ratio, change = carried(sample, one, other)
      open_way = ratio > -_NEARER
      votes.append(seen & ((open_way & (change > _CHANGED)) | (ratio > _NEARER)))
    masks.append(votes[0] & votes[1])
  return np.stack(masks)
