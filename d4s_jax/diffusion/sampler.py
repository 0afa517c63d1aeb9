"""Sampling step by step, with the unconditional pass only where guidance needs it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from d4s_jax.diffusion.guidance import NEGLIGIBLE
from d4s_jax.diffusion.schedule import Schedule
from d4s_jax.diffusion.solvers import solver as solver_named

# (latents, level for each sample) -> velocity
Denoise = Callable[[Float[Array, "b ..."], Float[Array, "b"]], Float[Array, "b ..."]]


class State(NamedTuple):
  """What a run carries from step to step.

  Attributes:
    latents: at the level of the coming step.
    before: corrected latents of the last step.
    clean: estimates of the clean latents in the last step, and in the one before it.
  """

  latents: Float[Array, "b ..."]
  before: Float[Array, "b ..."]
  clean: tuple[Float[Array, "b ..."], Float[Array, "b ..."]]


def sample(
  conditional: Denoise,
  unconditional: Denoise,
  noise: Float[Array, "b ..."],
  schedule: Schedule,
  guidance: Float[np.ndarray, "steps"],
  *,
  solver: str = "ddim",
  key: PRNGKeyArray | None = None,
  report: Callable[[int], Any] = lambda steps: None,
) -> Float[Array, "b ..."]:
  """Denoises `noise` and returns clean latents.

  A Python loop: the two passes are to be compiled functions, best one for both. So a run can say
  how far it is, and nothing is compiled again for another number of steps.

  Args:
    conditional: velocity given all conditions.
    unconditional: velocity without them; called only at steps whose guidance weight is not
      negligible, so a falling schedule costs fewer than two passes a step.
    noise: standard normal latents.
    schedule: the path from noise to data.
    guidance: the weight of each step; its length is the number of steps.
    solver: a key of `SOLVERS`.
    key: of the noise that the solver adds, for those that do.
    report: told that a step is done.

  Returns:
    Latents at noise level 0.

  Raises:
    ValueError: the solver is unknown, or adds noise and there is no key.
  """
  levels = schedule.levels(len(guidance))
  table = solver_named(solver)(levels.signal, levels.spread)
  noisy = table.predict[:, -1] != 0
  if key is None and noisy.any():
    raise ValueError(f"The solver {solver!r} adds noise; it needs a key.")
  state = State(noise, noise, (jnp.zeros_like(noise), jnp.zeros_like(noise)))
  for i, weight in enumerate(guidance):
    told = jnp.full(len(noise), levels.told[i], jnp.float32)
    velocity = conditional(state.latents, told)
    if weight >= NEGLIGIBLE:
      velocity = _guided(velocity, unconditional(state.latents, told), jnp.float32(weight))
    added = None
    if key is not None and noisy[i]:
      added = jax.random.normal(jax.random.fold_in(key, i), noise.shape)
    sigma = jnp.full(len(noise), levels.sigma[i], jnp.float32)
    clean = schedule.to_clean(state.latents, velocity, sigma)
    rows = tuple(x[i].astype(np.float32) for x in table)
    state = _advance(state, clean, rows, added)
    jax.block_until_ready(state)
    report(1)
  return state.latents


def unconditional_passes(guidance: Float[np.ndarray, "steps"]) -> int:
  """How many unconditional passes a run with these weights makes."""
  return int(np.sum(guidance >= NEGLIGIBLE))


@jax.jit
def _guided(velocity: Array, base: Array, weight: Array) -> Array:
  return base + weight * (velocity - base)


@jax.jit
def _advance(state: State, clean: Array, rows: Any, added: Array | None) -> State:
  correct, predict = rows
  known = (state.latents, state.before, clean, *state.clean)
  corrected: Any = sum(weight * x for weight, x in zip(correct, known))
  parts = (corrected, clean, state.clean[0], *([] if added is None else [added]))
  latents: Any = sum(weight * x for weight, x in zip(predict, parts))
  return State(latents, corrected, (clean, state.clean[0]))
