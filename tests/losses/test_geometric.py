"""Correlation of depth and its total variation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.losses import geometric as loss
from d4s_jax.losses.geometric import correlation_distance, log_depth, total_variation

SHAPE = (2, 3, 8, 10)

correlation_distance = jax.jit(correlation_distance)
total_variation = jax.jit(total_variation)


@jax.jit
def correlation_loss(rendered, alpha, depth):
  """Value and gradient of the loss without its smoothness."""
  return jax.value_and_grad(loss)(rendered, alpha, depth, smoothness=0.0)


@pytest.fixture
def depths(key):
  """True depth and an unrelated rendering, metres."""
  return tuple(jax.random.uniform(key, (2, *SHAPE), minval=1, maxval=9))


def test_correlation_agrees_with_numpy(depths, key):
  depth, rendered = depths
  mask = jax.random.bernoulli(key, 0.7, SHAPE)
  expected = [
    1 - np.corrcoef(x[m], y[m])[0, 1]
    for x, y, m in zip(*(np.asarray(a).reshape(6, 8, 10) for a in (rendered, depth, mask)))
  ]
  # 1e-5: the floor of 1e-6 under both relative variances, here about 0.2.
  np.testing.assert_allclose(
    correlation_distance(rendered, depth, mask), np.mean(expected), rtol=1e-5
  )


def test_correlation_ignores_scale_and_shift(depths):
  depth, rendered = depths
  mask = jnp.ones(SHAPE, bool)
  distance = correlation_distance(rendered, depth, mask)
  moved = correlation_distance(2.5 * rendered + 4, depth, mask)
  # 2e-5: the floor under the relative variance, which a shift of the depths changes.
  np.testing.assert_allclose(moved, distance, atol=2e-5)


def test_loss_of_an_affine_copy_is_zero(depths):
  depth, _ = depths
  covered = jnp.ones(SHAPE)
  # 5e-5: the floor of 1e-6 under relative variances, the least of which is about 0.05.
  for copy, expected in ((3 * depth + 1, 0.0), (20 - depth, 2.0)):
    value, _ = correlation_loss(copy, covered, depth)
    np.testing.assert_allclose(value, expected, atol=5e-5)


def test_only_covered_pixels_of_known_depth_count(depths):
  depth, rendered = depths
  alpha = jnp.ones(SHAPE).at[..., 0].set(0.4)
  unknown = depth.at[..., 1].set(0.0)
  spoilt = rendered.at[..., 0].set(jnp.nan).at[..., 1].set(99.0)
  value, gradient = correlation_loss(spoilt, alpha, unknown)
  expected, _ = correlation_loss(rendered[..., 2:], alpha[..., 2:], depth[..., 2:])
  np.testing.assert_allclose(value, expected, rtol=1e-6)  # order of summation
  np.testing.assert_array_equal(gradient[..., :2], 0.0)
  assert jnp.all(jnp.isfinite(gradient))


def test_total_variation_of_a_ramp():
  ramp = jnp.broadcast_to(jnp.array([1.0, 2.0, 3.0])[None, :], (4, 3))[None]
  # One metre a pixel to the right, none down, over a mean of two metres.
  assert total_variation(ramp, jnp.ones(ramp.shape, bool)) == 0.5


def test_total_variation_skips_outlines():
  step = jnp.ones((1, 4, 6)).at[..., 3:].set(0.0)
  assert total_variation(step, step > 0) == 0.0
  assert total_variation(step, jnp.ones(step.shape, bool)) > 0.1


def test_total_variation_does_not_reward_growing_depth(depths):
  _, rendered = depths
  mask = jnp.ones(SHAPE, bool)
  gradient = jax.grad(lambda s: total_variation(s * rendered, mask))(1.0)
  # Divided by its own mean without detaching it, the slope along a common scale would be 0.
  np.testing.assert_allclose(gradient, total_variation(rendered, mask), rtol=1e-5)


@pytest.mark.parametrize("case", ["flat rendering", "flat truth", "nothing covered", "one pixel"])
def test_degenerate_views_have_finite_gradients(case, depths):
  depth, rendered = depths
  alpha = jnp.ones(SHAPE)
  if case == "flat rendering":
    rendered = jnp.full(SHAPE, 4.0)
  elif case == "flat truth":
    depth = jnp.full(SHAPE, 4.0)
  elif case == "nothing covered":
    alpha = jnp.zeros(SHAPE)
  else:
    alpha = jnp.zeros(SHAPE).at[:, :, 3, 3].set(1.0)
  value, gradient = correlation_loss(rendered, alpha, depth)
  np.testing.assert_allclose(value, 1.0 if case == "flat rendering" else 0.0, atol=1e-6)
  assert jnp.all(jnp.isfinite(gradient))
  # A flat rendering is where training starts: it has to be told where to go.
  assert jnp.any(gradient != 0) == (case == "flat rendering")


def test_views_without_information_do_not_dilute_the_others(depths):
  depth, rendered = depths
  mask = jnp.ones(SHAPE, bool)
  flat = depth.at[:, 1:].set(2.0)
  np.testing.assert_allclose(
    correlation_distance(rendered, flat, mask),
    correlation_distance(rendered[:, :1], depth[:, :1], mask[:, :1]),
    rtol=1e-6,  # order of summation
  )


def test_flat_depth_has_no_preferred_direction():
  flat = jnp.full((1, 6, 6), 3.0)
  gradient = jax.grad(total_variation)(flat, jnp.ones(flat.shape, bool))
  np.testing.assert_array_equal(gradient, 0.0)


def test_the_two_parts_are_added(depths):
  depth, rendered = depths
  covered = jnp.ones(SHAPE)
  parts = correlation_loss(rendered, covered, depth)[0] + 0.3 * total_variation(
    rendered, covered > 0
  )
  whole = jax.jit(lambda x: loss(x, covered, depth, smoothness=0.3))(rendered)
  np.testing.assert_allclose(whole, parts, rtol=1e-6)  # order of summation


def test_log_depth_of_a_map_with_larger_cells():
  true = jnp.asarray(np.random.default_rng(0).uniform(1, 9, (2, 4, 6)), jnp.float32)
  centres = true[:, 1::2, 1::2]
  assert float(log_depth(centres, true)) == 0.0
  np.testing.assert_allclose(log_depth(centres * jnp.e, true), 1.0, rtol=1e-5)
  np.testing.assert_allclose(log_depth(centres / jnp.e, true), 1.0, rtol=1e-5)
  holes = true.at[0].set(0.0)
  wrong_there = centres.at[0].set(1e-3)
  assert float(log_depth(wrong_there, holes)) == 0.0
  slope = jax.grad(log_depth)(wrong_there, holes)
  assert np.isfinite(slope).all() and not np.any(slope[0])
