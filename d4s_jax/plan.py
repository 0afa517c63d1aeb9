r"""Plans a training run: compiles its step for accelerators that aren't here, and counts.

Example:
  python -m pip install -e '.[tpu]'
  python -m d4s_jax.plan --config=configs/joint.py:wan2.2-5b-ti2v --topology=v5p:4x4x4 \
      --config.mesh.fsdp=16 --samples=1
  python -m d4s_jax.plan --config=configs/joint.py:paper --topology=v6e:16x16 --search
  python -m d4s_jax.plan --config=configs/joint.py:wan2.2-5b-ti2v --topology=v5p:1x1x1 \
      --mode=generate --config.clip.height=352 --config.clip.width=640

Nothing is run and no parameter is made: a laptop plans for a pod. Topologies are CHIP:SHAPE of v5e,
v5p, v6e, tpu7x (these need the extra `tpu`) and h100:HOSTSxGPUS (extra `cuda`).
"""

from absl import flags, logging
from ml_collections import config_flags

from d4s_jax import errors
from d4s_jax.pipeline import programs
from d4s_jax.training.planning import chips, report, sampling, search
from d4s_jax.training.planning.plan import plan_training, tokens

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file and preset, for example configs/joint.py:paper.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5p:4x4x4.", required=True)
_SAMPLES = flags.DEFINE_integer(
  "samples", None, "On every part of the devices that shares samples; else the batch_size."
)
_MODE = flags.DEFINE_enum(
  "mode", "train", ["train", "generate"], "A step of training, or a scene from one photograph."
)
_SEARCH = flags.DEFINE_boolean("search", False, "Try meshes, remat policies and samples.")


def main(argv: list[str]) -> None:
  """Prints one plan, or those of a search and the best."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    chips.without_accelerator()
    config = _CONFIG.value
    if config.model.dtype == "auto":  # of this machine, which is not the one that is planned for
      config.model.dtype = "bfloat16"
    if _MODE.value == "generate":
      if _SEARCH.value or _SAMPLES.value is not None:
        raise ValueError("--mode=generate plans one scene; leave --search and --samples out.")
      system, params = sampling.open_models(config, _TOPOLOGY.value)
      size = (config.clip.frames, config.clip.height, config.clip.width)
      names = ("steps", "guidance", "scale", "reuse")
      chosen = {name: config.sampling[name] for name in names}
      parts = programs.programs(system, params, size, **chosen)
      print(sampling.describe(sampling.plan_programs(_TOPOLOGY.value, parts)))
      return
    if _SEARCH.value:
      if _SAMPLES.value is not None:
        raise ValueError("--search tries numbers of samples itself; leave --samples out.")
      config, samples = search.best(config, _TOPOLOGY.value)
    else:
      samples = _SAMPLES.value
    plan = plan_training(config, _TOPOLOGY.value, samples)
    print(report.describe(plan, tokens(config), config.steps * config.batch_size))


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  errors.run(main)
