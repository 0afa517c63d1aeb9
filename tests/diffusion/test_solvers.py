"""Solvers against the schedulers of diffusers, closed forms and their own order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d4s_jax.diffusion.sampler import apart, sample
from d4s_jax.diffusion.schedule import FlowMatching, Schedule
from d4s_jax.diffusion.solvers import SOLVERS, solver
from d4s_jax.diffusion.v_prediction import VPrediction

SCHEDULES = {
  "flow": FlowMatching(3.0),
  "flow as euler": FlowMatching(3.0, "euler"),
  "flow as unipc": FlowMatching(5.0, "unipc"),
  "v": VPrediction(),
  "v of 2B": VPrediction(snr_shift=3.0),
  "v of older files": VPrediction(3.0, spacing="linspace"),
}
_COGVIDEOX = dict(
  beta_start=0.00085,
  beta_end=0.012,
  beta_schedule="scaled_linear",
  prediction_type="v_prediction",
  rescale_betas_zero_snr=True,
  timestep_spacing="trailing",
)
_OLDER = _COGVIDEOX | dict(snr_shift_scale=3.0, timestep_spacing="linspace")
# Scheduler of diffusers and its arguments, our schedule and our solver.
PUBLISHED = {
  "euler": ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0), "flow as euler", "ddim"),
  "unipc": (
    "UniPCMultistepScheduler",
    dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    *("flow as unipc", "unipc"),
  ),
  "ddim": ("CogVideoXDDIMScheduler", _COGVIDEOX | dict(snr_shift_scale=1.0), "v", "ddim"),
  "ddim 2B": ("CogVideoXDDIMScheduler", _COGVIDEOX | dict(snr_shift_scale=3.0), "v of 2B", "ddim"),
  "dpm": ("CogVideoXDPMScheduler", _COGVIDEOX | dict(snr_shift_scale=1.0), "v", "dpm"),
  "ddim older": ("CogVideoXDDIMScheduler", _OLDER, "v of older files", "ddim"),
  "dpm older": ("CogVideoXDPMScheduler", _OLDER, "v of older files", "dpm"),
}


def _theirs(torch, scheduler, name, start, model, noises):
  """Their loop, as their pipelines run it."""
  x, old, back = torch.from_numpy(start), None, None
  noise = iter(noises)
  for t in scheduler.timesteps:
    velocity = model(x, t)
    if name.startswith("dpm"):
      pair = torch.from_numpy(next(noise))
      x, old = scheduler.step(velocity, old, t, back, x, generator=pair, return_dict=False)
      back = t
    else:
      x = scheduler.step(velocity, t, x, return_dict=False)[0]
  return x.numpy()


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 2, 5, 25, 28, 30, 48, 50])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_run_equals_the_scheduler_of_diffusers(name, steps, monkeypatch):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  kind, arguments, schedule, chosen = PUBLISHED[name]
  scheduler, schedule = getattr(diffusers, kind)(**arguments), SCHEDULES[schedule]
  scheduler.set_timesteps(steps)
  random = np.random.default_rng(0)
  matrix = random.normal(size=(6, 6)).astype(np.float32) / 6
  start = random.normal(size=(2, 6)).astype(np.float32)
  key = jax.random.key(7)
  noises = [
    np.asarray(jax.random.normal(jax.random.fold_in(key, i), start.shape)) for i in range(steps)
  ]
  if name.startswith("dpm"):
    # The noise that they are to add comes in the generator's place.
    module = "diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor"
    monkeypatch.setattr(module, lambda shape, generator, **_: generator)

  def model(x, t):
    return torch.tanh(x @ torch.from_numpy(matrix)) + t / 1000

  want = _theirs(torch, scheduler, name, start, model, noises)
  # Timestep t of CogVideoX is our level (t + 1) / 1000.
  offset = 0.001 if isinstance(schedule, VPrediction) else 0.0

  def ours(x, level):
    return jnp.tanh(x @ matrix) + (level - offset)[:, None]

  got = sample(
    apart(ours, ours), jnp.asarray(start), schedule, np.ones(steps), solver=chosen, key=key
  )
  # 2e-5 of the largest: fifty float32 steps, whose weights theirs compute in float32 too.
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_both_families_keep_the_protocol():
  assert all(isinstance(schedule, Schedule) for schedule in SCHEDULES.values())


@pytest.mark.parametrize("name", SCHEDULES)
@given(steps=st.integers(1, 60))
def test_levels_fall_from_noise_to_data(name, steps):
  levels = SCHEDULES[name].levels(steps)
  assert len(levels.sigma) == len(levels.told) + 1 == steps + 1
  assert np.all(np.diff(levels.sigma) < 0) and np.all(np.diff(levels.spread) < 0)
  # A single step of older files is one from the lowest level.
  assert levels.sigma[0] >= 1 - 1e-6 or (name, steps) == ("v of older files", 1)
  assert levels.sigma[-1] == levels.spread[-1] == 0
  assert levels.signal[-1] == 1


@pytest.mark.parametrize("name", SCHEDULES)
@given(steps=st.integers(1, 40), which=st.sampled_from(["ddim", "unipc"]))
def test_where_the_estimate_is_right_a_run_stays_on_the_path(name, steps, which):
  """x_i = a_i clean + b_i noise at every level, for every solver, if both are known."""
  levels = SCHEDULES[name].levels(steps)
  table = SOLVERS[which](levels)
  clean, noise = 2.0, -3.0
  path = levels.signal * clean + levels.spread * noise
  ends = path[1:]
  if which != "unipc":
    ends = levels.end_signal * clean + levels.end_spread * noise
  before = path[0]
  for i in range(steps):
    corrected = table.correct[i] @ [path[i], before, clean, clean, clean]
    np.testing.assert_allclose(corrected, path[i], rtol=1e-9, atol=1e-9)
    ahead = table.predict[i] @ [corrected, clean, clean, 0.0]
    np.testing.assert_allclose(ahead, ends[i], rtol=1e-9, atol=1e-9)
    before = corrected


@given(steps=st.integers(2, 60))
def test_dpm_keeps_the_variance_of_the_path(steps):
  """With the right estimate, what is left of old noise and new noise add up to the level's."""
  for schedule in (VPrediction(), VPrediction(3.0)):
    levels = schedule.levels(steps)
    table = SOLVERS["dpm"](levels)
    old = table.predict[:, 0] * levels.spread[:-1]
    total = np.sqrt(old**2 + table.predict[:, 3] ** 2)
    np.testing.assert_allclose(total, levels.end_spread, rtol=1e-9, atol=1e-12)
    # The part of the clean latents.
    mean = table.predict[:, 0] * levels.signal[:-1] + table.predict[:, 1:3].sum(1)
    np.testing.assert_allclose(mean, levels.end_signal, rtol=1e-9)


