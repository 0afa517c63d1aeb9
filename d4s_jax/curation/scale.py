"""Metric scale of a clip whose depth or poses are relative (supplement, section 1).

Anchors are places at which both a relative value and the true depth or length are known; where they
come from is `curation.anchors`. Depth and poses of structure from motion have one unknown factor:
metric = scale * relative. What predicts disparity up to a factor and a shift has two:
1 / metric = scale * relative + shift. Errors are relative, that is, differences of logarithms.

The model that most anchors agree with is found first (each anchor, and the median of all, proposes
a factor; random pairs propose factor and shift), then refined with weights that fall to zero with
the residual. Thresholds are our choice; the supplement states none but its 5%.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

# An anchor agrees with a model up to this residual.
_AGREES = 0.1
# Fewer anchors than this are no evidence, and nor is a smaller share of them that agree.
_FEWEST, _LEAST_SHARE = 8, 0.3
# Expected number of such agreements among ratios that mean nothing (Moisan and Stival's "number of
# false alarms"), over at least a range of ratios of 16.
_FALSE_ALARMS, _NARROWEST = 1e-3, math.log(16)
# A second model with this share of the first one's anchors makes the answer a guess.
_RIVAL = 0.7
# The estimate is refused unless three standard errors are within this.
TOLERANCE = 0.02
# Disjoint subsets of the anchors that are compared, and the supplement's bound on what differs.
SUBSETS, CONSISTENT = 5, 0.05
_PAIRS, _ROUNDS = 1000, 20


class Refused(ValueError):
  """There is too little to go on for a scale; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Scale:
  """A metric scale and how far it can be trusted.

  Attributes:
    scale: metres per relative unit, or 1/metres per unit of relative disparity.
    shift: of the metric disparity, 1/metres; 0 unless it was asked for.
    anchors: number of usable anchors.
    inliers: share of them that agree with the scale, in [0, 1].
    spread: robust standard deviation of those, relative.
    error: standard error of metric depth that follows from it, relative; on the safe side where
      anchors are few.
    variation: coefficient of variation of the scale over SUBSETS disjoint subsets of the anchors:
      what the supplement calls variance, and wants below 5%. With a shift, of metric disparity; the
      largest at the 10th, 50th and 90th percentile.
    confidence: probability that the scale is within 5% of the truth, if errors are normal and the
      larger of `error` and what follows from `variation` holds.
  """

  scale: float
  shift: float
  anchors: int
  inliers: float
  spread: float
  error: float
  variation: float
  confidence: float

  @property
  def consistent(self) -> bool:
    """Whether subsets of the anchors agree as well as the supplement says they do."""
    return self.variation < CONSISTENT


def estimate(
  relative: Float[np.ndarray, "n"],
  metric: Float[np.ndarray, "n"],
  *,
  shift: bool = False,
  uncertainty: Float[np.ndarray, "n"] | None = None,
  groups: Int[np.ndarray, "n"] | None = None,
  seed: int = 0,
) -> Scale:
  """The scale of a clip, robust against up to 60% of anchors that are plainly wrong.

  Args:
    relative: depths or lengths in the clip's own unit, or relative disparities with `shift`.
    metric: the same depths or lengths in metres.
    shift: whether `relative` is disparity with an unknown shift.
    uncertainty: relative standard deviation of each anchor; None if all are alike.
    groups: anchors that may be wrong together, such as those of one frame, have one number; they
      come into the same subset. None if each stands alone.
    seed: of the random pairs and subsets.

  Returns:
    The scale. Anchors that aren't finite and positive are left out.

  Raises:
    Refused: the anchors don't determine a scale within TOLERANCE.
  """
  relative, metric = np.asarray(relative, np.float64), np.asarray(metric, np.float64)
  weight = np.ones(len(metric)) if uncertainty is None else np.asarray(uncertainty) ** -2.0
  groups = np.arange(len(metric)) if groups is None else np.asarray(groups)
  usable = np.isfinite(relative) & np.isfinite(metric) & np.isfinite(weight) & (metric > 0)
  usable &= weight > 0
  if not shift:
    usable &= relative > 0
  relative, metric, weight, groups = (x[usable] for x in (relative, metric, weight, groups))
  count = len(metric)
  if count < _FEWEST:
    raise Refused(f"{count} usable anchors; expected at least {_FEWEST}.")
  rng = np.random.default_rng(seed)
  fit = _with_shift if shift else _alone
  model, agree = fit(relative, metric, weight, rng)
  _check_agreement(agree, _ratio_range(relative, metric, shift), 1 + shift)
  _check_rival(fit, relative, metric, weight, agree, rng)
  residual = _residual(model, relative[agree], metric[agree])
  spread = _spread(residual)
  # Over the range of all anchors: where the scale will be used.
  span = np.percentile(relative, [10, 50, 90])
  error = _standard_error(relative[agree], weight[agree], model, spread, span if shift else None)
  if 3 * error > TOLERANCE:
    raise Refused(
      f"{int(agree.sum())} anchors that agree up to {spread:.1%} leave a standard error of"
      f" {error:.1%}; expected at most {TOLERANCE / 3:.1%}: more or better anchors."
    )
  parts = np.array(
    [
      _value(fit(relative[part], metric[part], weight[part], rng)[0], span)
      for part in _subsets(groups, rng)
    ]
  )
  variation = float(np.max(np.std(parts, axis=0, ddof=1) / np.abs(np.mean(parts, axis=0))))
  doubt = max(error, variation / math.sqrt(SUBSETS), 1e-12)
  return Scale(
    scale=float(model[0]),
    shift=float(model[1]),
    anchors=count,
    inliers=float(agree.mean()),
    spread=spread,
    error=error,
    variation=variation,
    confidence=float(special.erf(CONSISTENT / (math.sqrt(2) * doubt))),
  )


