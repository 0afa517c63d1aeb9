"""Whether depth and cameras agree: depth, carried to the next frame, is the depth there."""

import numpy as np

from d4s_jax.curation.sample import Sample
from d4s_jax.curation.stages.warp import carried

_PAIRS = 6
_LEAST_SEEN = 0.05


def measure(sample: Sample) -> dict[str, float]:
  """reprojection: median relative error of depth, over pixels; median over pairs of frames.

  What is hidden behind something (farther by over a half) or moves is a minority.
  """
  if sample.cameras is None or sample.depth is None or len(sample.images) < 2:
    return {}
  errors = []
  for one in np.unique(np.linspace(0, len(sample.images) - 2, _PAIRS).astype(int)):
    seen, ratio, _ = carried(sample, int(one), int(one) + 1)
    if seen.mean() > _LEAST_SEEN:
      errors.append(np.median(np.abs(ratio[seen])))
  return {"reprojection": float(np.median(errors))} if errors else {}
