"""Scores scenes or videos: every metric of the paper, each with its protocol beside it.

Examples:
  python -m d4s_jax.evaluate --config=configs/evaluate.py --config.samples=scenes
  python -m d4s_jax.evaluate --config=configs/evaluate.py --config.samples=ours=a,theirs=b \
      --config.reference=true --config.weights.clip=weights/clip-vit-large-patch14

  python -m d4s_jax.evaluate --config=configs/evaluate.py --sweep=configs/sweeps/tiny.py

A folder holds scenes that generate wrote, or anybody's videos; NAME.txt beside a video is its
prompt, NAME.json its camera path. Leaves report.html, report.json and report.txt, and the table on
the screen. With --sweep, rows of a table are trained or loaded, made into scenes and scored. What
isn't there (true videos, weights, cameras) is said, and no metric takes its place.
"""

import pathlib

from absl import flags, logging
from ml_collections import config_flags

from d4s_jax import errors
from d4s_jax.evaluation import page, report, runner, sweeps
from d4s_jax.evaluation.settings import Settings
from d4s_jax.training import compilation

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file, for example configs/evaluate.py.", lock_config=True
)

_SWEEP = config_flags.DEFINE_config_file(
  "sweep", None, "Rows to train or load, for example configs/sweeps/tiny.py:shipped,two_stage."
)


def main(argv: list[str]) -> None:
  """Scores what the configuration names."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    settings = Settings.of(_CONFIG.value.to_dict())
    compilation.cache()
    if _SWEEP.value is None:
      found = runner.evaluate(settings)
    else:
      found = sweeps.run(_SWEEP.value.to_dict(), settings)
    folder = pathlib.Path(settings.output)
    report.write(folder, found)
    page.write(folder / "report.html", found)
    print(report.text(found))
    print(f"\nReport: {folder / 'report.html'}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  errors.run(main)
