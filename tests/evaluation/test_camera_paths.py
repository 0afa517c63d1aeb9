"""Errors of camera paths: invariance, closed forms, and parity with evo where it is installed."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from d4s_jax.evaluation.camera_paths import align, path_error
from d4s_jax.geometry.trajectories import trajectory


def turned(angle, axis=2):
  first, second = [i for i in range(3) if i != axis]
  matrix = np.eye(3)
  matrix[first, first] = matrix[second, second] = np.cos(angle)
  matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
  return matrix


def moved(path, scale, rotation, translation):
  result = path.copy()
  result[:, :3, :3] = rotation @ path[:, :3, :3]
  result[:, :3, 3] = scale * path[:, :3, 3] @ rotation.T + translation
  return result


def spiral(count=20):
  return trajectory("spiral", count).astype(np.float64)


@settings(deadline=None)
@given(st.floats(0.1, 10), st.floats(-3, 3), st.floats(-5, 5))
def test_a_similarity_is_no_error(scale, angle, shift):
  truth = spiral()
  estimate = moved(truth, scale, turned(angle) @ turned(angle / 2, 0), np.full(3, shift))
  found = path_error(estimate, truth)
  np.testing.assert_allclose(
    [found.absolute, found.relative_translation], 0, atol=1e-6 * max(1, abs(shift))
  )
  # The angle is an arc cosine near 1: a rounding error of 1e-16 is 1e-6 degrees.
  assert found.relative_rotation < 1e-4
  np.testing.assert_allclose(found.scale, 1 / scale, rtol=1e-6)


def test_a_camera_that_turns_too_far_has_that_angle_for_an_error():
  # Its camera never turns.
  truth = trajectory("forward", 20).astype(np.float64)
  estimate = truth.copy()
  for index in range(len(truth)):
    estimate[index, :3, :3] = truth[index, :3, :3] @ turned(np.radians(0.5) * index)
  found = path_error(estimate, truth)
  np.testing.assert_allclose(found.relative_rotation, 0.5, rtol=1e-3)
  assert found.absolute < 1e-9


def test_reflections_are_not_taken_for_rotations():
  points = np.random.default_rng(0).normal(size=(10, 3))
  _, rotation, _ = align(points * (1, 1, -1), points)
  np.testing.assert_allclose(np.linalg.det(rotation), 1)


def test_paths_that_cannot_be_compared_are_refused():
  with pytest.raises(ValueError, match="20 and 10 poses"):
    path_error(spiral(20), spiral(10))
  with pytest.raises(ValueError, match="more than 1"):
    path_error(spiral(2)[:1], spiral(2)[:1])


@pytest.mark.parity
@pytest.mark.parametrize("delta", [1, 3])
def test_errors_are_those_of_evo(delta):
  metrics = pytest.importorskip("evo.core.metrics")
  trajectories = pytest.importorskip("evo.core.trajectory")
  rng = np.random.default_rng(1)
  truth = spiral()
  estimate = moved(truth, 0.4, turned(1.0, 1), np.array([1.0, 2, 3]))
  estimate[:, :3, 3] += 0.01 * rng.normal(size=(20, 3))
  for pose in estimate:
    pose[:3, :3] = pose[:3, :3] @ turned(0.02 * rng.normal(), 0)
  paths = [trajectories.PosePath3D(poses_se3=list(x)) for x in (truth, estimate)]
  paths[1].align(paths[0], correct_scale=True)
  found = path_error(estimate, truth, delta=delta)

  def theirs(metric, statistic):
    metric.process_data(tuple(paths))
    return metric.get_statistic(statistic)

  rmse, mean = metrics.StatisticsType.rmse, metrics.StatisticsType.mean
  part = metrics.PoseRelation
  options = dict(delta=delta, delta_unit=metrics.Unit.frames, all_pairs=True)
  want = {
    "absolute": theirs(metrics.APE(part.translation_part), rmse),
    "relative_translation": theirs(metrics.RPE(part.translation_part, **options), rmse),
    "relative_rotation": theirs(metrics.RPE(part.rotation_angle_deg, **options), mean),
  }
  for name, value in want.items():
    np.testing.assert_allclose(getattr(found, name), value, rtol=1e-6, err_msg=name)
