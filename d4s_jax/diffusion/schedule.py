"""What a noise schedule is, and flow matching: the straight path between data and noise.

x_sigma = (1 - sigma) x_0 + sigma eps, velocity = eps - x_0, sigma = 0 data and 1 noise
(Diff4Splat, flow-matching objective; sigma shift as in Wan 2.1).
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


def expand(sigma: Float[Array, "b"], like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
  """One value a sample, with as many axes as `like`."""
  return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))


@runtime_checkable
class Schedule(Protocol):
  """A path between data, at level 0, and noise, at level 1."""

  def sigmas(self, steps: int) -> Float[np.ndarray, "{steps}+1"]:
    """Noise levels of a sampling run, from 1 (noise) down to 0 (data)."""
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

  def step(
    self,
    noisy: Float[Array, "b ..."],
    velocity: Float[Array, "b ..."],
    sigma: Float[Array, ""],
    following: Float[Array, ""],
  ) -> Float[Array, "b ..."]:
    """One step from level `sigma` down to level `following`."""
    ...


@dataclasses.dataclass(frozen=True)
class FlowMatching:
  """Rectified flow with a shifted noise level.

  Attributes:
    shift: s in sigma = s u / (1 + (s - 1) u); 1 leaves u uniform, larger values spend more of the
      schedule at high noise (larger videos need more).
  """

  shift: float = 5.0

  def shifted(self, u):
    """Maps a uniform level u in [0, 1] to the noise level sigma in [0, 1]."""
    return self.shift * u / (1 + (self.shift - 1) * u)

  def sigmas(self, steps: int) -> Float[np.ndarray, "{steps}+1"]:
    """Noise levels of a sampling run, from 1 (noise) down to 0 (data)."""
    if steps < 1:
      raise ValueError(f"A sampling run needs at least 1 step, got {steps}.")
    return self.shifted(np.linspace(1.0, 0.0, steps + 1)).astype(np.float32)

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

  def step(
    self,
    noisy: Float[Array, "b ..."],
    velocity: Float[Array, "b ..."],
    sigma: Float[Array, ""],
    following: Float[Array, ""],
  ) -> Float[Array, "b ..."]:
    """One Euler step from level `sigma` down to level `following`."""
    return noisy + (following - sigma) * velocity
