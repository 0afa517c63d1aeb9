"""scheduler_config.json as diffusers writes it."""

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
PUBLISHED = {
  "UniPCMultistepScheduler": (FLOW, {"shift": 3.0, "spacing": "unipc"}, "unipc"),
  "FlowMatchEulerDiscreteScheduler": (
    dict(shift=5.0),
    {"shift": 5.0, "spacing": "euler"},
    "ddim",
  ),
  "CogVideoXDDIMScheduler": (COGVIDEOX, {"snr_shift": 1.0}, "ddim"),
  "CogVideoXDPMScheduler": (COGVIDEOX | {"snr_shift_scale": 3.0}, {"snr_shift": 3.0}, "dpm"),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_what_diffusers_saves_is_read(name, tmp_path):
  diffusers = pytest.importorskip("diffusers")
  arguments, fields, solver = PUBLISHED[name]
  getattr(diffusers, name)(**arguments).save_pretrained(tmp_path)
  assert schedulers.read(tmp_path) == (fields, solver)


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
