"""The schedule of CogVideoX against closed forms and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d4s_jax.diffusion.schedule import FlowMatching, Schedule
from d4s_jax.diffusion.v_prediction import VPrediction


def _scheduler(snr_shift):
  diffusers = pytest.importorskip("diffusers")
  # As published with each CogVideoX checkpoint.
  return diffusers.CogVideoXDDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    set_alpha_to_one=True,
    timestep_spacing="trailing",
    snr_shift_scale=snr_shift,
  )


def test_both_families_keep_the_protocol():
  assert isinstance(VPrediction(), Schedule) and isinstance(FlowMatching(), Schedule)


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_path_ends_at_data_and_noise(key, snr_shift):
  schedule = VPrediction(snr_shift)
  clean, noise = jax.random.normal(key, (2, 3, 4, 5))
  zero, one = jnp.zeros(3), jnp.ones(3)
  np.testing.assert_array_equal(schedule.add_noise(clean, noise, zero), clean)
  np.testing.assert_array_equal(schedule.add_noise(clean, noise, one), noise)
  np.testing.assert_array_equal(schedule.velocity(clean, noise, zero), noise)
  np.testing.assert_array_equal(schedule.velocity(clean, noise, one), -clean)


@given(level=st.integers(0, 1000), shift=st.floats(1, 5))
def test_the_true_velocity_leads_to_the_clean_latents(level, shift):
  schedule = VPrediction(snr_shift=shift)
  rng = np.random.default_rng(0)
  clean, noise = jnp.asarray(rng.normal(size=(2, 1, 8)), jnp.float32)
  sigma = jnp.array([level / 1000])
  noisy, velocity = (f(clean, noise, sigma) for f in (schedule.add_noise, schedule.velocity))
  # 1e-5: float32 rounding of O(1) values.
  np.testing.assert_allclose(schedule.to_clean(noisy, velocity, sigma), clean, atol=1e-5)


def test_training_levels_are_those_of_a_timestep_up_to_the_limit(key):
  sigma = VPrediction().sample_sigma(key, 4096, highest=0.01)
  assert set(np.round(np.asarray(sigma) * 1000).astype(int)) == set(range(1, 11))
  assert float(VPrediction().sample_sigma(key, 4096).max()) > 0.99


@pytest.mark.parametrize("steps", [0, 1001])
def test_illegal_numbers_of_steps_are_refused(steps):
  with pytest.raises(ValueError, match=f"1 to 1000 steps, got {steps}"):
    VPrediction().levels(steps)


@pytest.mark.parity
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("steps", [3, 48, 50, 144, 999, 1000])
def test_timesteps_equal_diffusers(spacing, steps):
  diffusers = pytest.importorskip("diffusers")
  theirs = diffusers.CogVideoXDDIMScheduler(timestep_spacing=spacing)
  theirs.set_timesteps(steps)
  levels = VPrediction(spacing=spacing).levels(steps)
  np.testing.assert_array_equal(np.round(1000 * levels.told) - 1, theirs.timesteps.numpy())
  assert levels.sigma[-1] == 0 and levels.signal[-1] == 1
  with pytest.raises(ValueError, match="spacing is 'leading'; expected one of .*linspace"):
    VPrediction(spacing="leading").levels(steps)


@pytest.mark.parity
@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_noise_and_target_equal_diffusers_at_every_timestep(snr_shift):
  torch = pytest.importorskip("torch")
  theirs, ours = _scheduler(snr_shift), VPrediction(snr_shift)
  clean, noise, time = torch.randn(1000, 3), torch.randn(1000, 3), torch.arange(1000)
  args = jnp.asarray(clean.numpy()), jnp.asarray(noise.numpy()), (jnp.arange(1000) + 1) / 1000
  # 1e-4: diffusers takes sqrt(1 - a) of a float32 a; near data that loses digits.
  want = theirs.add_noise(clean, noise, time).numpy()
  np.testing.assert_allclose(ours.add_noise(*args), want, atol=1e-4)
  want = theirs.get_velocity(clean, noise, time).numpy()
  np.testing.assert_allclose(ours.velocity(*args), want, atol=1e-4)
