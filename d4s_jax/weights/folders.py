"""Folders in and out: one published model, or a pipeline with its models and small files."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from d4s_jax.formats import atomic, checked, parts, shards, tensors
from d4s_jax.weights import adapters, components, own
from d4s_jax.weights.components import COMPONENTS
from d4s_jax.weights.parts import Conversion, kept, to_flax, to_torch

_INDEX = "model_index.json"
_CONVERT = {"flax": to_flax, "torch": to_torch}
_CONVERT_ADAPTER = {"flax": adapters.to_flax, "torch": adapters.to_torch}
_CONVERT_OWN = {"flax": own.to_flax, "torch": own.to_torch}

# Data of tokenizers and schedulers, which travel as they are.
_SMALL = (".json", ".model", ".txt", ".jinja")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_LARGEST_INDEX = 2**20
_LARGEST_SMALL = 64 * 2**20
# Of all of a pipeline, as they are in memory together; those of Wan have 21 MB.
_LARGEST_SUM = 128 * 2**20
_MOST_SMALL = 32
_MOST_COMPONENTS = 32


@dataclasses.dataclass(frozen=True)
class Job:
  """All that a folder becomes, checked, and nothing written yet.

  Attributes:
    models: the converted models by the name of their folder, "" for the folder itself.
    files: contents of the files that travel as they are, by place.
  """

  models: Mapping[str, Conversion]
  files: Mapping[str, bytes]

  @property
  def nbytes(self) -> int:
    """Bytes of weights to write."""
    return sum(model.nbytes for model in self.models.values())

  def write(
    self, folder: pathlib.Path, report: Callable[[int], Any], limit: int = shards.LIMIT
  ) -> None:
    """Makes the folder, whole or not at all.

    Args:
      folder: a new name, or an empty folder.
      report: told how many bytes were written since it was called last.
      limit: bytes a file of weights, unless a single tensor is larger.
    """
    with atomic.new_folder(folder) as staged:
      for name, contents in self.files.items():
        (staged / name).parent.mkdir(exist_ok=True)
        (staged / name).write_bytes(contents)
      for name, model in self.models.items():
        (staged / name).mkdir(exist_ok=True)
        model.write(staged / name, report, limit)


def prepare(folder: pathlib.Path, format: str, merging: bool = False) -> Job:
  """Checks all of a folder for its conversion; only headers of the weights are read.

  Args:
    folder: a pipeline (with model_index.json), one model, one adapter, or what a run became.
    format: "flax" for our layout, "torch" for that of diffusers and transformers.
    merging: whether something is added to it on the way, so that it may be in `format` already.

  Raises:
    ValueError: something can't be converted, or is hostile; lists everything.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"No folder at {folder}; expected a pipeline or a model of diffusers.")
  _check_no_cache(folder)
  if not (folder / _INDEX).exists():
    if own.is_own(folder / own.NAME):
      return _of_exported(folder, format)
    _check_names(folder)
    code = own.files() if _is_out(folder, format) else {}
    return Job({"": _convert(folder, format, merging)}, code)
  index = checked.within(folder, _INDEX)
  contents = checked.read_bytes(index, _LARGEST_INDEX, "the index of a pipeline")
  models: dict[str, Conversion] = {}
  files = {_INDEX: contents}
  problems = []
  for name, kind in _classes(checked.parse(contents, str(index)), index).items():
    try:
      inner = checked.within(folder, name)
      if kind in COMPONENTS:
        models[name] = _model(inner, format, merging)
        _check_kind(inner, kind)
      else:
        files |= _small_files(inner, kind, _LARGEST_SUM - sum(map(len, files.values())))
    except (ValueError, OSError) as error:
      problems.append(str(error))
  if problems:
    raise ValueError(" ".join(problems))
  if not models:
    raise ValueError(f"{index} names none of {', '.join(COMPONENTS)}.")
  return Job(models, files)


def _convert(folder: pathlib.Path, format: str, merging: bool = False) -> Conversion:
  """One model, one adapter, or the modules that exist nowhere else."""
  if own.is_own(folder):
    return _CONVERT_OWN[format](folder)
  if adapters.is_adapter(folder):
    return _CONVERT_ADAPTER[format](folder)
  return _model(folder, format, merging)


def _model(folder: pathlib.Path, format: str, merging: bool) -> Conversion:
  """One published model."""
  if merging and format == "flax" and parts.is_description(parts.read_config(folder)):
    return kept(folder)
  return _CONVERT[format](folder)


def _is_out(folder: pathlib.Path, format: str) -> bool:
  """Whether the code belongs beside what a folder becomes."""
  return format == "torch" and own.is_own(folder)


