"""One update: accumulation, the guard against values that are not finite, the average."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d4s_jax.config import base
from d4s_jax.models.system import System
from d4s_jax.training import state
from d4s_jax.training.optimizer import learning_rate, make_optimizer, scale_by_path
from d4s_jax.training.step import MODULES, make_step, module_of

PARAMS = {"ldrm": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, "fixed": jnp.full(2, 5.0)}


def objective(params, batch, key):
  del key
  prediction = batch["x"] @ params["ldrm"]["kernel"] + params["ldrm"]["bias"][None]
  error = jnp.mean((prediction - batch["y"] - params["fixed"][0]) ** 2)
  return error, {"error": error}


def batch(seed=0, size=4):
  rng = np.random.default_rng(seed)
  return {
    "x": rng.normal(size=(size, 3)).astype(np.float32),
    "y": rng.normal(size=(size, 2)).astype(np.float32),
  }


def start(optimizer):
  return state.create(PARAMS, ("^ldrm/",), optimizer)


def test_frozen_parameters_have_no_moments_and_stay():
  optimizer = make_optimizer(
    peak=1e-2, warmup=0, steps=10, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0
  )
  before = start(optimizer)
  sizes = {leaf.size for leaf in jax.tree.leaves(before.optimizer)}
  assert set(before.frozen) == {"fixed"} and set(before.trainable) == {"ldrm/kernel", "ldrm/bias"}
  moments = [leaf for leaf in jax.tree.leaves(before.optimizer) if leaf.ndim]
  assert sum(leaf.size for leaf in moments) == 2 * (6 + 2), sizes
  after, _ = jax.jit(make_step(objective, optimizer, seed=0, average_decay=0.9))(before, batch())
  np.testing.assert_array_equal(after.frozen["fixed"], before.frozen["fixed"])
  assert not np.array_equal(after.trainable["ldrm/kernel"], before.trainable["ldrm/kernel"])


def test_accumulation_equals_one_large_batch():
  optimizer = optax.sgd(0.1)
  states = [
    jax.jit(make_step(objective, optimizer, seed=0, average_decay=0.9, accumulate=parts))(
      start(optimizer), batch()
    )[0]
    for parts in (1, 2, 4)
  ]
  for other in states[1:]:
    for path, value in states[0].trainable.items():
      # The order of float32 additions differs.
      np.testing.assert_allclose(other.trainable[path], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_applied(poison):
  optimizer = optax.adam(0.1)
  before = start(optimizer)
  bad = batch()
  bad["y"][1, 0] = poison
  step = jax.jit(make_step(objective, optimizer, seed=0, average_decay=0.9))
  after, metrics = step(before, bad)
  assert not metrics["finite"] and np.isnan(after.usual_norm)
  # Nor is the one that the loop has started before it knows.
  later, metrics = step(after, batch())
  assert not metrics["finite"] and np.isfinite(metrics["loss"])
  for state_ in (after, later):
    same = dataclasses.replace(state_, usual_norm=before.usual_norm)
    jax.tree.map(np.testing.assert_array_equal, same, before)


def test_a_spike_is_skipped_and_a_higher_level_is_not():
  optimizer = optax.sgd(1e-6)
  step = jax.jit(make_step(objective, optimizer, seed=0, average_decay=0.9, spike=10.0))
  now = start(optimizer)
  for _ in range(60):
    now, metrics = step(now, batch())
    assert not metrics["skipped"]
  np.testing.assert_allclose(now.usual_norm, metrics["gradient_norm"], rtol=0.01)
  large = batch()
  large["y"] = 100 * large["y"]
  after, metrics = step(now, large)
  assert metrics["skipped"] and metrics["finite"] and after.step == now.step + 1
  for name in ("trainable", "average", "optimizer"):
    jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(now, name))
  assert now.usual_norm < after.usual_norm < 1.5 * now.usual_norm
  # In the long run what was a spike is usual.
  counts = []
  for _ in range(40):
    after, metrics = step(after, large)
    counts.append(bool(metrics["skipped"]))
  assert counts[0] and not counts[-1]


def test_norms_by_module_are_those_of_its_gradient():
  params = {"ldrm": {"trunk": {"x": jnp.full(3, 2.0)}, "y": jnp.ones(())}, "other": jnp.ones(4)}

  def squares(params, batch, key):
    del batch, key
    return 0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), {}

  now = state.create(params, ("^ldrm/",), optax.sgd(0.1))
  _, metrics = jax.jit(make_step(squares, optax.sgd(0.1), seed=0, average_decay=0.9))(now, {})
  found = {name: float(x) for name, x in metrics.items() if name.startswith("gradient_norm")}
  assert found == pytest.approx(
    {
      "gradient_norm/ldrm/trunk": 12**0.5,
      "gradient_norm/ldrm": 1.0,
      "gradient_norm": 13**0.5,
    }
  )


@pytest.mark.parametrize("preset", ["tiny", "wan14b-i2v-480p"])
def test_every_parameter_is_of_a_named_module(preset):
  config = base(preset)
  config.model.lora.rank = 2
  paths = state.flatten(System.build(config.model.to_dict()).abstract())
  found = {module_of(path) for path in paths}
  assert found <= set(MODULES) and len(found) >= 8


def test_average_follows_fast_at_first_then_slowly():
  optimizer = optax.sgd(0.1)
  step = jax.jit(make_step(objective, optimizer, seed=0, average_decay=0.5))
  now, _ = step(start(optimizer), batch())
  # Step 0: decay min(.5, 1/10); the average is 0.1 of the start and 0.9 of the new value.
  expected = 0.1 * PARAMS["ldrm"]["kernel"] + 0.9 * now.trainable["ldrm/kernel"]
  np.testing.assert_allclose(now.average["ldrm/kernel"], expected, rtol=1e-6)


def test_learning_rate_rises_then_falls_to_a_hundredth():
  schedule = learning_rate(2e-3, 10, 100)
  np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0, 1e-3, 2e-3], rtol=1e-6)
  np.testing.assert_allclose(schedule(100), 2e-5, rtol=1e-5)


def test_warmup_longer_than_the_run_is_refused():
  with pytest.raises(ValueError, match="optimizer.warmup is 20"):
    learning_rate(1e-3, 20, 20)


def test_first_matching_group_scales_the_update():
  transform = scale_by_path((("^a/camera/", 1.0), ("^a/", 0.1)))
  updates = {"a/camera/x": jnp.ones(()), "a/y": jnp.ones(()), "b": jnp.ones(())}
  scaled, _ = transform.update(updates, transform.init(updates))
  np.testing.assert_allclose([scaled[name] for name in updates], [1.0, 0.1, 1.0], rtol=1e-6)


def test_pattern_without_a_match_is_refused():
  with pytest.raises(ValueError, match="ldmr.*paths start with .'fixed', 'ldrm'."):
    state.create(PARAMS, ("^ldmr/",), optax.sgd(1.0))
