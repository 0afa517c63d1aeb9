"""A cut that was missed: one step of the clip that is unlike all others."""

import numpy as np

from d4s_jax.curation.sample import Sample


def measure(sample: Sample) -> dict[str, float]:
  """cut: the largest change between neighbouring frames, beyond twice the usual one."""
  grey = sample.grey()
  if len(grey) < 3:
    return {}
  step = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))
  return {"cut": max(float(step.max() - 2 * np.median(step)), 0.0)}