def _of_exported(folder: pathlib.Path, format: str) -> Job:
  """All parts of a run that left for PyTorch, or came in again.

  What lies beside its folders stays behind, as with a pipeline: a repository's own files.
  """
  models: dict[str, Conversion] = {}
  files: dict[str, bytes] = {}
  problems = []
  for path in sorted(x for x in folder.iterdir() if x.is_dir() and x.name[0] != "."):
    try:
      inner = checked.within(folder, path.name)
      if (inner / parts.CONFIG).is_file() or adapters.is_adapter(inner):
        models[path.name] = _convert(inner, format)
        code = own.files() if _is_out(inner, format) else {}
        files |= {f"{path.name}/{name}": contents for name, contents in code.items()}
      else:
        room = _LARGEST_SUM - sum(map(len, files.values()))
        files |= _small_files(inner, path.name, room)
    except (ValueError, OSError) as error:
      problems.append(str(error))
  if problems:
    raise ValueError(" ".join(problems))
  return Job(models, files)


def _classes(index: Any, where: pathlib.Path) -> dict[str, str]:
  """The class of each folder of a pipeline; `[null, null]` stands for one that is not there."""
  if not isinstance(index, dict):
    raise ValueError(f"{where}: expected an object.")
  classes = {}
  for name, value in index.items():
    if isinstance(value, list) and value != [None, None]:
      if len(value) != 2 or not all(isinstance(x, str) for x in value):
        raise ValueError(f"{where}: {name!r:.60}; expected a library and a class.")
      classes[name] = value[1]
  if len(classes) > _MOST_COMPONENTS:
    raise ValueError(
      f"{where} names {len(classes)} components; expected at most {_MOST_COMPONENTS}."
    )
  return classes


def _check_no_cache(folder: pathlib.Path) -> None:
  """Raises ValueError for a folder in which huggingface_hub keeps versions of a repository."""
  snapshots = sorted((folder / "snapshots").glob("*"))
  if snapshots and not (folder / parts.CONFIG).exists():
    raise ValueError(
      f"{folder} is a cache of the Hugging Face hub. Its files are links, which are not followed:"
      f" cp -rL {snapshots[-1]} NEW makes a folder that can be converted, and so does hf download"
      " --local-dir=NEW."
    )


def _check_names(folder: pathlib.Path) -> None:
  """Raises ValueError for what is no model: no configuration, and no weights of an adapter."""
  found = sorted(x.name for x in folder.iterdir() if x.suffix in _WEIGHTS)
  if found and not (folder / parts.CONFIG).exists() and not adapters.is_adapter(folder):
    raise ValueError(
      f"{folder} has {', '.join(map(repr, found[:5]))} and no {parts.CONFIG}. An adapter (LoRA)"
      " must be named pytorch_lora_weights.safetensors or adapter_model.safetensors. Files of other"
      " kinds may run code when read; save them as safetensors."
    )
  if not found and not (folder / parts.CONFIG).exists():
    raise ValueError(
      f"{folder} has neither {_INDEX} nor {parts.CONFIG}; expected a pipeline or a model of"
      " diffusers, what this command made of one, or a run of d4s_jax.train."
    )


def _check_kind(folder: pathlib.Path, kind: str) -> None:
  """Raises ValueError if the pipeline's index and a model's own configuration disagree."""
  config = parts.read_config(folder)
  published = config["published"] if parts.is_description(config) else config
  if components.of(published) is not COMPONENTS[kind]:
    own = parts.class_name(published)
    raise ValueError(
      f"{folder} is a {kind} in {_INDEX} and a {own} in its {parts.CONFIG}; expected the same."
    )


def _small_files(folder: pathlib.Path, kind: str, room: int) -> dict[str, bytes]:
  """The files of a component without weights, by place below the pipeline.

  Raises:
    ValueError: there are other files, or they have more bytes together than there is `room`.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"No folder at {folder} ({kind!r:.60}); expected a part of a pipeline.")
  paths = sorted(folder.glob("*"))
  if not 1 <= len(paths) <= _MOST_SMALL:
    raise ValueError(
      f"{folder} ({kind!r:.60}) has {len(paths)} files; expected 1 to {_MOST_SMALL}."
    )
  other = [f"{path.name!r:.60}" for path in paths if path.suffix not in _SMALL]
  if other:
    raise ValueError(
      f"{folder} ({kind!r:.60}) holds {', '.join(other[:8])}; models are converted of"
      f" {', '.join(COMPONENTS)}, and else only {' '.join(_SMALL)} files are copied."
    )
  found = {}
  what = f"part of a pipeline, whose files without weights may have {_LARGEST_SUM} bytes together"
  for path in paths:
    place = checked.within(folder, path.name)
    contents = checked.read_bytes(place, min(_LARGEST_SMALL, room), what)
    tensors.check_no_pointer(contents, place)
    room -= len(contents)
    found[f"{folder.name}/{path.name}"] = contents
  return found
