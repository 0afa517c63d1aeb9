import numpy as np
import pytest

from d4s_jax.geometry import poses, trajectories


@pytest.mark.parametrize("name", trajectories.TRAJECTORIES)
@pytest.mark.parametrize("frames", [1, 9])
def test_every_path_starts_at_the_identity_and_is_rigid(name, frames):
  path = trajectories.trajectory(name, frames)
  assert path.shape == (frames, 4, 4) and path.dtype == np.float32
  np.testing.assert_array_equal(path[0], np.eye(4))
  rotation = path[:, :3, :3]
  np.testing.assert_allclose(
    rotation @ rotation.swapaxes(-1, -2), np.tile(np.eye(3), (frames, 1, 1)), atol=1e-6
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
  if frames > 1:
    assert np.abs(path[4] - path[0]).max() > 0.1


@pytest.mark.parametrize(
  ("name", "end"),
  [("forward", (0, 0, 3)), ("backward", (0, 0, -3)), ("up", (0, -3, 0)), ("down", (0, 3, 0))],
)
def test_straight_paths_go_the_distance_without_turning(name, end):
  path = trajectories.trajectory(name, 5, distance=3)
  np.testing.assert_allclose(path[-1, :3, 3], end, atol=1e-6)
  np.testing.assert_allclose(path[2, :3, 3], np.array(end) / 2, atol=1e-6)
  np.testing.assert_array_equal(path[:, :3, :3], np.tile(np.eye(3), (5, 1, 1)))


def test_the_spiral_winds_out_to_its_distance_and_watches_the_pivot():
  path = trajectories.trajectory("spiral", 17, distance=0.5, pivot=3)
  radius = np.linalg.norm(path[:, :3, 3], axis=-1)
  np.testing.assert_allclose(radius, np.linspace(0, 0.5, 17), atol=1e-6)
  # A quarter of the way in time is a quarter turn, from above to the right.
  np.testing.assert_allclose(path[4, :3, 3], [0.125, 0, 0], atol=1e-6)
  seen = poses.invert(path) @ np.array([0, 0, 3, 1], np.float32)
  np.testing.assert_allclose(seen[:, :2], 0, atol=1e-6)


def test_the_orbit_closes_and_circles_the_pivot():
  path = trajectories.trajectory("orbit", 9, radius=2)
  np.testing.assert_array_equal(path[-1], np.eye(4))
  pivot = np.array([0, 0, 2])
  np.testing.assert_allclose(np.linalg.norm(path[:, :3, 3] - pivot, axis=-1), 2, atol=1e-6)
  # A quarter of the way round, to the right, looking left along -x.
  np.testing.assert_allclose(path[2, :3, 3], [2, 0, 2], atol=1e-6)
  np.testing.assert_allclose(path[2, :3, 2], [-1, 0, 0], atol=1e-6)
  np.testing.assert_allclose(path[4, :3, 3], [0, 0, 4], atol=1e-6)


def test_an_arc_of_the_orbit_and_its_other_way():
  path = trajectories.trajectory("orbit", 3, degrees=-90, radius=3)
  np.testing.assert_allclose(path[-1, :3, 3], [-3, 0, 3], atol=1e-6)
  np.testing.assert_allclose(path[-1, :3, 2], [1, 0, 0], atol=1e-6)


def test_names_with_parameters():
  assert trajectories.parse("orbit") == ("orbit", {})
  assert trajectories.parse("orbit:degrees=-40,radius=3") == (
    "orbit",
    {"degrees": -40, "radius": 3},
  )
  with pytest.raises(ValueError, match="'loop:x=1'; expected one of spiral, .*, or a file"):
    trajectories.parse("loop:x=1")
  with pytest.raises(ValueError, match="'radius'; expected orbit:degrees=NUMBER,radius=NUMBER"):
    trajectories.parse("orbit:radius")


def test_unknown_names_and_senseless_numbers_are_refused():
  with pytest.raises(ValueError, match="'loop'; expected one of spiral, forward, .*orbit"):
    trajectories.trajectory("loop", 9)
  with pytest.raises(ValueError, match="'up' has no 'pivot'; expected distance"):
    trajectories.trajectory("up", 9, pivot=1)
  with pytest.raises(ValueError, match="frames=0; expected a positive number"):
    trajectories.trajectory("orbit", 0)
  with pytest.raises(ValueError, match="distance=-1; expected a positive number"):
    trajectories.trajectory("up", 9, distance=-1)
  with pytest.raises(ValueError, match="radius=nan; expected a positive number"):
    trajectories.trajectory("orbit", 9, radius=float("nan"))
