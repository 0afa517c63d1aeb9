"""Distances between two sets of features: Frechet (FVD's) and kernel (KVD's)."""

import numpy as np
from jaxtyping import Float

# How numbers are made, for reports.
FRECHET = "frechet/covariances-over-n-1"
KERNEL = "mmd2-unbiased/kernel-(a.b/width+1)^3"


def frechet(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
  """Frechet distance of the normal distributions fitted to two sets of features.

  |mu_x - mu_y|^2 + Tr(S_x + S_y - 2 (S_x S_y)^(1/2)) with covariances over n - 1 (Unterthiner et
  al., "Towards accurate generative models of video"). The trace of the root is the sum of the
  singular values of S_x^(1/2) S_y^(1/2), which is defined for covariances of any rank.

  Raises:
    ValueError: fewer than two features in a set, another width, or values that are not finite.
  """
  x, y = _checked(x, y)
  difference = x.mean(axis=0) - y.mean(axis=0)
  # S = A^T A with A of n rows: the singular values of A_x A_y^T are those of the product of roots.
  first, second = (np.sqrt(1 / (len(z) - 1)) * (z - z.mean(axis=0)) for z in (x, y))
  shared = np.linalg.svd(first @ second.T, compute_uv=False).sum()
  spread = np.sum(first**2) + np.sum(second**2)
  return float(max(difference @ difference + spread - 2 * shared, 0.0))


def kernel(
  x: Float[np.ndarray, "n d"],
  y: Float[np.ndarray, "m d"],
  *,
  gamma: float | None = None,
  offset: float = 1.0,
) -> float:
  """Squared maximum mean discrepancy with the kernel (gamma a.b + offset)^3, unbiased.

  It may come out below 0 for sets of one distribution.

  Args:
    x: features of one set.
    y: those of the other.
    gamma: factor on the product; 1 / d unless given, as in LVDM, TATS and VideoGPT.
    offset: added to it.

  Raises:
    ValueError: as `frechet`.
  """
  x, y = _checked(x, y)
  scale = 1 / x.shape[1] if gamma is None else gamma

  def values(a, b):
    return (scale * a @ b.T + offset) ** 3

  def within(a):
    of_pairs = values(a, a)
    return (of_pairs.sum() - np.trace(of_pairs)) / (len(a) * (len(a) - 1))

  return float(within(x) + within(y) - 2 * values(x, y).mean())


def _checked(x, y):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
    raise ValueError(f"Features of shapes {x.shape} and {y.shape}; expected [n, d] and [m, d].")
  if min(len(x), len(y)) < 2:
    raise ValueError(f"{len(x)} and {len(y)} features; expected at least 2 in each set.")
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError("Features that are not finite; expected numbers.")
  return x, y
