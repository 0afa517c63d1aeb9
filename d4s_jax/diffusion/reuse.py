"""Which denoising steps reuse what the blocks added in an earlier one: a fixed table of steps.

TeaCache and MagCache decide while they sample, by thresholds. Here it is decided beforehand: some
runs are made in full, and at each step what it would have cost to reuse the features of an earlier
one is measured (`calibrate`); of all tables with so many reusing steps, the one of the least cost
is chosen (`choose`). So what is computed depends on no data, and a run's time is known.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from d4s_jax.diffusion.sampler import Passes, State, Steps
from d4s_jax.diffusion.schedule import Schedule


def check(reuse: Any, steps: int) -> tuple[int, ...]:
  """The table as whole numbers, rising.

  Raises:
    ValueError: an entry is no step from 1 to the last one of `steps`, or there twice.
  """
  problem = f"The steps that reuse features are {reuse!r:.80}; expected "
  if isinstance(reuse, str) or not isinstance(reuse, Sequence):
    raise ValueError(f"{problem}a list of steps, such as (3, 5), or () for none.")
  for step in reuse:
    if isinstance(step, bool) or not isinstance(step, int):
      raise ValueError(f"{problem}whole numbers, not {step!r:.40}.")
    if step == 0:
      raise ValueError(f"{problem}none to be 0: before the first step there is nothing to reuse.")
    if not 0 < step < steps:
      raise ValueError(f"{problem}steps from 1 to {steps - 1}, as a run has {steps}; not {step}.")
  if len(set(reuse)) < len(reuse):
    raise ValueError(f"{problem}each step once.")
  return tuple(sorted(reuse))


def calibrate(
  passes: Passes,
  noise: Float[Array, "b ..."],
  schedule: Schedule,
  guidance: Float[np.ndarray, "n"],
  *,
  solver: str = "ddim",
  key: PRNGKeyArray | None = None,
  span: int = 3,
  seen: Callable[[Array], Array] = lambda latents: latents,
  report: Callable[[int], Any] = lambda steps: None,
) -> Float[np.ndarray, "n n"]:
  """Makes a run in full and measures, beside it, what reuse would have changed at each step.

  Args:
    passes: as of `sample`; they keep features.
    noise: standard normal latents.
    schedule: the path from noise to data.
    guidance: the weight of each step.
    solver: a key of `SOLVERS`.
    key: of the noise that the solver adds, for those that do.
    span: most steps from a reusing step back to that whose features it reuses.
    seen: the part of the latents that is measured.
    report: told that a step is done.

  Returns:
    [i, j]: the change of the latents after step i, relative to them (L2), if it reuses the features
    of step j; infinite where j is not one of the `span` steps before i.
  """
  steps, state = Steps(schedule, guidance, solver, key), State.of(noise)
  errors = np.full((len(guidance), len(guidance)), np.inf)
  kept: deque[tuple[int, Any]] = deque(maxlen=span)
  for i in range(len(guidance)):
    new, features = steps.step(i, state, passes)
    whole = seen(new.latents)
    for j, earlier in kept:
      short = seen(steps.step(i, state, passes, earlier)[0].latents)
      errors[i, j] = float(jnp.linalg.norm(short - whole) / jnp.linalg.norm(whole))
    kept.append((i, features))
    state = new
    report(1)
  return errors


def choose(errors: Float[np.ndarray, "n n"], count: int) -> tuple[int, ...]:
  """The table of `count` reusing steps with the least sum of errors.

  Args:
    errors: of `calibrate`, or their mean over several runs.
    count: how many of the steps reuse.

  Raises:
    ValueError: so many steps cannot reuse within the span of the errors.
  """
  steps = len(errors)
  # The cheapest beginnings of a run, by its last full step and how many steps have reused so far.
  found: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
  for step in range(1, steps):
    longer: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
    for (full, used), (cost, table) in found.items():
      ways = [((step, used), (cost, table))]
      if used < count and np.isfinite(errors[step, full]):
        ways.append(((full, used + 1), (cost + float(errors[step, full]), (*table, step))))
      for key, way in ways:
        longer[key] = min(way, longer.get(key, way))
    found = longer
  ends = [way for (_, used), way in found.items() if used == count]
  if not ends:
    raise ValueError(
      f"{count} of {steps} steps are to reuse features; expected 0 or more, and fewer than leave"
      " each of them a step to reuse."
    )
  return min(ends)[1]
