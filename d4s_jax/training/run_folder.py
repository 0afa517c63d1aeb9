"""What lies in the folder of a run beside its checkpoints.

Layout::

  config.json            the run's configuration, enough to rebuild the model
  identity               a random name, under which emergency copies of this run lie elsewhere
  tokenizer/             a copy of the tokenizer's files, if it is not that of bytes
  checkpoints/           see `checkpoint`
"""

import json
import pathlib
import secrets
import tempfile
from collections.abc import Mapping
from typing import Any

from d4s_jax.formats import tokenizer_files
from d4s_jax.models.system import System
from d4s_jax.models.tokenizer import MissingPackageError
from d4s_jax.training import checkpoint
from d4s_jax.training.places import Place, is_local, publish

# A run may be continued with other values of these.
RESUMABLE = (
  *("steps", "checkpoint", "heldout", "data.workers", "data.cache", "text_cache"),
  *("sampling", "mesh", "frozen_dtype"),
)


# What every reader of a run's configuration relies on, beside the model.
_NEEDED = {
  "preset": str,
  "clip.frames": int,
  "clip.height": int,
  "clip.width": int,
  "sampling.steps": int,
  "sampling.guidance": str,
  "sampling.scale": float,
}

# The file of a run's random name.
_IDENTITY = "identity"


def write_config(folder: Place, config: Mapping) -> None:
  """Records the configuration of a new run, or checks it against the one that is being resumed.

  A folder without a checkpoint has nothing to resume: a new run may start there.

  Raises:
    CheckpointError: the folder holds a run with another configuration; lists the differences.
  """
  path = folder / "config.json"
  text = json.dumps(config, indent=2, sort_keys=True)
  if is_resumed(folder):
    saved, current = _settled(_read_json(folder)), _settled(json.loads(text))
    differences = [
      f"{key}: saved {saved.get(key)!r}, now {current.get(key)!r}"
      for key in sorted(saved.keys() | current.keys())
      if saved.get(key) != current.get(key)
    ]
    if differences:
      raise checkpoint.CheckpointError(
        f"{folder} holds a run with another configuration ({'; '.join(differences)})."
        " Choose another --workdir, or give the same configuration to resume it."
      )
    anew = not (folder / _IDENTITY).exists()
  else:
    anew = not _has_config(folder, json.loads(text))
  folder.mkdir(parents=True, exist_ok=True)
  if anew:
    _write(folder / _IDENTITY, secrets.token_hex(8))
  _write(path, text)


def _has_config(folder: Place, config: Any) -> bool:
  """Whether a run with this configuration began in `folder`, and may have emergency copies."""
  try:
    return _settled(_read_json(folder)) == _settled(config) and (folder / _IDENTITY).exists()
  except checkpoint.CheckpointError:
    return False


def identity(folder: Place) -> str:
  """The name of the run in `folder`, which no other run has."""
  return (folder / _IDENTITY).read_text().strip()


def _write(path: Place, text: str) -> None:
  """Writes a small file whole or not at all."""
  if not is_local(path):  # objects are like that
    path.write_text(text + "\n")
    return
  temporary = path.with_name(f"{path.name}.tmp")
  temporary.write_text(text + "\n")
  temporary.replace(path)


def _settled(config: Any) -> dict[str, Any]:
  """What a run is never continued with other values of."""
  return {key: value for key, value in _leaves(config).items() if not key.startswith(RESUMABLE)}


def is_resumed(folder: Place) -> bool:
  """Whether a run in this folder goes on."""
  return bool(checkpoint.whole_steps(folder))


def read_tokenizer(folder: Place, model: Mapping[str, Any]) -> dict[str, bytes]:
  """The files of the tokenizer of a run that starts or goes on in `folder`; none for bytes.

  A run that goes on has its own copy: the folder that `model.backbone.tokenizer` names may be gone.
  """
  named = model["backbone"].get("tokenizer", "")
  if not named:
    return {}
  own = is_resumed(folder) and _tokenizer(folder).is_dir()
  return _own_tokenizer(folder) if own else tokenizer_files.read(pathlib.Path(named))


def write_tokenizer(folder: Place, files: Mapping[str, bytes]) -> None:
  """Leaves the copy of the tokenizer in the folder of a run."""
  with tempfile.TemporaryDirectory() as temporary:
    local = _tokenizer(folder) if is_local(folder) else pathlib.Path(temporary)
    tokenizer_files.write(local, files)
    publish(local, _tokenizer(folder))


def _own_tokenizer(folder: Place) -> dict[str, bytes]:
  """The copy of the tokenizer in the folder of a run."""
  if is_local(folder):
    return tokenizer_files.read(_tokenizer(folder))
  with tempfile.TemporaryDirectory() as temporary:
    for file in _tokenizer(folder).iterdir():
      (pathlib.Path(temporary) / file.name).write_bytes(file.read_bytes())
    return tokenizer_files.read(pathlib.Path(temporary))


def _tokenizer(folder: Place) -> Place:
  return folder / "tokenizer"


def read_config(folder: Place) -> dict[str, Any]:
  """The configuration of the run in `folder`; data only, nothing in it is executed."""
  config = _read_json(folder)
  leaves = _leaves(config)
  wrong = [name for name, kind in _NEEDED.items() if not isinstance(leaves.get(name), kind)]
  if wrong:
    raise checkpoint.CheckpointError(
      f"{folder / 'config.json'} is not the configuration of a run: {', '.join(wrong)} are missing"
      " or of another type. Restore it or retrain."
    )
  return config


def _read_json(folder: Place) -> Any:
  path = folder / "config.json"
  if not path.is_file():
    if checkpoint.is_run(folder):
      raise checkpoint.CheckpointError(
        f"{folder} has checkpoints but no config.json, without which their shapes are not known;"
        " put it back."
      )
    raise checkpoint.CheckpointError(
      f"{folder} holds no trained model (no config.json). Train one first, for example with"
      " python -m d4s_jax.train --config=configs/joint.py, or name its folder."
    )
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise checkpoint.CheckpointError(
      f"{path} is not valid JSON ({error}); restore it or retrain."
    ) from error


def read_system(folder: Place) -> tuple[dict[str, Any], System]:
  """The configuration of the run in `folder`, and the models it describes."""
  config = read_config(folder)
  try:
    own = config["model"]["backbone"].get("tokenizer", "")
    files = _own_tokenizer(folder) if own else {}
    return config, System.build(config["model"], files)
  except MissingPackageError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise checkpoint.CheckpointError(
      f"The model section of {folder / 'config.json'} describes no model"
      f" ({type(error).__name__}: {checkpoint.first_line(error)}); restore it or retrain."
    ) from error


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    key: value
    for name, part in tree.items()
    for key, value in _leaves(part, f"{prefix}.{name}" if prefix else name).items()
  }
