"""Both forms of the motion loss against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.losses.motion import FORMS, motion

TRUE = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
VALID = jnp.array([True, True, False])


def test_paper_form_by_hand():
  predicted = jnp.array([[3.0, 0.0, 3.0], [0.0, -0.5, 0.0], [9.0, 9.0, 9.0]])
  # Point 0: error (0, -4, 3), norm 5; shrinkage 6. Point 1: error .5; shrinkage .5.
  expected = ((2 * 5 + 6) + (2 * 0.5 + 0.5)) / 2
  np.testing.assert_allclose(motion(predicted, TRUE, VALID), expected, rtol=1e-6)
  expected = ((5 + 6) + (0.5 + 0.5)) / 2
  np.testing.assert_allclose(motion(predicted, TRUE, VALID, data_weight=1.0), expected, rtol=1e-6)


def test_huber_form_by_hand():
  predicted = jnp.array([[3.0, 0.0, 3.0], [0.0, -0.5, 0.0], [9.0, 9.0, 9.0]])
  loss = motion(predicted, TRUE, VALID, form="huber", data_weight=1.0, transition=1.0)
  # Errors 5 and .5; Huber 4.5 and .125. Lengths 5 and 0, mean 2.5: weights 3 and 1.
  np.testing.assert_allclose(loss, (3 * 4.5 + 1 * 0.125) / 4, rtol=1e-6)


def test_huber_form_is_squared_near_the_truth_and_approaches_the_norm():
  def loss(error, transition):
    return motion(
      jnp.array([[error, 0.0, 0.0]]),
      jnp.zeros((1, 3)),
      jnp.array([True]),
      form="huber",
      data_weight=1.0,
      transition=transition,
    )

  # 1e-4: the square root's epsilon of a micrometre.
  np.testing.assert_allclose(loss(0.2, 1.0) / loss(0.1, 1.0), 4.0, rtol=1e-4)
  np.testing.assert_allclose(loss(0.2, 1e-4), 0.2, rtol=1e-3)


def test_few_moving_points_carry_half_of_the_huber_form():
  true = jnp.zeros((100, 3)).at[:2].set(1.0)
  valid = jnp.ones(100, bool)
  zero = jnp.zeros_like(true)
  everything_moves = jnp.ones_like(true)
  missed = motion(zero, true, valid, form="huber")
  invented = motion(everything_moves, true, valid, form="huber")
  # Missing the two costs (2 + 100) / 200 of what it would cost were all points moving;
  # moving the 98 static ones costs the rest. The plain mean would give 2 : 98.
  np.testing.assert_allclose(missed / invented, 102 / 98, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_invalid_points_never_reach_value_or_gradient(form):
  true = TRUE.at[2].set(jnp.nan)
  predicted = jnp.ones((3, 3))

  def loss(predicted):
    return motion(predicted, true, VALID, form=form)

  value, gradient = jax.value_and_grad(loss)(predicted)
  np.testing.assert_allclose(value, motion(predicted[:2], TRUE[:2], VALID[:2], form=form))
  np.testing.assert_array_equal(gradient[2], 0.0)
  assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_finite_where_the_prediction_is_exact(form):
  gradient = jax.grad(lambda x: motion(x, jnp.zeros((3, 3)), VALID, form=form))(jnp.zeros((3, 3)))
  np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_no_valid_points_cost_nothing(form):
  nothing = jnp.zeros(3, bool)
  value, gradient = jax.value_and_grad(lambda x: motion(x, TRUE, nothing, form=form))(TRUE + 1)
  assert value == 0.0
  np.testing.assert_array_equal(gradient, 0.0)


def test_paper_form_shrinks_what_has_no_evidence():
  # Exact prediction of true motion still pays the L1 term; the Huber form pays nothing.
  np.testing.assert_allclose(motion(TRUE, TRUE, VALID), (7 + 0) / 2, rtol=1e-5)
  assert motion(TRUE, TRUE, VALID, form="huber") < 1e-9


def test_unknown_form_is_refused():
  with pytest.raises(ValueError, match="squared.*expected one of"):
    motion(TRUE, TRUE, VALID, form="squared")
