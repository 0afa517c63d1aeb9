"""Makes training records of footage, or inspects a downloaded dataset.

Examples:
  python -m d4s_jax.curate --list
  python -m d4s_jax.curate --dataset=tartanair --source=data/tartanair --check
  python -m d4s_jax.curate --dataset=videos --source=films --output=shards/films
  python -m d4s_jax.curate --dataset=spring --source=data/spring --output=shards/spring \
      --limit=parallax=1: --set=side=512 --plugin=captions=http://127.0.0.1:8000/v1

With --output clips are cut, measured, judged and written as shards, which config.data.source takes
as shards:DIR, with a manifest and a report. The same command goes on after a kill. "videos" is any
folder of video files. --limit=FIGURE=LEAST:MOST changes a limit, --set=KEY=VALUE frames, shortest,
side, shard, height, baseline, patience, batch, gpus or workers, --plugin=KIND=NAME adds an
estimator; see d4s_jax/curation/README.md. RAY_ADDRESS names a cluster.

--check opens every scene and reads its files, says what is broken or missing, and draws contact
sheets. Its status is 0 if there is nothing to complain about. --list shows datasets and licences.
"""

import pathlib
import sys

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.curation import pipeline, settings
from d4s_jax.curation.inspection import inspect
from d4s_jax.data.datasets import registry
from d4s_jax.pipeline import progress

_LIST = flags.DEFINE_bool("list", False, "Show the datasets that can be read.")
_DATASET = flags.DEFINE_string("dataset", None, "Name of the dataset; --list shows all.")
_SOURCE = flags.DEFINE_string("source", None, "Its folder.")
_CHECK = flags.DEFINE_bool("check", False, "Inspect it.")
_FRAMES = flags.DEFINE_integer("frames", 0, "Frames that are read of each camera; 0 is all.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the shards, or of the report of --check.")
_LIMIT = flags.DEFINE_multi_string("limit", [], "FIGURE=LEAST:MOST.")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE.")
_PLUGIN = flags.DEFINE_multi_string("plugin", [], "KIND=NAME.")

# Problems that are shown; the report has all.
_SHOWN = 20


def main(argv: list[str]) -> None:
  """Lists datasets, inspects one, or curates one."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    if _LIST.value:
      print(registry.listing())
      return
    if not (_DATASET.value and _SOURCE.value and (_CHECK.value or _OUTPUT.value)):
      raise ValueError(
        "Expected --list, or --dataset=NAME --source=DIR and --output=DIR or --check; see --help."
      )
    if not _CHECK.value:
      chosen, spread = settings.parse(_SET.value, _LIMIT.value, _PLUGIN.value)
      places = (pathlib.Path(_SOURCE.value), pathlib.Path(_OUTPUT.value or ""))
      print(pipeline.run(_DATASET.value, *places, chosen, progress.bar, **spread))
      return
    if _FRAMES.value < 0:
      raise ValueError(f"--frames is {_FRAMES.value}; expected 0 or more.")
    output = pathlib.Path(_OUTPUT.value or f"checks/{_DATASET.value}")
    found = inspect(
      _DATASET.value,
      pathlib.Path(_SOURCE.value),
      output,
      frames=_FRAMES.value,
      bar=progress.bar,
    )
    for problem in found.problems[:_SHOWN]:
      print(f"- {problem}")
    print(f"{found.summary()}\nReport and sheets: {output}")
  if found.problems:
    sys.exit(errors.REFUSED)


if __name__ == "__main__":
  errors.run(main)
