import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from d4s_jax.geometry import poses, rotations

UP = np.array([0, -1, 0], np.float32)


def path(seed: int, frames: int):
  """Random key poses and rising times."""
  rng = np.random.default_rng(seed)
  turn = rotations.normalize(rng.normal(size=(frames, 4)))
  keys = poses.assemble(rotations.to_matrix(turn), rng.normal(size=(frames, 3)))
  return keys.astype(np.float32), np.cumsum(rng.uniform(0.1, 1, frames)).astype(np.float32)


def test_invert_by_hand(xp):
  # A camera at (1, 2, 3) that looks along world x: its z is x, its x is -z.
  pose = np.array([[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]], np.float32)
  inverse = poses.invert(xp.asarray(pose))
  expected = [[0, 0, -1, 3], [0, 1, 0, -2], [1, 0, 0, -1], [0, 0, 0, 1]]
  np.testing.assert_array_equal(inverse, expected)


def test_invert_and_compose_agree_with_linear_algebra():
  keys, _ = path(0, 6)
  np.testing.assert_allclose(poses.invert(keys), np.linalg.inv(keys), atol=1e-5)
  np.testing.assert_allclose(poses.compose(keys, keys[::-1]), keys @ keys[::-1], atol=1e-6)


def test_relative_to_makes_the_reference_the_origin(xp):
  keys, _ = path(1, 4)
  relative = poses.relative_to(xp.asarray(keys), xp.asarray(keys[0]))
  # float32 rounding of R^T R.
  np.testing.assert_allclose(relative[0], np.eye(4), atol=1e-6)
  np.testing.assert_allclose(relative[3], np.linalg.inv(keys[0]) @ keys[3], atol=1e-5)


def test_relative_to_batches(xp):
  keys = np.stack([path(seed, 3)[0] for seed in range(2)])
  relative = poses.relative_to(xp.asarray(keys), xp.asarray(keys[:, 0]))
  np.testing.assert_allclose(relative[:, 0], np.stack([np.eye(4)] * 2), atol=1e-6)


def test_look_at_ahead_is_the_identity(xp):
  eye, target = xp.asarray([0.0, 0.0, 0.0]), xp.asarray([0.0, 0.0, 5.0])
  np.testing.assert_allclose(poses.look_at(eye, target, xp.asarray(UP)), np.eye(4), atol=1e-7)


def test_look_at_puts_the_target_on_the_axis_and_up_above(xp):
  eye, target = np.array([2.0, -1.0, 0.5], np.float32), np.array([0.0, 0.3, 4.0], np.float32)
  camera_from_world = poses.invert(poses.look_at(*map(xp.asarray, (eye, target, UP))))
  target, above = (np.asarray(camera_from_world) @ [*point, 1] for point in (target, target + UP))
  np.testing.assert_allclose(target[:2], 0, atol=1e-6)
  assert target[2] > 0
  np.testing.assert_allclose(above[0], 0, atol=1e-6)
  assert above[1] < 0


@hypothesis.given(st.integers(0, 2**16), st.integers(1, 6))
def test_interpolation_hits_the_key_poses_and_stays_rigid(seed, frames):
  keys, times = path(seed, frames)
  # Rounding of the matrix to quaternion round trip.
  np.testing.assert_allclose(poses.interpolate(keys, times, times), keys, atol=2e-5)
  query = np.linspace(times[0] - 1, times[-1] + 1, 9, dtype=np.float32)
  rotation = poses.interpolate(keys, times, query)[:, :3, :3]
  identity = np.broadcast_to(np.eye(3), rotation.shape)
  np.testing.assert_allclose(rotation @ rotation.swapaxes(-1, -2), identity, atol=2e-5)


def test_interpolation_stands_still_outside_and_moves_evenly_on_a_line(xp):
  keys = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
  times = np.array([0, 0.25, 1], np.float32)
  keys[:, 0, 3] = 8 * times
  query = np.array([-1, 0.1, 0.5, 0.9, 2], np.float32)
  interpolate = jax.jit(poses.interpolate) if xp is jnp else poses.interpolate
  moved = interpolate(keys, times, query)
  np.testing.assert_allclose(moved[:, 0, 3], [0, 0.8, 4, 7.2, 8], atol=1e-5)


def test_interpolated_velocity_does_not_jump_at_a_key():
  keys, times = (x.astype(np.float64) for x in path(3, 5))
  step = 1e-5
  around = poses.interpolate(keys, times, times[2] + np.array([-step, 0, step]))[:, :3, 3]
  before, after = np.diff(around, axis=0) / step
  # A polyline's velocity would jump by the change of slope, which is of order one here.
  np.testing.assert_allclose(before, after, atol=1e-3)


def test_interpolation_is_traced_and_equal_to_numpy():
  keys, times = path(4, 5)
  query = np.linspace(0, 3, 7, dtype=np.float32)

  @jax.jit
  def value_and_gradient(k):
    traced, pull = jax.vjp(lambda k: poses.interpolate(k, times, query), k)
    return traced, pull(jnp.ones_like(traced))

  traced, (gradient,) = value_and_gradient(keys)
  np.testing.assert_allclose(traced, poses.interpolate(keys, times, query), atol=1e-5)
  assert np.isfinite(gradient).all()
