"""Conventions by hand, axioms by hypothesis, gradients at the identity."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from d4s_jax.geometry import rotations

HALF = np.float32(np.sqrt(0.5))
IDENTITY = np.array([1, 0, 0, 0], np.float32)
# A quarter turn about z, right-handed.
QUARTER_Z = np.array([HALF, 0, 0, HALF], np.float32)
QUARTER_X = np.array([HALF, HALF, 0, 0], np.float32)

# float32 rounding through a product of a few terms of size one.
CLOSE = {"atol": 3e-6, "rtol": 0}


@st.composite
def quaternions(draw):
  numbers = draw(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4))
  hypothesis.assume(sum(x * x for x in numbers) > 1e-2)
  return rotations.normalize(np.array(numbers, np.float32))


vectors = st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3).map(
  lambda numbers: np.array(numbers, np.float32)
)


def test_quarter_turn_about_z_takes_x_to_y(xp):
  matrix = rotations.to_matrix(xp.asarray(QUARTER_Z))
  np.testing.assert_allclose(matrix, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-7)
  turned = rotations.rotate(matrix, xp.asarray([1.0, 0.0, 0.0]))
  np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-7)


def test_the_product_is_hamiltons_with_the_right_factor_first():
  i, j = np.eye(4, dtype=np.float32)[1:3]
  np.testing.assert_array_equal(rotations.multiply(i, j), [0, 0, 0, 1])
  both = rotations.to_matrix(rotations.multiply(QUARTER_Z, QUARTER_X))
  # y -> z by the quarter turn about x, then z -> z: the other order would give -x.
  np.testing.assert_allclose(both @ [0, 1, 0], [0, 0, 1], atol=1e-6)


def test_zero_quaternion_stays_finite():
  np.testing.assert_array_equal(rotations.normalize(np.zeros(4)), np.zeros(4))
  assert np.isfinite(jax.jacobian(rotations.normalize)(jnp.zeros(4))).all()


@hypothesis.given(quaternions(), quaternions(), vectors)
def test_axioms(p, q, v):
  matrix = rotations.to_matrix(p)
  np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), **CLOSE)
  np.testing.assert_allclose(np.linalg.det(matrix), 1, **CLOSE)
  product = rotations.to_matrix(rotations.multiply(p, q))
  np.testing.assert_allclose(product, matrix @ rotations.to_matrix(q), **CLOSE)
  inverse = rotations.multiply(p, p * np.array([1, -1, -1, -1], p.dtype))
  np.testing.assert_allclose(inverse, IDENTITY, **CLOSE)
  rotated = rotations.rotate(matrix, v)
  np.testing.assert_allclose(rotated, matrix @ v, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(rotated), np.linalg.norm(v), atol=1e-5)


@hypothesis.given(quaternions())
@hypothesis.example(np.array([0, 1, 0, 0], np.float32))
@hypothesis.example(np.array([0, 0, 1, 0], np.float32))
@hypothesis.example(np.array([0, 0, 0, 1], np.float32))
@hypothesis.example(-IDENTITY)
def test_matrix_round_trip_with_positive_w(q):
  recovered = rotations.from_matrix(rotations.to_matrix(q))
  assert recovered[0] >= 0
  np.testing.assert_allclose(abs(np.dot(recovered, q)), 1, **CLOSE)


@hypothesis.given(quaternions(), quaternions())
def test_slerp_ends_at_its_ends_and_turns_evenly(p, q):
  def distance(a, b):
    return 1 - abs(np.dot(a, b))

  zero, one, half = (np.asarray(x, np.float32) for x in (0, 1, 0.5))
  assert distance(rotations.slerp(p, q, zero), p) < 1e-6
  assert distance(rotations.slerp(p, q, one), q) < 1e-6
  middle = rotations.slerp(p, q, half)
  # The middle is as far from one end as from the other, and never on the long way round.
  np.testing.assert_allclose(abs(middle @ p), abs(middle @ q), atol=2e-6)
  assert abs(middle @ p) >= abs(p @ q) - 1e-6


def test_slerp_a_third_of_a_quarter_turn_is_thirty_degrees(xp):
  turned = rotations.slerp(
    xp.asarray(IDENTITY), xp.asarray(QUARTER_Z), xp.asarray(1 / 3, dtype=xp.float32)
  )
  angle = np.radians(30) / 2
  np.testing.assert_allclose(turned, [np.cos(angle), 0, 0, np.sin(angle)], atol=1e-6)
  flipped = rotations.slerp(
    xp.asarray(IDENTITY), -xp.asarray(QUARTER_Z), xp.asarray(1 / 3, dtype=xp.float32)
  )
  np.testing.assert_allclose(flipped, turned, atol=1e-7)


@pytest.mark.parametrize("end", [IDENTITY, -IDENTITY, QUARTER_Z], ids=["same", "negated", "turned"])
def test_gradients_are_finite(end):
  def through(p, q, t):
    return rotations.from_matrix(rotations.to_matrix(rotations.slerp(p, q, t)))

  jacobians = jax.jit(jax.jacobian(through, argnums=(0, 1, 2)))(
    jnp.asarray(IDENTITY), jnp.asarray(end), jnp.float32(0.3)
  )
  assert all(np.isfinite(jacobian).all() for jacobian in jacobians)


def test_leading_axes_and_dtype(xp):
  q = xp.broadcast_to(xp.asarray(QUARTER_Z), (2, 5, 4))
  t = xp.full((2, 5), 0.5, dtype=xp.float32)
  assert rotations.slerp(q, q, t).shape == (2, 5, 4)
  assert rotations.slerp(q, q, t).dtype == np.float32
  matrix = rotations.to_matrix(q)
  assert matrix.shape == (2, 5, 3, 3) and matrix.dtype == np.float32
  assert rotations.from_matrix(matrix).dtype == np.float32
