"""The scheduler_config.json of a published pipeline: the schedule it means, and the solver."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from d4s_jax.formats import checked

NAME = "scheduler_config.json"
_LONGEST = 2**20

# What the published schedulers share, and all that is built in here. A missing key has the first
# value.
_FLOW = {
  "num_train_timesteps": (1000,),
  "use_karras_sigmas": (False, None),
  "use_exponential_sigmas": (False, None),
  "use_beta_sigmas": (False, None),
  "use_dynamic_shifting": (False,),
  "shift_terminal": (None, False),
}
_EULER = _FLOW | {"invert_sigmas": (False,), "stochastic_sampling": (False,)}
_UNIPC = _FLOW | {
  "prediction_type": ("epsilon", "flow_prediction"),
  "use_flow_sigmas": (False, True),
  "solver_order": (2,),
  "solver_type": ("bh2",),
  "predict_x0": (True,),
  "lower_order_final": (True,),
  "final_sigmas_type": ("zero",),
  "thresholding": (False,),
  "disable_corrector": ([],),
  "solver_p": (None,),
}
_COGVIDEOX = {
  "num_train_timesteps": (1000,),
  "beta_start": (0.00085,),
  "beta_end": (0.012,),
  "beta_schedule": ("scaled_linear",),
  "prediction_type": ("epsilon", "v_prediction"),
  "rescale_betas_zero_snr": (False, True),
  "timestep_spacing": ("leading", "trailing", "linspace"),
  "set_alpha_to_one": (True,),
  "clip_sample": (True, False),
  "trained_betas": (None,),
}
# What nothing depends on, given the rest: names, and numbers of what is switched off.
_IGNORED = {
  *("_class_name", "_diffusers_version", "base_shift", "max_shift", "base_image_seq_len"),
  *("max_image_seq_len", "time_shift_type", "beta_start", "beta_end", "beta_schedule"),
  *("trained_betas", "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range"),
  *("timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "sigma_min", "sigma_max"),
}
# A published value that has to be there: the class's own default is another.
_NEEDED = {
  "prediction_type": ("flow_prediction", "v_prediction"),
  "use_flow_sigmas": (True,),
  "rescale_betas_zero_snr": (True,),
  "timestep_spacing": ("trailing", "linspace"),
  "clip_sample": (False,),
}


def _flow(name: str, spacing: str) -> Callable[[Mapping[str, Any], str], dict[str, Any]]:
  def fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    shift = checked.number(config.get(name, 1.0), f"{where}: {name}", 0.01, 100)
    return {"shift": shift, "spacing": spacing}

  return fields


def _v_prediction(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  name = "snr_shift_scale"
  shift = checked.number(config.get(name, 3.0), f"{where}: {name}", 0.01, 100)
  return {"snr_shift": shift, "spacing": config["timestep_spacing"]}


# Class of diffusers: what it must say, the fields of our schedule, the key they are read from, our
# solver.
SCHEDULERS = {
  "FlowMatchEulerDiscreteScheduler": (_EULER, _flow("shift", "euler"), "shift", "ddim"),
  "UniPCMultistepScheduler": (_UNIPC, _flow("flow_shift", "unipc"), "flow_shift", "unipc"),
  "CogVideoXDDIMScheduler": (_COGVIDEOX, _v_prediction, "snr_shift_scale", "ddim"),
  "CogVideoXDPMScheduler": (_COGVIDEOX, _v_prediction, "snr_shift_scale", "dpm"),
}


def read(folder: pathlib.Path) -> tuple[dict[str, Any], str]:
  """The fields of our schedule and the name of our solver.

  Args:
    folder: with the scheduler_config.json.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged, or of a scheduler that we have no counterpart of; lists everything.
  """
  path = checked.within(folder, NAME)
  config = checked.parse(checked.read_bytes(path, _LONGEST, "scheduler"), str(path))
  if not isinstance(config, dict):
    raise ValueError(f"{path}: expected an object.")
  name = config.get("_class_name")
  if not isinstance(name, str) or name not in SCHEDULERS:
    raise ValueError(f"{path} is of a {name!r:.60}; expected one of {', '.join(SCHEDULERS)}.")
  rules, fields, shift, solver = SCHEDULERS[name]
  wrong = []
  for key, values in rules.items():
    value, wanted = config.get(key, values[0]), _NEEDED.get(key, values)
    if value not in wanted:
      choices = " or ".join(repr(x) for x in wanted if x in values)
      wrong.append(f"{key} is {value!r:.60}, and we have only {choices}")
  for key, value in config.items():
    if key not in rules and key not in _IGNORED and key != shift and key[:1] != "_" and value:
      wrong.append(f"{key!r:.60} is {value!r:.60}, which our schedule doesn't know")
  if wrong:
    raise ValueError(f"{path}: {'; '.join(wrong)}.")
  return fields(config, str(path)), solver
