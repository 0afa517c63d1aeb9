"""Blur and exposure."""

import numpy as np

from d4s_jax.curation.sample import Sample

_DARK, _BRIGHT = 0.06, 0.97


def measure(sample: Sample) -> dict[str, float]:
  """Figures of the median frame.

  sharpness: mean square of the Laplacian over the variance of brightness, so that contrast doesn't
  count; dark, bright: shares of pixels that are nearly black and white; contrast: standard
  deviation of brightness.
  """
  grey = sample.grey()
  laplacian = (
    *(grey[:, 1:-1, 1:-1] * -4 + grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1],),
    *(grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:],),
  )
  energy = np.square(laplacian[0] + laplacian[1]).mean(axis=(1, 2))
  variance = grey.var(axis=(1, 2))
  return {
    "sharpness": float(np.median(energy / np.maximum(variance, 1e-4))),
    "dark": float(np.median((grey < _DARK).mean(axis=(1, 2)))),
    "bright": float(np.median((grey > _BRIGHT).mean(axis=(1, 2)))),
    "contrast": float(np.median(np.sqrt(variance))),
  }
