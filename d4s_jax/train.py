"""Trains one stage of d4s_jax and leaves checkpoints, metrics, curves and videos.

Example:
  python -m d4s_jax.train --config=configs/joint.py
  python -m d4s_jax.train --config=configs/joint.py:tiny --workdir=runs/mine --config.steps=1000

The same command goes on where an interrupted run stopped. On several hosts, give it on each, with
--distributed and a --workdir that all of them see, or have launch/ do so. It ends with status 0
when the last step is done, and with 75 when a signal stopped it before.
"""

import sys

from absl import flags, logging
from ml_collections import config_flags

from d4s_jax import errors
from d4s_jax.training import compilation, loop, places, processes, profile

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file and preset, for example configs/joint.py:tiny.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run, or gs://BUCKET/NAME; runs/STAGE-PRESET if not given."
)
_PROFILE = flags.DEFINE_string(
  "profile", None, "Steps N:M to trace with JAX's profiler, into WORKDIR/profile."
)
_DISTRIBUTED = flags.DEFINE_boolean(
  "distributed", False, "Join other processes; see d4s_jax/training/processes.py."
)


def main(argv: list[str]) -> None:
  """Runs the training."""
  del argv
  logging.set_verbosity(logging.WARNING)
  with errors.one_line(), processes.telling():
    if _DISTRIBUTED.value:
      processes.join()
    if note := compilation.cache():
      print(note, file=sys.stderr)
    config = _CONFIG.value
    folder = _WORKDIR.value or f"runs/{config.stage}-{config.preset}"
    done = loop.run(config, places.place(folder), profile.parse(_PROFILE.value))
  # Not within: the other processes would be told of it as of an error.
  if not done:
    sys.exit(errors.STOPPED)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  errors.run(main)
