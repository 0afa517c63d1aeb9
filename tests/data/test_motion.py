"""Motions of solids: rigid, on or above the floor, and rolling without slipping."""

import numpy as np
import pytest

from d4s_jax.data.synthetic.motion import MOTIONS, MOVING, about
from d4s_jax.data.synthetic.solids import random_solid

TIMES = np.linspace(0, 1, 101)
SPOT = np.array([1.0, 0.0, 5.0])


def solids(kind, count=30):
  rng = np.random.default_rng(1)
  return [random_solid(rng, kind, ("red",), SPOT, 0.3) for _ in range(count)]


def corners(body):
  """The lowest points of the solid's bounding box, by time, at or under all of the solid."""
  signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3)
  rotation, center = body.motion.pose(TIMES)
  return np.einsum("tij,nj->tni", rotation, signs * body.half) + center[:, None]


@pytest.mark.parametrize("kind", MOTIONS)
def test_poses_are_rigid_and_smooth(kind):
  for body in solids(kind):
    rotation, center = body.motion.pose(TIMES)
    gram = rotation @ np.swapaxes(rotation, 1, 2)
    np.testing.assert_allclose(gram - np.eye(3), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-12)
    assert np.abs(np.diff(center, axis=0)).max() < 0.25  # a hundredth of the clip
    assert body.motion.moves == (kind != "stand")


@pytest.mark.parametrize("kind", ["stand", "slide", "spin", "bounce"])
def test_solids_touch_the_floor_and_stay_above_it(kind):
  for body in solids(kind):
    lowest = corners(body)[..., 1].max()
    if body.shape in ("box", "cylinder", "cone"):  # their boxes' corners are at their own height
      assert lowest <= 1e-9
    bottom = body.motion.pose(TIMES)[1][:, 1] + body.half[1]
    assert bottom.max() <= 1e-9
    if kind != "bounce":
      np.testing.assert_allclose(bottom, 0, atol=1e-9)


def test_rolling_does_not_slip():
  for body in solids("roll"):
    rotation, center = body.motion.pose(TIMES)
    radius = body.half[0]
    np.testing.assert_allclose(center[:, 1], -radius, atol=1e-9)
    # The material point on the floor at mid-clip stands still for a moment.
    contact = rotation[50].T @ np.array([0.0, radius, 0.0])
    track = np.einsum("tij,j->ti", rotation, contact) + center
    speed = np.linalg.norm(track[51] - track[49]) / np.linalg.norm(center[51] - center[49])
    assert speed < 0.02  # second order in the step of a hundredth
    if body.shape == "cylinder":  # its axis stays level
      np.testing.assert_allclose(rotation[:, 1, 1], 0, atol=1e-9)


@pytest.mark.parametrize("kind", MOVING)
def test_surfaces_move_about_a_width(kind):
  for body in solids(kind):
    rotation, center = body.motion.pose(TIMES)
    point = np.einsum("tij,j->ti", rotation, body.half) + center
    travelled = np.linalg.norm(point - point[0], axis=1).max()
    assert travelled > 0.5 * 2 * min(body.half[0], body.half[2])


def test_about_turns_by_the_right_hand():
  turned = about(np.array([0.0, 0.0, 1.0]), np.array(np.pi / 2)) @ np.array([1.0, 0.0, 0.0])
  np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-12)
