"""Takes published video models in and out: diffusers and transformers to our layout, and back.

Example:
  python -m d4s_jax.convert --from=Wan2.1-T2V-1.3B-Diffusers --to=weights/wan1.3b --format=flax
  python -m d4s_jax.convert --from=weights/wan1.3b --to=back --format=torch
  python -m d4s_jax.convert --from=runs/joint-tiny --to=for-torch --format=torch

--from is a whole pipeline (with model_index.json) or the folder of one model, in safetensors. The
weights keep their type; what goes back is bit for bit what came. A run starts from converted
weights with --config.init.transformer=weights/wan1.3b, and so on for each part.

Or --from is a training run: its backbone becomes models of diffusers and transformers; its LDRM and
its conditioning on cameras become safetensors with a file that runs them and needs torch alone. All
of that, or one part of it, comes back with --format=flax, for --config.init of another run.

Or --from is the folder of a LoRA adapter as diffusers or PEFT write it; a run starts from what it
becomes with --config.init.adapter. The adapter of a run leaves in diffusers' layout too, beside its
backbone. --merge=ADAPTER adds a converted adapter to the transformer, which may be in our layout or
in theirs, --merge=RUN the run's own.
"""

import pathlib

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import atomic
from d4s_jax.pipeline import progress
from d4s_jax.training import checkpoint, run_folder, stored_model
from d4s_jax.weights import folders, merging, run

_FROM = flags.DEFINE_string("from", None, "Folder of a pipeline, a model or a run.", required=True)
_TO = flags.DEFINE_string("to", None, "New folder for what it becomes.", required=True)
_FORMAT = flags.DEFINE_enum(
  "format", None, ["flax", "torch"], "flax: our layout; torch: back to diffusers.", required=True
)
_MERGE = flags.DEFINE_string(
  "merge", None, "Adapter that is added to the transformer: a converted one, or the run itself."
)


def main(argv: list[str]) -> None:
  """Converts one folder."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    source, target = pathlib.Path(_FROM.value), pathlib.Path(_TO.value)
    atomic.check_new_folder(target)
    if source.resolve() in target.resolve().parents:
      raise ValueError(f"--to is {target}, inside --from; expected a folder beside {source}.")
    job = _of_run(source) if checkpoint.is_run(source) else _of_weights(source)
    atomic.check_room(target, job.nbytes)
    with progress.bar("convert", job.nbytes, "B") as bar:
      job.write(target, bar.update)
    print(f"Weights: {target}")


def _of_weights(folder: pathlib.Path) -> folders.Job:
  job = folders.prepare(folder, _FORMAT.value, merging=bool(_MERGE.value))
  return merging.merge(job, merging.read(pathlib.Path(_MERGE.value))) if _MERGE.value else job


def _of_run(folder: pathlib.Path) -> folders.Job:
  if _FORMAT.value != "torch":
    raise ValueError(f"{folder} is a training run, which is ours already; expected --format=torch.")
  if _MERGE.value and pathlib.Path(_MERGE.value).resolve() != folder.resolve():
    raise ValueError(f"--merge is {_MERGE.value}; into a run only its own adapter goes: {folder}.")
  _, system = run_folder.read_system(folder)
  stored = stored_model.StoredModel(folder, system.abstract())
  return run.export(system, stored, merged=bool(_MERGE.value))


if __name__ == "__main__":
  errors.run(main)
