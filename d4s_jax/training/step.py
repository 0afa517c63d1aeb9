"""One update: a pure function of state, batch and key."""

import dataclasses
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from d4s_jax.training.state import Flat, TrainState, unflatten

# Decay of the usual norm of the gradient, and updates before which nothing counts as a spike.
_NORM_DECAY = 0.98
_UNUSUAL_FROM = 50

# Parts of the model by their paths, in the order in which a step goes through them.
MODULES = (
  "autoencoder",
  "image_encoder",
  "text_encoder",
  "transformer/camera",
  "adapter",
  "transformer",
  "ldrm/stem",
  "ldrm/trunk",
  "ldrm/gaussian",
  "ldrm/detail",
  "ldrm/deformation",
)

# (nested parameters, batch, key) -> (loss, metrics)
Objective = Callable[[Any, Any, PRNGKeyArray], tuple[Float[Array, ""], dict[str, Array]]]
# (state, batch, key) -> ((loss, metrics), gradient by path)
Gradient = Callable[[TrainState, Any, PRNGKeyArray], tuple[tuple[Array, dict[str, Array]], Flat]]


def make_gradient(objective: Objective, accumulate: int = 1) -> Gradient:
  """Builds the gradient with respect to the trainable parameters.

  Args:
    objective: loss and metrics of a batch.
    accumulate: the batch is cut into this many parts whose gradients are averaged.
  """

  def gradient(state: TrainState, batch, key):
    def loss(trainable):
      return objective(unflatten(state.frozen, trainable), batch, key)

    return jax.value_and_grad(loss, has_aux=True)(state.trainable)

  def accumulated(state: TrainState, batch, key):
    if accumulate == 1:
      return gradient(state, batch, key)
    # Every a-th clip: a part lies on all devices, as the batch does.
    parts = jax.tree.map(lambda x: einops.rearrange(x, "(b a) ... -> a b ...", a=accumulate), batch)
    keys = jax.random.split(key, accumulate)
    first = jax.tree.map(lambda x: x[0], parts)

    # One running sum: stacked gradients would take the memory that accumulation is to save.
    def add(total, part):
      return jax.tree.map(jnp.add, total, gradient(state, *part)), None

    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, jnp.float32), jax.eval_shape(gradient, state, first, keys[0])
    )
    total, _ = jax.lax.scan(add, zeros, (parts, keys))
    return jax.tree.map(lambda x: x / accumulate, total)

  return accumulated


def step_key(seed: int, step: Array) -> PRNGKeyArray:
  """The random numbers of the update that follows `step` others."""
  return jax.random.fold_in(jax.random.key(seed), step)


def module_of(path: str) -> str:
  """The part of the model that a parameter belongs to: one of MODULES, or how its path starts."""
  return next((x for x in MODULES if path.startswith(f"{x}/")), path.split("/")[0])


def make_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  average_decay: float,
  accumulate: int = 1,
  spike: float = 1e30,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]:
  """Builds the update.

  Args:
    objective: loss and metrics of a batch.
    optimizer: over flat trainable parameters.
    seed: of the random numbers; step s uses fold_in(seed, s), so a run resumes exactly.
    average_decay: decay of the moving average, lower during the first updates.
    accumulate: the batch is cut into this many parts whose gradients are averaged.
    spike: an update whose gradient's norm is this many times the usual one is not made.

  Returns:
    A function from (state, batch) to the next state and metrics. If the loss or the gradient is
    not finite, the metric "finite" is False and the state comes back as it was, but with a usual
    norm that is not finite: no later update changes it either, so that this one can be looked at
    again. After a spike only the count of steps and the usual norm change, and the metric "skipped"
    is True.
  """
  gradient = make_gradient(objective, accumulate)

  def step(state: TrainState, batch) -> tuple[TrainState, dict[str, Array]]:
    (loss, metrics), gradients = gradient(state, batch, step_key(seed, state.step))
    norm, norms = _norms(gradients)
    updates, moments = optimizer.update(gradients, state.optimizer, state.trainable)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    decay = jnp.minimum(average_decay, (1 + state.step) / (10 + state.step))
    average: Any = optax.incremental_update(trainable, state.average, 1 - decay)
    # A norm that stays high becomes the usual one; a single spike hardly moves it.
    bounded = jnp.where(state.step > 0, jnp.minimum(norm, spike * state.usual_norm), norm)
    memory = jnp.minimum(_NORM_DECAY, state.step / (1 + state.step))
    usual = memory * state.usual_norm + (1 - memory) * bounded
    skipped = (state.step >= _UNUSUAL_FROM) & (norm > spike * state.usual_norm)
    updated = trainable, average, moments
    kept = state.trainable, state.average, state.optimizer
    trainable, average, moments = _choose(skipped, kept, updated)
    following = TrainState(
      step=state.step + 1,
      trainable=trainable,
      frozen=state.frozen,
      average=average,
      optimizer=moments,
      usual_norm=usual,
    )
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(state.usual_norm)
    stuck = dataclasses.replace(state, usual_norm=jnp.full_like(state.usual_norm, jnp.nan))
    following = _choose(finite, following, stuck)
    numbers = {"loss": loss, "gradient_norm": norm, "finite": finite, "skipped": skipped}
    return following, metrics | numbers | norms

  return step


def _norms(gradients: Flat) -> tuple[Float[Array, ""], dict[str, Array]]:
  """The norm of a gradient, and of its parts by module."""
  squares: dict[str, Array] = {}
  for path, value in gradients.items():
    name = f"gradient_norm/{module_of(path)}"
    squares[name] = squares.get(name, jnp.zeros(())) + jnp.sum(jnp.square(value))
  norms = {name: jnp.sqrt(value) for name, value in squares.items()}
  return jnp.sqrt(sum(squares.values(), jnp.zeros(()))), norms


def _choose(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
