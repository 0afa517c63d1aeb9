import jax
import numpy as np
import pytest

from d4s_jax.geometry import harmonics

AXES = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)


def sphere():
  """A product quadrature, exact for polynomials to degree 7: directions and weights of sum 4 pi."""
  cosines, weights = np.polynomial.legendre.leggauss(8)
  angles = np.arange(16) * (2 * np.pi / 16)
  sine = np.sqrt(1 - cosines**2)[:, None]
  x, y = sine * np.cos(angles), sine * np.sin(angles)
  directions = np.stack([x, y, np.broadcast_to(cosines[:, None], x.shape)], axis=-1)
  return directions.reshape(-1, 3), np.repeat(weights * 2 * np.pi / 16, 16)


def test_the_basis_is_orthonormal():
  directions, weights = sphere()
  values = harmonics.basis(directions, 16)
  # Exact but for float64 rounding.
  np.testing.assert_allclose(values.T @ (weights[:, None] * values), np.eye(16), atol=1e-12)


def test_signs_of_splatting():
  """The published constants of 3D Gaussian Splatting, at the direction (1, 2, 2) / 3."""
  x, y, z = 1 / 3, 2 / 3, 2 / 3
  expected = [
    0.28209479177387814,
    -0.4886025119029199 * y,
    0.4886025119029199 * z,
    -0.4886025119029199 * x,
    1.0925484305920792 * x * y,
    -1.0925484305920792 * y * z,
    0.31539156525252005 * (2 * z * z - x * x - y * y),
    -1.0925484305920792 * x * z,
    0.5462742152960396 * (x * x - y * y),
    -0.5900435899266435 * y * (3 * x * x - y * y),
    2.890611442640554 * x * y * z,
    -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
    0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
    -0.4570457994644658 * x * (4 * z * z - x * x - y * y),
    1.445305721320277 * z * (x * x - y * y),
    -0.5900435899266435 * x * (x * x - 3 * y * y),
  ]
  np.testing.assert_allclose(harmonics.basis(np.array([x, y, z]), 16), expected, rtol=1e-12)


@pytest.mark.parametrize("count", harmonics.DEGREES)
def test_a_constant_colour_comes_back_from_every_side(xp, count):
  rgb = xp.asarray([0.2, 0.5, 0.9], dtype=xp.float32)
  coefficients = np.zeros((6, count, 3), np.float32)
  coefficients[:, :1] = harmonics.from_rgb(rgb)
  seen = harmonics.evaluate(xp.asarray(coefficients), xp.asarray(AXES))
  assert seen.dtype == np.float32
  np.testing.assert_allclose(seen, np.tile(rgb, (6, 1)), atol=1e-6)


def test_first_degree_by_hand_and_black_below_zero(xp):
  coefficients = np.zeros((1, 4, 3), np.float32)
  coefficients[0, 3] = [-1, 0, 2]
  seen = harmonics.evaluate(xp.asarray(coefficients), xp.asarray(AXES[:1]))
  np.testing.assert_allclose(seen, [[0.5 + 0.4886025, 0.5, 0]], atol=1e-6)


def test_traced_equals_numpy_over_batches():
  rng = np.random.default_rng(0)
  coefficients = rng.normal(size=(2, 5, 16, 3)).astype(np.float32)
  directions = np.broadcast_to(AXES[:5], (2, 5, 3))
  traced = jax.jit(harmonics.evaluate)(coefficients, directions)
  np.testing.assert_allclose(traced, harmonics.evaluate(coefficients, directions), atol=1e-5)


def test_odd_counts_are_refused():
  with pytest.raises(ValueError, match="5 spherical-harmonic coefficients; expected one of"):
    harmonics.evaluate(np.zeros((1, 5, 3)), np.zeros((1, 3)))
