"""Metric scale against synthetic truth: outliers, noise, few anchors, and refusals."""

import numpy as np
import pytest

from d4s_jax.curation import scale

TRUTH, SHIFT = 2.7, 0.05


def anchors(seed, count, outliers, noise, shift=False):
  """Relative and metric values; of the outliers, half are far off and half have another scale."""
  rng = np.random.default_rng(seed)
  metric = np.exp(rng.uniform(np.log(0.5), np.log(20), count))
  exact = (1 / metric - SHIFT) / TRUTH if shift else metric / TRUTH
  relative = exact * np.exp(rng.normal(0, noise, count)) if not shift else exact
  if shift:
    metric = metric * np.exp(rng.normal(0, noise, count))
  wrong = rng.permutation(count) < round(outliers * count)
  factor = np.exp(rng.uniform(0.3, 2.5, count) * rng.choice([1, 1, 1, -1], count))
  return relative, np.where(wrong, metric * factor, metric)


@pytest.mark.parametrize("outliers, noise", [(0, 0.05), (0.3, 0.05), (0.3, 0), (0.6, 0.03)])
@pytest.mark.parametrize("seed", range(12))
def test_scale_is_within_two_percent(outliers, noise, seed):
  found = scale.estimate(*anchors(seed, 400, outliers, noise))
  assert abs(found.scale / TRUTH - 1) < 0.02
  assert found.shift == 0 and found.anchors == 400
  # Outliers between 1.1 and 1.35 times off don't exist here: the share is what was put in.
  assert abs(found.inliers - (1 - outliers)) < 0.06
  assert found.consistent and found.confidence > 0.9


@pytest.mark.parametrize("outliers, noise", [(0, 0.03), (0.3, 0.03), (0.6, 0.02)])
@pytest.mark.parametrize("seed", range(6))
def test_scale_and_shift_give_depth_within_two_percent(outliers, noise, seed):
  found = scale.estimate(*anchors(seed, 600, outliers, noise, shift=True), shift=True)
  depth = np.array([0.7, 2.0, 8.0])
  back = scale.to_depth(found, (1 / depth - SHIFT) / TRUTH)
  np.testing.assert_allclose(back, depth, rtol=0.02)
  assert found.consistent


def test_few_anchors_are_right_or_refused():
  """Whatever the anchors, an answer is right: 99 of 100, since its bound is three deviations."""
  answers, wrong = 0, 0
  for seed in range(600):
    rng = np.random.default_rng(seed)
    count, outliers = int(rng.integers(3, 60)), rng.uniform(0, 0.9)
    try:
      found = scale.estimate(*anchors(seed, count, outliers, rng.uniform(0, 0.08)))
    except scale.Refused:
      continue
    answers += 1
    wrong += abs(found.scale / TRUTH - 1) > 0.02
  assert answers > 80
  assert wrong <= 0.01 * answers


@pytest.mark.parametrize(
  "count, outliers, noise, message",
  [
    (5, 0, 0, "5 usable anchors; expected at least 8"),
    (200, 1.0, 0.02, "anchors agree"),
    (30, 0, 0.08, "standard error"),
  ],
)
def test_too_little_is_refused(count, outliers, noise, message):
  with pytest.raises(scale.Refused, match=message):
    scale.estimate(*anchors(3, count, outliers, noise))


def test_two_contradicting_populations_are_refused():
  relative, metric = anchors(0, 200, 0, 0.02)
  metric[:95] *= 1.8
  with pytest.raises(scale.Refused, match="with one scale and .* with another"):
    scale.estimate(relative, metric)


def test_one_disparity_leaves_the_shift_open():
  with pytest.raises(scale.Refused, match="leaves the shift open"):
    scale.estimate(np.ones(50), np.ones(50), shift=True)
  relative, metric = anchors(0, 200, 0, 0.01)
  with pytest.raises(scale.Refused, match="anchors agree"):
    scale.estimate(relative, metric, shift=True)
  # Right disparities are in a narrow range only, so that wrong ones decide about the shift.
  rng = np.random.default_rng(0)
  narrow = np.append(rng.normal(1, 0.002, 200), np.linspace(0.5, 2, 60))
  noisy = 1 / (TRUTH * narrow + SHIFT) * np.exp(rng.normal(0, 0.03, 260))
  noisy[200:] *= np.exp(rng.uniform(0.4, 2, 60))
  assert not scale.estimate(narrow[40:], noisy[40:], shift=True).consistent


def test_what_is_not_a_number_is_left_out():
  relative, metric = anchors(0, 300, 0.3, 0.02)
  bad = np.array([np.nan, 1, -1, 0, np.inf, 1])
  worse = np.array([1, np.nan, 1, 1, 1, 0])
  found = scale.estimate(np.append(relative, bad), np.append(metric, worse))
  assert found == scale.estimate(relative, metric)


def test_uncertain_anchors_count_less():
  rng = np.random.default_rng(0)
  good, poor = anchors(1, 200, 0, 0.005), anchors(2, 2000, 0, 0)
  poor = (poor[0], poor[1] * np.exp(rng.normal(0.04, 0.03, 2000)))
  both = [np.append(x, y) for x, y in zip(good, poor)]
  uncertainty = np.repeat([0.005, 0.1], [200, 2000])
  aware = scale.estimate(*both, uncertainty=uncertainty)
  blind = scale.estimate(*both)
  assert abs(aware.scale / TRUTH - 1) < 0.011 < 0.025 < abs(blind.scale / TRUTH - 1)


def test_frames_that_contradict_each_other_are_inconsistent():
  """Each frame's anchors agree among themselves: only subsets of whole frames show the drift."""
  relative, metric = anchors(0, 1000, 0, 0.005)
  frames = np.arange(1000) % 10
  metric = metric * np.exp(np.linspace(-0.09, 0.09, 10))[frames]
  found = scale.estimate(relative, metric, groups=frames)
  alike = scale.estimate(relative, metric)
  assert found.variation > 3 * alike.variation
  assert found.confidence < alike.confidence
  drift = metric * np.exp(np.linspace(-0.09, 0.09, 10) * 3)[frames] / metric
  with pytest.raises(scale.Refused):
    scale.estimate(np.ones(1000) * relative, metric * drift**2, groups=frames)
