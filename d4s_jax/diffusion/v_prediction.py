"""The schedule of CogVideoX: a variance-preserving path in 1000 levels, v-prediction, DDIM.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps and v = sqrt(a_t) eps - sqrt(1 - a_t) x_0 (Salimans and Ho
2022), where a_t is a cumulative product over scaled-linear betas, shifted in signal-to-noise ratio
and rescaled so that the last level is pure noise (Lin et al. 2023).

Noise level sigma = (t + 1) / 1000 is timestep t; level 0, which has no timestep, is clean data.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from d4s_jax.diffusion.schedule import LEVELS, Levels, expand

SPACINGS = ("trailing", "linspace")


@dataclasses.dataclass(frozen=True)
class VPrediction:
  """The path of CogVideoX; levels between multiples of 1 / 1000 are rounded to the nearest.

  Attributes:
    snr_shift: the signal-to-noise ratio is divided by it: 3 for 2B, 1 for the others.
    betas: the first and the last, whose square roots are spaced evenly between them.
    spacing: of the levels of a sampling run, "trailing" or "linspace".
  """

  snr_shift: float = 1.0
  betas: tuple[float, float] = (0.00085, 0.012)
  spacing: str = "trailing"

  def levels(self, steps: int) -> Levels:
    """The noise levels of a sampling run, from noise down to data.

    "trailing" spaces them evenly down to 0; "linspace", as the first files of CogVideoX have it,
    down to the lowest that has a timestep, from which a last step leads to 0.

    As in diffusers, a step ends 1000 // steps levels lower: at the next level in "trailing" where
    the number of steps divides 1000, else at most one off; in "linspace" one at 50 steps, 11 at 10.
    So a pass may be told another level than its latents are at, and the last step may end at 1.
    """
    if not 1 <= steps <= LEVELS:
      raise ValueError(f"A sampling run needs 1 to {LEVELS} steps, got {steps}.")
    if self.spacing not in SPACINGS:
      raise ValueError(f"schedule.spacing is {self.spacing!r}; expected one of {SPACINGS}.")
    if self.spacing == "trailing":
      # By arange as in diffusers: what it makes of halves depends on it.
      begins = np.round(np.arange(LEVELS, 0, -LEVELS / steps)[:steps])
    else:
      begins = np.round(np.linspace(0, LEVELS - 1, steps))[::-1] + 1
    index = np.append(begins.astype(int), 0)
    tables = np.stack(_tables(self.snr_shift, *self.betas))
    ends = np.maximum(index[:-1] - LEVELS // steps, 0)
    (signal, spread), (end_signal, end_spread) = tables[:, index], tables[:, ends]
    sigma = index / LEVELS
    return Levels(sigma, sigma[:-1], signal, spread, end_signal, end_spread)

  def sample_sigma(
    self, key: PRNGKeyArray, batch: int, highest: float = 1.0
  ) -> Float[Array, "{batch}"]:
    """Training noise levels: uniform over those in (0, highest]."""
    last = max(1, round(LEVELS * highest))
    return jax.random.randint(key, (batch,), 1, last + 1) / LEVELS

  def add_noise(
    self, clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"]
  ) -> Float[Array, "b ..."]:
    """The point at level `sigma` on the path from `clean` to `noise`."""
    signal, spread = self._weights(expand(sigma, clean))
    return signal * clean + spread * noise

  def velocity(
    self, clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"]
  ) -> Float[Array, "b ..."]:
    """The model's target at level `sigma`."""
    signal, spread = self._weights(expand(sigma, clean))
    return signal * noise - spread * clean

  def to_clean(
    self, noisy: Float[Array, "b ..."], velocity: Float[Array, "b ..."], sigma: Float[Array, "b"]
  ) -> Float[Array, "b ..."]:
    """The one-step estimate of the clean latents."""
    signal, spread = self._weights(expand(sigma, noisy))
    return signal * noisy - spread * velocity

  def _weights(self, sigma: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Weights of clean latents and of noise, whose squares add up to 1."""
    level = jnp.round(sigma * LEVELS).astype(jnp.int32)
    signal, spread = (x.astype(np.float32) for x in _tables(self.snr_shift, *self.betas))
    return jnp.take(signal, level), jnp.take(spread, level)


@functools.cache
def _tables(
  snr_shift: float, first: float, last: float
) -> tuple[Float[np.ndarray, "levels"], Float[np.ndarray, "levels"]]:
  """sqrt(a) and sqrt(1 - a) at levels 0, 1 / 1000, .., 1."""
  product = np.cumprod(1 - np.linspace(first**0.5, last**0.5, LEVELS) ** 2)
  signal = np.sqrt(product / (snr_shift + (1 - snr_shift) * product))
  signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
  signal = np.concatenate([[1.0], signal])
  return signal, np.sqrt(1 - signal**2)
