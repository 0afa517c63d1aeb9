"""Inspects a downloaded dataset.

Examples:
  python -m d4s_jax.curate --list
  python -m d4s_jax.curate --dataset=tartanair --source=data/tartanair --check
  python -m d4s_jax.curate --dataset=realestate10k --source=data/re10k --check --frames=5

--check opens every scene and reads its files, says what is broken or missing, and draws contact
sheets of some scenes: frames, depth, a frame carried to others by depth and cameras, tracks, and
the camera's path from above. Its status is 0 if there is nothing to complain about. --list shows
the datasets that can be read, their licences, and where they are to be had.
"""

import pathlib
import sys

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.curation.inspection import inspect
from d4s_jax.data.datasets import registry
from d4s_jax.pipeline import progress

_LIST = flags.DEFINE_bool("list", False, "Show the datasets that can be read.")
_DATASET = flags.DEFINE_string("dataset", None, "Name of the dataset; --list shows all.")
_SOURCE = flags.DEFINE_string("source", None, "Its folder.")
_CHECK = flags.DEFINE_bool("check", False, "Inspect it.")
_FRAMES = flags.DEFINE_integer("frames", 0, "Frames that are read of each camera; 0 is all.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report; checks/DATASET if not given.")

# Problems that are shown; the report has all.
_SHOWN = 20


def main(argv: list[str]) -> None:
  """Lists datasets or inspects one."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    if _LIST.value:
      print(registry.listing())
      return
    if _DATASET.value is None or _SOURCE.value is None or not _CHECK.value:
      raise ValueError("Expected --list, or --dataset=NAME --source=DIR --check; see --help.")
    if _FRAMES.value < 0:
      raise ValueError(f"--frames is {_FRAMES.value}; expected 0 or more.")
    output = pathlib.Path(_OUTPUT.value or f"checks/{_DATASET.value}")
    found = inspect(
      _DATASET.value,
      pathlib.Path(_SOURCE.value),
      output,
      frames=_FRAMES.value,
      bar=lambda what, total: progress.bar(what, total, unit="scene"),
    )
    for problem in found.problems[:_SHOWN]:
      print(f"- {problem}")
    print(f"{found.summary()}\nReport and sheets: {output}")
  if found.problems:
    sys.exit(errors.REFUSED)


if __name__ == "__main__":
  errors.run(main)
