"""What a noise schedule is, and flow matching: the straight path between data and noise.

x_sigma = (1 - sigma) x_0 + sigma eps, velocity = eps - x_0, sigma = 0 data and 1 noise
(Diff4Splat, flow-matching objective; sigma shift as in Wan 2.1).
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

# Timesteps that the published models were trained with.
LEVELS = 1000
SPACINGS = ("even", "euler", "unipc")


def expand(sigma: Float[Array, "b"], like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
  """One value a sample, with as many axes as `like`."""
  return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))


class Levels(NamedTuple):
  """The noise levels that a sampling run goes through, float64.

  Attributes:
    sigma: each level, the last one 0.
    told: what the model is told of each but the last.
    signal: weight of the clean latents at each.
    spread: weight of the noise at each.
    end_signal: weight of the clean latents where a step from each but the last ends: at the next
      level, but for published schedulers that step elsewhere.
    end_spread: weight of the noise there.
  """

  sigma: Float[np.ndarray, "n"]
  told: Float[np.ndarray, "n-1"]
  signal: Float[np.ndarray, "n"]
  spread: Float[np.ndarray, "n"]
  end_signal: Float[np.ndarray, "n-1"]
  end_spread: Float[np.ndarray, "n-1"]


@runtime_checkable
class Schedule(Protocol):
  """A path between data, at level 0, and noise, at level 1."""

  def levels(self, steps: int) -> "Levels":
    """The noise levels of a sampling run, from noise down to data."""
    ...

  def sample_sigma(
    self, key: PRNGKeyArray, batch: int, highest: float = 1.0
  ) -> Float[Array, "{batch}"]:
    """Training noise levels in [0, highest]."""
    ...

  def add_noise(
    self, clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"]
  ) -> Float[Array, "b ..."]:
    """The point at level `sigma` on the path from `clean` to `noise`."""
    ...

  def velocity(
    self, clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"]
  ) -> Float[Array, "b ..."]:
    """The model's target at level `sigma`."""
    ...

  def to_clean(
    self, noisy: Float[Array, "b ..."], velocity: Float[Array, "b ..."], sigma: Float[Array, "b"]
  ) -> Float[Array, "b ..."]:
    """The one-step estimate of the clean latents."""
    ...


@dataclasses.dataclass(frozen=True)
class FlowMatching:
  """Rectified flow with a shifted noise level.

  Attributes:
    shift: s in sigma = s u / (1 + (s - 1) u); 1 leaves u uniform, larger values spend more of the
      schedule at high noise (larger videos need more).
    spacing: of the levels of a sampling run: "even" in u; or, to reproduce published pipelines to
      the last digit, as diffusers spaces them for "euler" (FlowMatchEulerDiscreteScheduler) or
      "unipc" (UniPCMultistepScheduler, which tells the model the level rounded down to 1 / 1000).
  """

  shift: float = 5.0
  spacing: str = "even"

  def shifted(self, u):
    """Maps a uniform level u in [0, 1] to the noise level sigma in [0, 1]."""
    return self.shift * u / (1 + (self.shift - 1) * u)

  def levels(self, steps: int) -> Levels:
    """The noise levels of a sampling run, from noise down to data."""
    if steps < 1:
      raise ValueError(f"A sampling run needs at least 1 step, got {steps}.")
    if self.spacing not in SPACINGS:
      raise ValueError(f"schedule.spacing is {self.spacing!r}; expected one of {SPACINGS}.")
    sigma = getattr(self, f"_{self.spacing}")(steps)
    told = sigma[:-1]
    if self.spacing == "unipc":
      told = np.floor(LEVELS * told) / LEVELS
    return Levels(sigma, told, 1 - sigma, sigma, 1 - sigma[1:], sigma[1:])

  def _even(self, steps: int) -> Float[np.ndarray, "n"]:
    return self.shifted(np.linspace(1.0, 0.0, steps + 1))

  def _euler(self, steps: int) -> Float[np.ndarray, "n"]:
    lowest = self.shifted(1 / LEVELS)
    return np.append(self.shifted(np.linspace(1.0, lowest, steps)), 0.0)

  def _unipc(self, steps: int) -> Float[np.ndarray, "n"]:
    u = np.linspace(1.0, 1 / LEVELS, steps + 1)[:-1]
    # Pure noise has no signal to take a logarithm of.
    return np.append(np.minimum(self.shifted(u), 1 - 1e-6), 0.0)

  def sample_sigma(
    self, key: PRNGKeyArray, batch: int, highest: float = 1.0
  ) -> Float[Array, "{batch}"]:
    """Training noise levels: shifted uniform, limited to [0, highest]."""
    u_highest = highest / (self.shift - (self.shift - 1) * highest)
    return self.shifted(jax.random.uniform(key, (batch,), maxval=u_highest))

  def add_noise(
    self,
    clean: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    sigma: Float[Array, "b"],
  ) -> Float[Array, "b ..."]:
    """The point at level `sigma` on the path from `clean` to `noise`."""
    level = expand(sigma, clean)
    return (1 - level) * clean + level * noise

  def velocity(
    self, clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"]
  ) -> Float[Array, "b ..."]:
    """The model's target, the same at every level."""
    del sigma
    return noise - clean

  def to_clean(
    self,
    noisy: Float[Array, "b ..."],
    velocity: Float[Array, "b ..."],
    sigma: Float[Array, "b"],
  ) -> Float[Array, "b ..."]:
    """The one-step estimate of the clean latents, x_0 = x_sigma - sigma v."""
    return noisy - expand(sigma, noisy) * velocity