def to_depth(found: Scale, disparity: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
  """Metric depth of relative disparity, of a scale with a shift; 0 where it would be infinite."""
  inverse = found.scale * disparity + found.shift
  return np.where(inverse > 1e-6, 1 / np.maximum(inverse, 1e-6), 0)


def _value(model, at):
  return model[0] * at + model[1]


def _residual(model, relative, metric):
  """Log of predicted over true: of lengths without a shift, of disparities with one."""
  if len(model) > 2:
    predicted = np.maximum(_value(model, relative), 1e-12)
    return np.log(predicted * metric)
  return math.log(model[0]) + np.log(relative / metric)


def _alone(relative, metric, weight, rng):
  """(scale, 0) and which anchors agree: all anchors propose, so that nothing is left to chance."""
  del rng
  log = np.log(metric / relative)
  order = np.argsort(log)
  sums = np.append(0, np.cumsum(weight[order]))
  proposed = np.append(log, np.median(log))
  first = np.searchsorted(log[order], proposed - _AGREES, "left")
  last = np.searchsorted(log[order], proposed + _AGREES, "right")
  best = proposed[np.argmax(sums[last] - sums[first])]
  for _ in range(_ROUNDS):
    share = weight * _biweight(log - best)
    best = np.sum(share * log) / np.sum(share)
  return (math.exp(best), 0.0), np.abs(log - best) <= _AGREES


def _with_shift(relative, metric, weight, rng):
  """(scale, shift, 1) and which anchors agree, from random pairs."""
  inverse, count = 1 / metric, len(metric)
  first, second = rng.integers(count, size=(2, _PAIRS))
  apart = relative[first] - relative[second]
  good = np.abs(apart) > 1e-9
  if not good.any():
    raise Refused("All anchors have one disparity, which leaves the shift open.")
  slope = (inverse[first] - inverse[second])[good] / apart[good]
  offset = inverse[first][good] - slope * relative[first][good]
  # Farther is less disparity: a model that says otherwise is one of two wrong anchors.
  slope, offset = slope[slope > 0], offset[slope > 0]
  if not len(slope):
    raise Refused("No two anchors of larger disparity are nearer; is this depth, not disparity?")
  best, most = (slope[0], offset[0], 1.0), -1.0
  for proposed in zip(slope, offset):
    model = (*proposed, 1.0)
    found = weight[np.abs(_residual(model, relative, metric)) <= _AGREES].sum()
    if found > most:
      best, most = model, found
  design = np.stack([relative, np.ones(count)], axis=1)
  for _ in range(_ROUNDS):
    # Divided by the disparity, so that residuals are relative as everywhere.
    share = np.sqrt(weight * _biweight(_residual(best, relative, metric))) * metric
    (a, b), *_ = np.linalg.lstsq(design * share[:, None], inverse * share, rcond=None)
    if a <= 0:
      break
    best = (float(a), float(b), 1.0)
  return best, np.abs(_residual(best, relative, metric)) <= _AGREES


def _biweight(residual):
  """Tukey's weights; they end at the residual up to which an anchor agrees, or earlier."""
  inner = residual[np.abs(residual) <= _AGREES]
  deviation = 1.4826 * np.median(np.abs(inner)) if len(inner) else _AGREES
  end = min(max(4.685 * deviation, 1e-6), 1.5 * _AGREES)
  return np.maximum(1 - (residual / end) ** 2, 0) ** 2


def _spread(residual) -> float:
  """Standard deviation (biweight midvariance), as large as it may be with a probability of 95%.

  A few anchors may lie close together by chance, and just those would be believed.
  """
  residual = residual - np.median(residual)
  end = 9 * np.median(np.abs(residual))
  if end < 1e-12:
    return 0.0
  u = np.minimum((residual / end) ** 2, 1)
  above = math.sqrt(len(residual) * np.sum((residual**2) * (1 - u) ** 4))
  deviation = above / abs(np.sum((1 - u) * (1 - 5 * u)))
  freedom = 0.85 * (len(residual) - 1)
  return deviation * math.sqrt(freedom / float(stats.chi2.ppf(0.05, freedom)))


def _ratio_range(relative, metric, shift: bool) -> float:
  log = np.log(metric) if shift else np.log(metric / relative)
  low, high = np.percentile(log, [2, 98])
  return max(float(high - low), _NARROWEST)


def _check_agreement(agree, spread: float, parameters: int) -> None:
  count, agreeing = len(agree), int(agree.sum())
  if agreeing < max(_FEWEST - 2, _LEAST_SHARE * count):
    raise Refused(
      f"{agreeing} of {count} anchors agree up to {_AGREES:.0%}; expected {_LEAST_SHARE:.0%}, and"
      f" at least {_FEWEST - 2}."
    )
  # How often would that happen to ratios that are spread evenly?
  chance = min(2 * _AGREES / spread, 1)
  rest = count - parameters
  alarms = math.comb(count, parameters) * stats.binom.sf(agreeing - parameters - 1, rest, chance)
  if alarms > _FALSE_ALARMS:
    raise Refused(f"{agreeing} of {count} anchors agree, which chance explains; expected more.")


def _check_rival(fit, relative, metric, weight, agree, rng) -> None:
  """Refuses two populations of anchors that contradict each other."""
  rest = ~agree
  if rest.sum() < max(_FEWEST, _RIVAL * agree.sum()):
    return
  try:
    _, rival = fit(relative[rest], metric[rest], weight[rest], rng)
  except Refused:
    return
  if rival.sum() > _RIVAL * agree.sum():
    raise Refused(
      f"{int(agree.sum())} anchors agree with one scale and {int(rival.sum())} with another;"
      " expected one."
    )


def _standard_error(relative, weight, model, spread: float, at) -> float:
  """Relative standard error of depth; of a model with a shift the largest over disparities `at`."""
  weight = weight / weight.mean()
  if at is None:
    return spread / math.sqrt(weight.sum() ** 2 / np.sum(weight**2))
  predicted = np.maximum(_value(model, relative), 1e-12)
  design = np.stack([relative, np.ones(len(relative))], axis=1)
  scaled = design * (np.sqrt(weight) / predicted)[:, None]
  covariance = np.linalg.pinv(scaled.T @ scaled) * spread**2
  rows = np.stack([at, np.ones(len(at))], axis=1)
  deviation = np.sqrt(np.einsum("ni,ij,nj->n", rows, covariance, rows))
  return float(np.max(deviation / np.maximum(rows @ np.asarray(model[:2]), 1e-12)))


def _subsets(groups, rng) -> list[Int[np.ndarray, "m"]]:
  """SUBSETS disjoint sets of anchors, of whole groups where there are enough of them."""
  names = np.unique(groups)
  if len(names) < SUBSETS:
    groups, names = np.arange(len(groups)), np.arange(len(groups))
  turn = rng.permutation(len(names)) % SUBSETS
  of_anchor = turn[np.searchsorted(names, groups)]
  parts = [np.flatnonzero(of_anchor == part) for part in range(SUBSETS)]
  if min(len(part) for part in parts) < 2:
    raise Refused(f"The anchors make no {SUBSETS} subsets of two or more; expected more anchors.")
  return parts
