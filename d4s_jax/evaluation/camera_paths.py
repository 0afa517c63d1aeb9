"""Errors of an estimated camera path, after a similarity has aligned it with the true one."""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class PathError:
  """How far an estimated path is from the true one.

  Attributes:
    absolute: root of the mean squared distance of positions after alignment, metres.
    relative_translation: root of the mean squared error of the step between neighbours, metres.
    relative_rotation: mean angle of that error, degrees.
    scale: factor on the estimate.
  """

  absolute: float
  relative_translation: float
  relative_rotation: float
  scale: float


def align(
  estimate: Float[np.ndarray, "n 3"], truth: Float[np.ndarray, "n 3"]
) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
  """Scale, rotation and translation with scale * R p + t nearest to the truth (Umeyama).

  A path on a line leaves the turn round it open, and one of no extent has scale 1.
  """
  center, other = truth.mean(axis=0), estimate.mean(axis=0)
  covariance = (truth - center).T @ (estimate - other) / len(truth)
  left, values, right = np.linalg.svd(covariance)
  signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
  rotation = (left * signs) @ right
  spread = np.sum((estimate - other) ** 2) / len(truth)
  scale = float(np.sum(values * signs) / spread) if spread > 1e-12 else 1.0
  return scale, rotation, center - scale * rotation @ other


def path_error(
  estimate: Float[np.ndarray, "n 4 4"], truth: Float[np.ndarray, "n 4 4"], *, delta: int = 1
) -> PathError:
  """Errors of poses `world_from_camera`, the first `delta` steps apart for the relative ones.

  E_i = (Q_i^-1 Q_i+d)^-1 (P_i^-1 P_i+d), as evo defines them; the estimate is aligned with scale.

  Raises:
    ValueError: paths of different lengths, or not longer than `delta`.
  """
  estimate, truth = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
  if estimate.shape != truth.shape or len(truth) <= delta:
    raise ValueError(
      f"Paths of {len(estimate)} and {len(truth)} poses; expected equally many, more than {delta}."
    )
  scale, rotation, translation = align(estimate[:, :3, 3], truth[:, :3, 3])
  aligned = estimate.copy()
  aligned[:, :3, :3] = rotation @ estimate[:, :3, :3]
  aligned[:, :3, 3] = scale * estimate[:, :3, 3] @ rotation.T + translation
  steps = [np.linalg.inv(x[:-delta]) @ x[delta:] for x in (truth, aligned)]
  errors = np.linalg.inv(steps[0]) @ steps[1]
  cosines = (np.trace(errors[:, :3, :3], axis1=1, axis2=2) - 1) / 2
  distances = aligned[:, :3, 3] - truth[:, :3, 3]
  return PathError(
    absolute=_root_mean_square(distances),
    relative_translation=_root_mean_square(errors[:, :3, 3]),
    relative_rotation=float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean()),
    scale=scale,
  )


def _root_mean_square(vectors) -> float:
  return float(np.sqrt(np.mean(np.sum(vectors**2, axis=-1))))
