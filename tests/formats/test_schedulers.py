"""scheduler_config.json as diffusers writes it."""

import inspect
import json

import pytest

from d4s_jax.formats import schedulers

FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
COGVIDEOX = dict(
  beta_start=0.00085,
  beta_end=0.012,
  beta_schedule="scaled_linear",
  prediction_type="v_prediction",
  rescale_betas_zero_snr=True,
  timestep_spacing="trailing",
  snr_shift_scale=1.0,
  clip_sample=False,
  set_alpha_to_one=True,
)
COGVIDEOX_FIELDS = {"snr_shift": 1.0, "spacing": "trailing"}
PUBLISHED = {
  "UniPCMultistepScheduler": (FLOW, {"shift": 3.0, "spacing": "unipc"}, "unipc"),
  "FlowMatchEulerDiscreteScheduler": (
    dict(shift=5.0),
    {"shift": 5.0, "spacing": "euler"},
    "ddim",
  ),
  "CogVideoXDDIMScheduler": (COGVIDEOX, COGVIDEOX_FIELDS, "ddim"),
  "CogVideoXDPMScheduler": (
    COGVIDEOX | {"snr_shift_scale": 3.0, "timestep_spacing": "linspace"},
    {"snr_shift": 3.0, "spacing": "linspace"},
    "dpm",
  ),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_what_diffusers_saves_is_read(name, tmp_path):
  diffusers = pytest.importorskip("diffusers")
  arguments, fields, solver = PUBLISHED[name]
  getattr(diffusers, name)(**arguments).save_pretrained(tmp_path)
  assert schedulers.read(tmp_path) == (fields, solver)


# As published, with what it carries along.
UNIPC = {
  "_class_name": "UniPCMultistepScheduler",
  "_diffusers_version": "0.33.0.dev0",
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "beta_start": 0.0001,
  "disable_corrector": [],
  "dynamic_thresholding_ratio": 0.995,
  "final_sigmas_type": "zero",
  "flow_shift": 3.0,
  "lower_order_final": True,
  "num_train_timesteps": 1000,
  "predict_x0": True,
  "prediction_type": "flow_prediction",
  "rescale_betas_zero_snr": False,
  "sample_max_value": 1.0,
  "solver_order": 2,
  "solver_p": None,
  "solver_type": "bh2",
  "steps_offset": 0,
  "thresholding": False,
  "timestep_spacing": "linspace",
  "trained_betas": None,
  "use_beta_sigmas": False,
  "use_exponential_sigmas": False,
  "use_flow_sigmas": True,
  "use_karras_sigmas": False,
}


def test_the_published_scheduler_is_read(tmp_path):
  write(tmp_path, UNIPC)
  assert schedulers.read(tmp_path) == ({"shift": 3.0, "spacing": "unipc"}, "unipc")
  write(tmp_path, UNIPC | {"use_restart_sigmas": True})
  with pytest.raises(ValueError, match="'use_restart_sigmas' is True, which our schedule doesn't"):
    schedulers.read(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_that_diffusers_registers_is_known(name, tmp_path):
  diffusers = pytest.importorskip("diffusers")
  parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
  for key in parameters.keys() - {"self"}:
    write(tmp_path, {"_class_name": name} | PUBLISHED[name][0] | {key: "strange"})
    try:
      schedulers.read(tmp_path)
    except ValueError as error:
      assert "which our schedule" not in str(error)


def write(folder, config):
  (folder / schedulers.NAME).write_text(config if isinstance(config, str) else json.dumps(config))


def test_everything_that_is_not_built_in_is_listed(tmp_path):
  write(tmp_path, {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "flow_shift": 3.0})
  with pytest.raises(ValueError) as error:
    schedulers.read(tmp_path)
  for part in (
    "prediction_type is 'epsilon', and we have only 'flow_prediction'",
    "use_flow_sigmas is False, and we have only True",
    "solver_order is 3, and we have only 2",
  ):
    assert part in str(error.value)


@pytest.mark.parametrize(
  "config, message",
  [
    ("{", "not valid JSON|JSON"),
    ("[]", "expected an object"),
    (
      {"_class_name": "LMSDiscreteScheduler"},
      "'LMSDiscreteScheduler'; expected one of UniPC|FlowM",
    ),
    ({"_class_name": ["x"]}, "expected one of"),
    (
      COGVIDEOX | {"_class_name": "CogVideoXDPMScheduler", "snr_shift_scale": "3"},
      "snr_shift_scale",
    ),
    (
      COGVIDEOX | {"_class_name": "CogVideoXDPMScheduler", "snr_shift_scale": 1e9},
      "snr_shift_scale",
    ),
  ],
)
def test_other_files_are_refused(config, message, tmp_path):
  write(tmp_path, config)
  with pytest.raises(ValueError, match=message):
    schedulers.read(tmp_path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(OSError, match=schedulers.NAME):
    schedulers.read(tmp_path)