def _error(which, steps):
  """Of a run over data that are standard normal times 0.3, where the true velocity is known."""
  schedule, spread = FlowMatching(1.0), 0.3

  def velocity(x, sigma):
    sigma = sigma[:, None]
    # E[noise - data | x] of Gaussian data.
    return x * (sigma - (1 - sigma) * spread**2) / (sigma**2 + (1 - sigma) ** 2 * spread**2)

  start = jnp.ones((1, 1))
  found = sample(apart(velocity, velocity), start, schedule, np.ones(steps), solver=which)
  return abs(float(found[0, 0]) - spread)


def test_unipc_is_of_higher_order():
  errors = {which: [_error(which, steps) for steps in (8, 16, 32)] for which in ("ddim", "unipc")}
  assert errors["ddim"][1] / errors["ddim"][2] > 1.7
  assert errors["unipc"][0] / errors["unipc"][1] > 3
  assert errors["unipc"][1] < errors["ddim"][1] / 5


def test_gradients_flow_through_a_run():
  def end(scale):
    def velocity(x, sigma):
      return scale * x

    return jnp.sum(sample(apart(velocity, velocity), jnp.ones((1, 3)), FlowMatching(), np.ones(3)))

  step = 1e-3
  numeric = (end(0.5 + step) - end(0.5 - step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(end)(0.5), numeric, rtol=1e-3)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="Unknown solver 'heun'.*ddim.*dpm.*unipc"):
    solver("heun")
  with pytest.raises(ValueError, match="spacing is 'log'.*even"):
    FlowMatching(spacing="log").levels(3)
  with pytest.raises(ValueError, match="'dpm' adds noise; it needs a key"):
    still = apart(lambda x, s: x, lambda x, s: x)
    sample(still, jnp.ones((1, 2)), VPrediction(), np.ones(3), solver="dpm")
