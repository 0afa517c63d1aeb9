"""Tables of steps that reuse features: what they must be, how they are chosen, what they do."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.diffusion.reuse import calibrate, check, choose
from d4s_jax.diffusion.sampler import Velocities, sample, unconditional_passes
from d4s_jax.diffusion.schedule import FlowMatching


class Model:
  """A velocity that is features plus a short rest; both branches, and what was asked, are kept."""

  def __init__(self, features):
    self.features, self.calls = features, []

  def __call__(self, latents, level, guided, features=None):
    self.calls.append((guided, features is not None))
    if features is None:
      features = [branch(latents, level) for branch in self.features[: 1 + guided]]
    velocities = [0.1 * latents + x for x in features[: 1 + guided]]
    return Velocities(velocities[0], velocities[1] if guided else None, features)


def changing(latents, level):
  return jnp.sin(3 * level)[:, None] * latents


def test_a_step_that_reuses_uses_the_last_full_one_of_the_same_branch():
  noise = jnp.array([[1.0, -0.5]])
  weights = np.array([3.0, 2.0, 1.5, 1.0, 1.0])
  model = Model((changing, lambda latents, level: 2 * changing(latents, level)))
  found = sample(model, noise, FlowMatching(1.0), weights, reuse=(1, 2, 4))
  assert model.calls == [(True, False), (True, True), (True, True), (False, False), (False, True)]
  # By hand: Euler steps of 1/5, features of steps 0 and 3.
  x = np.asarray(noise)
  for i, weight in enumerate(weights):
    if i in (0, 3):
      kept = np.sin(3 * (1 - i / 5)) * x
    conditional, base = 0.1 * x + kept, 0.1 * x + 2 * kept
    x = x - 0.2 * (base + weight * (conditional - base))
  np.testing.assert_allclose(found, x, rtol=1e-5)
  assert unconditional_passes(weights, (1, 2, 4)) == 1


def test_reuse_of_features_that_stay_is_exact():
  noise, weights = jnp.array([[1.0, -0.5]]), np.full(6, 2.0)
  constant = (lambda latents, level: jnp.array([[0.5, 2.0]]),) * 2
  full = sample(Model(constant), noise, FlowMatching(), weights)
  again = sample(Model(constant), noise, FlowMatching(), weights, reuse=(1, 2, 3, 5))
  np.testing.assert_array_equal(again, full)
  errors = calibrate(Model(constant), noise, FlowMatching(), weights, span=2)
  # Every earlier step within the span, and no other.
  measured = {(i, j) for i, j in itertools.product(range(6), repeat=2) if 0 < i - j <= 2}
  assert set(zip(*np.nonzero(np.isfinite(errors)))) == measured
  assert all(errors[index] == 0 for index in measured)


def test_calibration_measures_what_one_reused_step_changes():
  noise, weights = jnp.array([[1.0, -0.5]]), np.ones(4)
  model = Model((changing, changing))
  errors = calibrate(model, noise, FlowMatching(1.0), weights, span=2, seen=lambda x: x[:, :1])
  # Up to step 2 by hand; what step 2 makes of its own features, and of those of step 1.
  x = np.asarray(noise)
  for i in range(3):
    kept, before = np.sin(3 * (1 - i / 4)) * x, kept if i else None
    new = x - 0.25 * (0.1 * x + kept)
    old = None if before is None else x - 0.25 * (0.1 * x + before)
    x = new
  change = np.abs(old - new)[0, 0] / np.abs(new)[0, 0]
  np.testing.assert_allclose(errors[2, 1], change, rtol=1e-4)


def test_the_chosen_table_is_the_cheapest_of_all():
  random = np.random.default_rng(0).random((8, 8))
  distance = np.subtract.outer(np.arange(8), np.arange(8))
  errors = np.where((distance > 0) & (distance <= 3), random, np.inf)

  def cost(table):
    full = [max(j for j in range(i) if j not in table) for i in table]
    return sum(errors[i, j] for i, j in zip(table, full))

  for count in range(7):
    tables = list(itertools.combinations(range(1, 8), count))
    assert choose(errors, count) == min(tables, key=cost)
  with pytest.raises(ValueError, match="7 of 8 steps are to reuse"):
    choose(errors, 7)  # Each full step is reused three times at most.
  with pytest.raises(ValueError, match="-1 of 8 steps"):
    choose(errors, -1)


@pytest.mark.parametrize(
  "table, message",
  [
    ((0, 3), "none to be 0: before the first step there is nothing to reuse"),
    ((3, 8), "steps from 1 to 7, as a run has 8; not 8"),
    ((-1,), "steps from 1 to 7, as a run has 8; not -1"),
    ((2, 2), r"\(2, 2\); expected each step once"),
    ((2, "x"), "whole numbers, not 'x'"),
    ((2.0,), "whole numbers, not 2.0"),
    ((True,), "whole numbers, not True"),
    ("35", "'35'; expected a list of steps"),
    (3, "3; expected a list of steps"),
  ],
)
def test_tables_that_cant_be_followed_are_refused(table, message):
  with pytest.raises(ValueError, match=message):
    check(table, 8)


def test_a_table_is_put_in_order():
  assert check([5, 3], 8) == (3, 5) and check((), 8) == ()
