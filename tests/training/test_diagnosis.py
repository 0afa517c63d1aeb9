"""Where a failed update comes from: the term, the module, the batch or the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d4s_jax.training import diagnosis, state
from d4s_jax.training.step import make_step

PARAMS = {
  "transformer": {"kernel": jnp.ones((3, 3)), "bias": jnp.zeros(3)},
  "ldrm": {"trunk": {"kernel": jnp.ones((3, 2))}, "gaussian": {"bias": jnp.zeros(2)}},
  "autoencoder": {"kernel": jnp.ones((3, 3))},
}


def objective(params, batch, key):
  """Two terms, one after the other; the gradient of the second is not finite where y is 1."""
  del key
  x = batch["x"] @ params["autoencoder"]["kernel"]
  x = x @ params["transformer"]["kernel"] + params["transformer"]["bias"][None]
  flow = jnp.mean(x**2)
  y = x @ params["ldrm"]["trunk"]["kernel"] + params["ldrm"]["gaussian"]["bias"][None]
  motion = jnp.mean(jnp.sqrt(jnp.where(batch["y"] == 1, 0 * y, 1 + y**2)))
  terms = {"flow_matching": flow, "motion": motion}
  return flow + motion, terms | {"psnr": -motion}


def batch():
  rng = np.random.default_rng(0)
  return {
    "x": rng.normal(size=(4, 3)).astype(np.float32),
    "y": np.zeros((4, 2), np.float32),
    "text": np.zeros((4, 5), np.int32),
  }


def diagnose(bad, *, params=PARAMS, accumulate=1):
  optimizer = optax.adam(0.1)
  before = state.create(params, ("^transformer/", "^ldrm/"), optimizer)
  step = jax.jit(make_step(objective, optimizer, seed=0, average_decay=0.9, accumulate=accumulate))
  after, metrics = step(before, bad)
  # As in the loop, which has started another one.
  after, _ = step(after, batch())
  said = diagnosis.make(objective, seed=0, accumulate=accumulate)(after, bad, bad)
  return bool(metrics["finite"]), said


def test_numbers_of_the_batch():
  bad = batch()
  bad["x"][1, :2] = np.nan
  finite, said = diagnose(bad)
  assert not finite
  assert said == (
    "the loss term flow_matching (and then motion) is not. The batch has numbers that are not: 2 in"
    " x. The parameters are."
  )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_later_term_alone(accumulate):
  bad = batch()
  bad["y"][0, 1] = np.inf  # compares with 1 only
  params = jax.tree.map(jnp.copy, PARAMS)
  params["ldrm"]["gaussian"]["bias"] = jnp.array([0.0, jnp.inf])
  finite, said = diagnose(bad, params=params, accumulate=accumulate)
  assert not finite and said.startswith("the loss term motion is not. The batch has")
  assert said.endswith("Of the parameters, these are not: ldrm/gaussian/bias.")


def test_a_gradient_whose_loss_is_finite():
  bad = batch()
  bad["y"][2, 0] = 1
  finite, said = diagnose(bad)
  assert not finite
  assert said == (
    "all loss terms are, but the gradient of motion is not, first in ldrm/gaussian"
    " (ldrm/gaussian/bias) (and then ldrm/trunk, transformer). The batch is. The parameters are."
  )


def test_frozen_parameters_are_looked_at_too():
  params = jax.tree.map(jnp.copy, PARAMS)
  params["autoencoder"]["kernel"] = jnp.full((3, 3), jnp.nan)
  finite, said = diagnose(batch(), params=params)
  assert not finite and "these are not: autoencoder/kernel." in said


def test_what_can_not_be_repeated_is_called_so():
  now = state.create(PARAMS, ("^ldrm/",), optax.sgd(1.0))
  now = dataclasses.replace(now, usual_norm=jnp.array(jnp.nan))
  said = diagnosis.make(objective, seed=0)(now, batch(), batch())
  assert said.startswith("but computed once more, it is finite")
