"""How a sampling run goes from one noise level to the next, given the model's clean estimates.

Every solver here is linear in what it looks at: the latents, the latents of the step before, the
model's estimates of the clean latents at this step and the two before it, and new noise. A run is
thus a table of weights, one row a step, worked out beforehand in float64. The weights depend on the
schedule through the signal a and the spread b at its levels alone (x = a clean + b noise), so that
each solver goes with each schedule. l = log(a / b) below, and h its growth over a step.

  ddim   DDIM without noise (Song et al. 2021); on the path of flow matching it is Euler's.
  unipc  UniPC of second order with B2(h) (Zhao et al. 2023): what Wan was published with.
  dpm    SDE-DPM-Solver++(2M) (Lu et al. 2022), which adds noise: CogVideoX 5B.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from d4s_jax.diffusion.schedule import Levels

# UniPC divides by ratios of steps in l, which is infinite at pure noise and at data.
_FAR = 60.0


class Weights(NamedTuple):
  """The weights of one step, or of all of them along a first axis.

  The latents x are corrected first, y = x + ..., and then taken to the next level.

  Attributes:
    correct: of x, y of the step before, and the clean estimates here, one and two steps before.
    predict: of y, the clean estimates here and one step before, and new noise.
  """

  correct: Float[np.ndarray, "*steps 5"]
  predict: Float[np.ndarray, "*steps 4"]


def ddim(levels: Levels) -> Weights:
  """First order: the estimated noise stays, the estimated clean latents stay."""
  weights = _nothing(len(levels.told))
  kept = levels.end_spread / levels.spread[:-1]
  weights.predict[:, 0] = kept
  weights.predict[:, 1] = levels.end_signal - levels.signal[:-1] * kept
  return weights


def unipc(levels: Levels) -> Weights:
  """Second order but for the first and the last step; corrects a step once it knows its end.

  Always goes from level to level, wherever first-order steps end.
  """
  steps, signal, spread = len(levels.told), levels.signal, levels.spread
  weights = _nothing(steps)
  log_ratio = np.clip(_log_ratio(signal, spread), -_FAR, _FAR)
  order = 1
  for i in range(steps):
    if i:
      _correct(weights.correct[i], signal, spread, log_ratio, i, order)
    order = min(2, i + 1, steps - i)
    _predict(weights.predict[i], signal, spread, log_ratio, i, order)
  return weights


def dpm(levels: Levels) -> Weights:
  """Second order but for the first step and one down to data, which alone adds no new noise."""
  weights, log_ratio = _nothing(len(levels.told)), _log_ratio(levels.signal, levels.spread)
  ends = _log_ratio(levels.end_signal, levels.end_spread)
  for i, predict in enumerate(weights.predict):
    h, spread = ends[i] - log_ratio[i], levels.end_spread[i]
    estimate = -np.expm1(-2 * h) * levels.end_signal[i]
    before = 0.5 * h / (log_ratio[i] - log_ratio[i - 1]) if i and spread else 0.0
    predict[0] = spread / levels.spread[i] * np.exp(-h)
    predict[1:3] = estimate * (1 + before), -estimate * before
    predict[3] = spread * np.sqrt(-np.expm1(-2 * h))
  return weights


SOLVERS: dict[str, Callable[[Levels], Weights]] = {"ddim": ddim, "unipc": unipc, "dpm": dpm}


def solver(name: str) -> Callable[[Levels], Weights]:
  """The solver of that name; raises ValueError, with the known names, for another."""
  if name not in SOLVERS:
    raise ValueError(f"Unknown solver {name!r}; choose one of {sorted(SOLVERS)}.")
  return SOLVERS[name]


def _nothing(steps: int) -> Weights:
  weights = Weights(np.zeros((steps, 5)), np.zeros((steps, 4)))
  weights.correct[:, 0] = 1
  return weights


def _log_ratio(signal: np.ndarray, spread: np.ndarray) -> np.ndarray:
  with np.errstate(divide="ignore"):
    return np.log(signal) - np.log(spread)


def _first_order(signal: np.ndarray, spread: np.ndarray, i: int) -> tuple[float, float]:
  """Weights of the latents and of the clean estimate on the way from level i to i + 1."""
  kept = spread[i + 1] / spread[i]
  return kept, signal[i + 1] - signal[i] * kept


def _predict(weights, signal, spread, log_ratio, i, order) -> None:
  """UniP: adds half the change of the estimate over the step before, as far as the step goes."""
  weights[:2] = _first_order(signal, spread, i)
  if order == 2:
    h = log_ratio[i + 1] - log_ratio[i]
    change = -signal[i + 1] * np.expm1(-h) * 0.5 * h / (log_ratio[i] - log_ratio[i - 1])
    weights[1:3] += change, -change


def _correct(weights, signal, spread, log_ratio, i, order) -> None:
  """UniC: makes the step from i - 1 to i again, now that the estimate at its end is known."""
  kept, clean = _first_order(signal, spread, i - 1)
  h = log_ratio[i] - log_ratio[i - 1]
  span = -signal[i] * np.expm1(-h)
  if order == 1:
    before, now, ratio = 0.0, 0.5, 1.0
  else:
    # The quadrature of B2: weights of both differences such that it is exact to second order.
    ratio = (log_ratio[i - 2] - log_ratio[i - 1]) / h
    first = np.expm1(-h) / -h - 1
    second = first / -h - 0.5
    moments = np.array([first, 2 * second]) / np.expm1(-h)
    before, now = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], moments)
  weights[0] = 0
  weights[1] = kept
  weights[2] = span * now
  weights[3] = clean - span * (now + before / ratio)
  weights[4] = span * before / ratio
