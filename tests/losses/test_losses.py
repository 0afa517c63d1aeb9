"""The table of losses, and the two plain mean squared errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax import losses
from d4s_jax.losses.flow_matching import flow_matching
from d4s_jax.losses.photometric import photometric


def test_total_is_the_weighted_sum():
  terms = {"photometric": jnp.float32(2.0), "motion": jnp.float32(3.0)}
  total = jax.jit(lambda terms: losses.total({"motion": 2.0, "photometric": 0.5}, terms))(terms)
  assert total == 7.0


@pytest.mark.parametrize("weights", [{"photometric": 1.0}, {"photometric": 1.0, "motion": 1.0}])
def test_total_refuses_terms_and_weights_that_differ(weights):
  terms = {"photometric": jnp.float32(2.0), "geometric": jnp.float32(3.0)}
  with pytest.raises(ValueError, match="must name the same terms"):
    losses.total(weights, terms)


def test_photometric_is_the_mean_square():
  image = jnp.zeros((2, 4, 4, 3)).at[0].set(0.5)
  assert photometric(image, jnp.zeros_like(image)) == 0.125


def test_flow_matching_leaves_the_clean_frame_out():
  target = jnp.zeros((2, 3, 4, 4, 5))
  prediction = target.at[:, 0].set(jnp.nan).at[:, 1].set(1.0).at[:, 2].set(3.0)
  mask = jnp.tile(jnp.array([[False, True, True]]), (2, 1))

  def loss(prediction):
    return flow_matching(prediction, target, mask=mask)

  assert loss(prediction) == 5.0  # (1 + 9) / 2
  gradient = jax.grad(loss)(target.at[:, 0].set(7.0))
  np.testing.assert_array_equal(gradient[:, 0], 0.0)


def test_flow_matching_of_no_frames_is_zero():
  ones = jnp.ones((1, 2, 2, 2, 3))
  mask = jnp.zeros((1, 2), bool)
  value, gradient = jax.value_and_grad(lambda x: flow_matching(x, 0 * ones, mask=mask))(ones)
  assert value == 0.0
  assert jnp.all(gradient == 0.0)


def test_flow_matching_computes_in_float32():
  prediction = jnp.full((1, 1, 1, 1, 3), 256, jnp.bfloat16)
  target = jnp.full((1, 1, 1, 1, 3), 255, jnp.bfloat16)
  # In bfloat16 the square of such values has 3 digits; their difference is exact in float32.
  loss = flow_matching(prediction, target)
  assert loss.dtype == jnp.float32
  assert loss == 1.0
