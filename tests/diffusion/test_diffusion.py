"""Schedule, guidance and sampler against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d4s_jax.diffusion.guidance import cosine, guidance
from d4s_jax.diffusion.sampler import apart, sample, unconditional_passes
from d4s_jax.diffusion.schedule import FlowMatching


def test_path_ends_at_data_and_noise(key):
  schedule = FlowMatching()
  clean, noise = jax.random.normal(key, (2, 3, 4, 5))
  zero, one = jnp.zeros(3), jnp.ones(3)
  np.testing.assert_array_equal(schedule.add_noise(clean, noise, zero), clean)
  np.testing.assert_array_equal(schedule.add_noise(clean, noise, one), noise)


@given(level=st.floats(0, 1), shift=st.floats(1, 10))
def test_true_velocity_recovers_the_clean_latents(level, shift):
  schedule = FlowMatching(shift=shift)
  rng = np.random.default_rng(0)
  clean, noise = jnp.asarray(rng.normal(size=(2, 1, 8)))
  sigma = jnp.array([level], jnp.float32)
  noisy = schedule.add_noise(clean, noise, sigma)
  restored = schedule.to_clean(noisy, schedule.velocity(clean, noise, sigma), sigma)
  np.testing.assert_allclose(restored, clean, atol=1e-5)  # float32 rounding of O(1) values


def test_training_levels_stay_below_the_limit_and_reach_it(key):
  schedule = FlowMatching(shift=5.0)
  sigma = schedule.sample_sigma(key, 4096, highest=0.5)
  assert 0 <= sigma.min() and sigma.max() <= 0.5 and sigma.max() > 0.49
  whole = schedule.sample_sigma(key, 4096)
  # The shifted uniform has its median at shift / (1 + shift); 4096 draws, 3 standard errors.
  assert abs(float(jnp.median(whole)) - 5 / 6) < 0.02


def test_cosine_guidance_of_the_supplement():
  weights = cosine(30, 7.5)
  # Equation 1 by hand at t = 0, 1, 5, 15.
  expected = [8.5, 8.059, 3.612, 1.018]
  np.testing.assert_allclose(weights[[0, 1, 5, 15]], expected, atol=1e-3)
  assert np.all(np.diff(weights) < 0)
  assert unconditional_passes(weights) == 15


def test_guidance_is_skipped_where_it_is_negligible():
  calls = []

  def conditional(x, sigma):
    return x

  def unconditional(x, sigma):
    calls.append(1)
    return 0.5 * x

  weights = np.array([3.0, 2.0, 1.01, 1.0])
  latents = sample(apart(conditional, unconditional), jnp.ones((1, 2)), FlowMatching(1.0), weights)
  assert len(calls) == 2 == unconditional_passes(weights)
  # v = .5x + w (x - .5x) for two steps, then v = x for two, dt = -1/4.
  expected = (1 - 0.25 * 2.0) * (1 - 0.25 * 1.5) * 0.75**2
  np.testing.assert_allclose(latents, np.full((1, 2), expected), rtol=1e-6)


def test_unknown_guidance_names_the_choices():
  with pytest.raises(ValueError, match="'cosin'.*constant.*cosine"):
    guidance("cosin", 30, 7.5)
