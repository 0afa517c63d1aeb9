"""Sampling step by step as `lax.scan`, with the unconditional pass only where guidance needs it."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax.diffusion.guidance import NEGLIGIBLE
from d4s_jax.diffusion.schedule import Schedule

# (latents, sigma for each sample) -> velocity
Denoise = Callable[[Float[Array, "b ..."], Float[Array, "b"]], Float[Array, "b ..."]]


def sample(
  conditional: Denoise,
  unconditional: Denoise,
  noise: Float[Array, "b ..."],
  schedule: Schedule,
  guidance: Float[np.ndarray, "steps"],
) -> Float[Array, "b ..."]:
  """Denoises `noise` and returns clean latents.

  Args:
    conditional: velocity given all conditions.
    unconditional: velocity without them; called only at steps whose guidance weight is not
      negligible, so a falling schedule costs fewer than two passes a step.
    noise: standard normal latents.
    schedule: the path from noise to data.
    guidance: the weight of each step, known before tracing; its length is the number of steps.

  Returns:
    Latents at noise level 0.
  """
  sigmas = schedule.sigmas(len(guidance))

  def run(latents, indices, guided):
    def step(latents, inputs):
      sigma, following, weight = inputs
      levels = jnp.full(latents.shape[0], sigma)
      velocity = conditional(latents, levels)
      if guided:
        base = unconditional(latents, levels)
        velocity = base + weight * (velocity - base)
      return schedule.step(latents, velocity, sigma, following), None

    inputs = (sigmas[indices], sigmas[indices + 1], guidance[indices].astype(np.float32))
    return jax.lax.scan(step, latents, inputs)[0]

  latents = noise
  for guided, group in itertools.groupby(
    range(len(guidance)), lambda i: bool(guidance[i] >= NEGLIGIBLE)
  ):
    latents = run(latents, np.array(list(group)), guided)
  return latents


def unconditional_passes(guidance: Float[np.ndarray, "steps"]) -> int:
  """How many unconditional passes a run with these weights makes."""
  return int(np.sum(guidance >= NEGLIGIBLE))
