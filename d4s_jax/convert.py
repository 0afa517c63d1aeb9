"""Takes published video models in and out: diffusers and transformers to our layout, and back.

Example:
  python -m d4s_jax.convert --from=Wan2.1-T2V-1.3B-Diffusers --to=weights/wan1.3b --format=flax
  python -m d4s_jax.convert --from=weights/wan1.3b --to=back --format=torch

--from is a whole pipeline (with model_index.json) or the folder of one model, in safetensors. The
weights keep their type; what goes back is bit for bit what came. A run starts from converted
weights with --config.init.transformer=weights/wan1.3b, and so on for each part.
"""

import pathlib

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import atomic
from d4s_jax.pipeline import progress
from d4s_jax.weights import folders

_FROM = flags.DEFINE_string("from", None, "Folder of a pipeline or a model.", required=True)
_TO = flags.DEFINE_string("to", None, "New folder for what it becomes.", required=True)
_FORMAT = flags.DEFINE_enum(
  "format", None, ["flax", "torch"], "flax: our layout; torch: back to diffusers.", required=True
)


def main(argv: list[str]) -> None:
  """Converts one folder."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    source, target = pathlib.Path(_FROM.value), pathlib.Path(_TO.value)
    atomic.check_new_folder(target)
    job = folders.prepare(source, _FORMAT.value)
    with progress.bar("convert", job.nbytes, "B") as bar:
      job.write(target, bar.update)
    print(f"Weights: {target}")


if __name__ == "__main__":
  errors.run(main)
