"""Sampling step by step, with the unconditional pass only where guidance needs it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from d4s_jax.diffusion.guidance import NEGLIGIBLE
from d4s_jax.diffusion.schedule import Schedule
from d4s_jax.diffusion.solvers import solver as solver_named

# (latents, level for each sample) -> velocity
Denoise = Callable[[Float[Array, "b ..."], Float[Array, "b"]], Float[Array, "b ..."]]


class Velocities(NamedTuple):
  """What a model says at one step.

  Attributes:
    conditional: velocity given all conditions.
    unconditional: velocity without them; None where guidance doesn't need it.
    features: what a later step may reuse; None if it was not kept.
  """

  conditional: Float[Array, "b ..."]
  unconditional: Float[Array, "b ..."] | None = None
  features: Any = None


@runtime_checkable
class Passes(Protocol):
  """A model at one noise level, without and with conditions."""

  def __call__(
    self,
    latents: Float[Array, "b ..."],
    level: Float[Array, "b"],
    guided: bool,
    features: Any = None,
  ) -> Velocities:
    """The velocities of noisy latents.

    Args:
      latents: noisy latents.
      level: what the model is told of the noise level of each sample.
      guided: whether the unconditional velocity is wanted too.
      features: of an earlier step, to be reused in place of the larger part of the work; None: all
        of the work is done.
    """
    ...


def apart(conditional: Denoise, unconditional: Denoise) -> Passes:
  """One function after the other, the second only where guidance needs it; nothing is kept."""

  def passes(latents, level, guided, features=None):
    del features
    velocity = conditional(latents, level)
    return Velocities(velocity, unconditional(latents, level) if guided else None)

  return passes


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

  @classmethod
  def of(cls, noise: Float[Array, "b ..."]) -> "State":
    """The state in front of the first step."""
    return cls(noise, noise, (jnp.zeros_like(noise), jnp.zeros_like(noise)))


class Steps:
  """The steps of a run, each a function of the state in front of it."""

  def __init__(
    self,
    schedule: Schedule,
    guidance: Float[np.ndarray, "steps"],
    solver: str = "ddim",
    key: PRNGKeyArray | None = None,
  ):
    """Works out the levels and the solver's weights; the arguments are those of `sample`."""
    self._schedule, self._guidance, self._key = schedule, guidance, key
    self._levels = schedule.levels(len(guidance))
    self._table = solver_named(solver)(self._levels)
    self._noisy = self._table.predict[:, -1] != 0
    if key is None and self._noisy.any():
      raise ValueError(f"The solver {solver!r} adds noise; it needs a key.")

  def step(self, i: int, state: State, passes: Passes, features: Any = None) -> tuple[State, Any]:
    """The state after step `i`, and features of the passes made in it."""
    latents, weight = state.latents, self._guidance[i]
    told = jnp.full(len(latents), self._levels.told[i], jnp.float32)
    velocity, base, features = passes(latents, told, bool(weight >= NEGLIGIBLE), features)
    if base is not None:
      velocity = _guided(velocity, base, jnp.float32(weight))
    added = None
    if self._key is not None and self._noisy[i]:
      added = jax.random.normal(jax.random.fold_in(self._key, i), latents.shape)
    sigma = jnp.full(len(latents), self._levels.sigma[i], jnp.float32)
    clean = self._schedule.to_clean(latents, velocity, sigma)
    rows = tuple(x[i].astype(np.float32) for x in self._table)
    return _advance(state, clean, rows, added), features


def sample(
  passes: Passes,
  noise: Float[Array, "b ..."],
  schedule: Schedule,
  guidance: Float[np.ndarray, "steps"],
  *,
  solver: str = "ddim",
  key: PRNGKeyArray | None = None,
  reuse: Sequence[int] = (),
  report: Callable[[int], Any] = lambda steps: None,
) -> Float[Array, "b ..."]:
  """Denoises `noise` and returns clean latents.

  A Python loop: the passes are to be compiled functions. So a run can say how far it is, and
  nothing is compiled again for another number of steps.

  Args:
    passes: velocities given all conditions and without them; the latter are asked for only at steps
      whose guidance weight is not negligible, so a falling schedule costs fewer than two passes a
      step.
    noise: standard normal latents.
    schedule: the path from noise to data.
    guidance: the weight of each step; its length is the number of steps.
    solver: a key of `SOLVERS`.
    key: of the noise that the solver adds, for those that do.
    reuse: steps that reuse the features of the last step that is not among them
      (`diffusion.reuse`); the passes keep features if there are any.
    report: told that a step is done.

  Returns:
    Clean latents: at noise level 0, or where the schedule's last step ends.

  Raises:
    ValueError: the solver is unknown, or adds noise and there is no key.
  """
  steps, state, features = Steps(schedule, guidance, solver, key), State.of(noise), None
  for i in range(len(guidance)):
    again = i in reuse
    state, made = steps.step(i, state, passes, features if again else None)
    features = features if again else made
    jax.block_until_ready(state)
    report(1)
  return state.latents


def unconditional_passes(guidance: Float[np.ndarray, "steps"], reuse: Sequence[int] = ()) -> int:
  """How many unconditional passes a run with these weights makes in full."""
  return sum(1 for i, weight in enumerate(guidance) if weight >= NEGLIGIBLE and i not in reuse)


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
