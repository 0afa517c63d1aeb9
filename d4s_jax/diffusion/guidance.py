"""Classifier-free guidance weights for each step of a sampling run.

A weight of 1 means the conditional velocity alone. The schedules depend on the step index, not on
the noise level: this is the reading of supplement, equation 1, under which guidance falls late in
denoising. (Other codebases put the raw timestep there, and their schedule oscillates.)
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

# Below this weight the unconditional pass no longer shows and is skipped.
NEGLIGIBLE = 1.02


def cosine(steps: int, maximum: float) -> Float[np.ndarray, "steps"]:
  """Supplement, equation 1: 1 + maximum (1 - cos(pi ((N - t) / N)^5)) / 2 for t = 0 .. N - 1."""
  remaining = (steps - np.arange(steps)) / steps
  return 1 + maximum * (1 - np.cos(np.pi * remaining**5)) / 2


def constant(steps: int, scale: float) -> Float[np.ndarray, "steps"]:
  """The same weight at every step."""
  return np.full(steps, float(scale))


GUIDANCE: dict[str, Callable[[int, float], np.ndarray]] = {"cosine": cosine, "constant": constant}


def guidance(name: str, steps: int, scale: float) -> Float[np.ndarray, "steps"]:
  """The guidance weights of a run; raises ValueError for a name that is not in `GUIDANCE`."""
  if name not in GUIDANCE:
    raise ValueError(f"Unknown guidance {name!r}; choose one of {sorted(GUIDANCE)}.")
  return GUIDANCE[name](steps, scale)
