"""Distances of feature sets: against scipy and torchmetrics, closed forms, behaviour."""

import numpy as np
import pytest
import scipy.linalg

from d4s_jax.evaluation.distances import frechet, kernel


def features(count, dim, seed, shift=0.0, scale=1.0):
  return shift + scale * np.random.default_rng(seed).normal(size=(count, dim))


def test_frechet_is_that_of_scipys_matrix_root():
  x, y = features(200, 8, 0), features(300, 8, 1, shift=0.5, scale=1.5)
  means = x.mean(0) - y.mean(0)
  covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  root = np.real(scipy.linalg.sqrtm(covariances[0] @ covariances[1]))
  want = means @ means + np.trace(covariances[0] + covariances[1] - 2 * root)
  np.testing.assert_allclose(frechet(x, y), want, rtol=1e-9)


@pytest.mark.parity
def test_both_are_those_of_torchmetrics():
  torch = pytest.importorskip("torch")
  fid = pytest.importorskip("torchmetrics.image.fid")
  kid = pytest.importorskip("torchmetrics.image.kid")
  x, y = features(100, 6, 2), features(80, 6, 3, shift=0.3)
  moments = [torch.from_numpy(z) for s in (x, y) for z in (s.mean(0), np.cov(s, rowvar=False))]
  want = float(fid._compute_fid(moments[0], moments[1], moments[2], moments[3]))
  np.testing.assert_allclose(frechet(x, y), want, rtol=1e-6)
  y = y[:, :]
  equal = x[:80]
  want = float(kid.poly_mmd(torch.from_numpy(equal), torch.from_numpy(y)))
  np.testing.assert_allclose(kernel(equal, y), want, rtol=1e-6)


def test_closed_form_of_shifted_and_scaled_normals():
  x = features(400, 5, 4)
  # The same sample, scaled by 2 and shifted by 3: |3|^2 d, and (2 - 1)^2 of its variance.
  want = np.sum((x.mean(0) * 2 + 3 - x.mean(0)) ** 2) + np.trace(np.cov(x, rowvar=False))
  np.testing.assert_allclose(frechet(x, 2 * x + 3), want, rtol=1e-9)


@pytest.mark.parametrize("distance", [frechet, kernel])
def test_it_grows_with_the_shift_and_not_with_the_order(distance):
  x, y = features(60, 4, 5), features(60, 4, 6)
  found = [distance(x, y + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
  assert found == sorted(found)
  shuffled = np.random.default_rng(0).permutation(y)
  np.testing.assert_allclose(distance(x, shuffled), found[0], rtol=1e-9)


def test_a_set_is_at_no_distance_from_itself_even_without_full_rank():
  x = features(10, 50, 7)
  assert frechet(x, x) < 1e-9
  # Unbiased: of one distribution it is 0 on average, so it is often below.
  found = [kernel(features(20, 3, seed), features(20, 3, 1000 + seed)) for seed in range(200)]
  assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
  assert min(found) < 0


@pytest.mark.parametrize(
  "x, y, message",
  [
    (np.zeros((1, 3)), np.zeros((5, 3)), "1 and 5 features; expected at least 2"),
    (np.zeros((5, 2)), np.zeros((5, 3)), r"shapes \(5, 2\) and \(5, 3\)"),
    (np.full((5, 2), np.nan), np.zeros((5, 2)), "not finite"),
  ],
)
def test_bad_features_are_refused(x, y, message):
  with pytest.raises(ValueError, match=message):
    frechet(x, y)
