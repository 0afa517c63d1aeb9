"""What lies in the folder of a run beside its checkpoints.

Layout::

  config.json            the run's configuration, enough to rebuild the model
  data.json              what tells the clips it is trained on from others, wherever they lie
  identity               a random name, under which emergency copies of this run lie elsewhere
  tokenizer/             a copy of the tokenizer's files, if it is not that of bytes
  checkpoints/           see `checkpoint`
"""

import json
import pathlib
import secrets
import shlex
import tempfile
from collections.abc import Mapping
from typing import Any

from d4s_jax.data.identity import differences, leaves
from d4s_jax.formats import atomic, tokenizer_files
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

# The files of a run's random name, and of what it is trained on.
_IDENTITY = "identity"
_DATA = "data.json"


def write_config(folder: Place, config: Mapping, data: Mapping) -> None:
  """Records configuration and data of a new run, or checks them against one that is being resumed.

  A folder without a checkpoint has nothing to resume: a new run may start there.

  Args:
    folder: of the run.
    config: its configuration.
    data: what tells its clips from others; see `Loader.data`.

  Raises:
    CheckpointError: the folder holds a run with another configuration or of other data; lists the
      differences, and how to go on.
  """
  # As they will be read.
  now = json.loads(json.dumps(config))
  if is_resumed(folder):
    _check_config(folder, _read_json(folder), now)
    check_data(folder, data)
    anew = not (folder / _IDENTITY).exists()
    if not (folder / _DATA).exists():
      print(f"WARNING: {folder} doesn't say what it was trained on; taken to be what is given now.")
  else:
    anew = not _began(folder, now, data)
  folder.mkdir(parents=True, exist_ok=True)
  if anew:
    _write(folder / _IDENTITY, secrets.token_hex(8))
  _write(folder / "config.json", json.dumps(now, indent=2, sort_keys=True))
  _write(folder / _DATA, json.dumps(data, indent=2, sort_keys=True))


def _began(folder: Place, config: Any, data: Mapping) -> bool:
  """Whether a run with this configuration began in `folder`, and may have emergency copies."""
  try:
    _check_config(folder, _read_json(folder), config)
    check_data(folder, data)
  except checkpoint.CheckpointError:
    return False
  return (folder / _IDENTITY).exists() and (folder / _DATA).exists()


def check_data(folder: Place, data: Mapping) -> None:
  """Compares data with those that a run was trained on, if it says what they were.

  Raises:
    CheckpointError: they are others; lists the differences.
  """
  path = folder / _DATA
  remedy = "delete it if the data are those that the run was trained on"
  saved = _parsed(path, remedy) if path.exists() else data
  if found := differences(saved, json.loads(json.dumps(data))):
    raise checkpoint.CheckpointError(
      f"{folder} was trained on other data ({'; '.join(found)}). Give those again, wherever they"
      f" lie now, or choose another --workdir; to go on with these all the same, delete {path}."
    )


def _check_config(folder: Place, saved: Any, now: Any) -> None:
  """Refuses to go on with another configuration, and tells the flags with which it would."""
  before, after = _settled(saved), _settled(now)
  keys = sorted(x for x in before.keys() | after.keys() if before.get(x) != after.get(x))
  if not keys:
    return
  unsaid = [x for x in ("preset", "stage") if x in keys and x not in before]
  if unsaid:
    remedy = f"restore its config.json, which names no {' and no '.join(unsaid)}"
    keys = unsaid
  elif "preset" in keys or "stage" in keys:
    remedy = f"give --config=configs/{before['stage']}.py:{before['preset']}"
    keys = [x for x in keys if x in ("preset", "stage")]
  else:
    there, here = leaves(saved), leaves(now)
    flags = [_flag(x, there[x]) for x in keys if x in there and x in here]
    given = [" ".join(flags)] if flags else []
    if len(flags) < len(keys):
      given.append("the version of d4s_jax that began it, which had other keys")
    remedy = f"give {' and '.join(given)}"
  told = "; ".join(f"{x}: saved {before.get(x)!r}, now {after.get(x)!r}" for x in keys)
  raise checkpoint.CheckpointError(
    f"{folder} holds a run with another configuration ({told}). To resume it {remedy}; or choose"
    " another --workdir."
  )


def _flag(key: str, value: Any) -> str:
  """The argument of `d4s_jax.train` that sets a key, as a shell takes it."""

  def text(x: Any) -> str:
    if isinstance(x, list):  # JSON has no tuples
      return f"({''.join(f'{text(y)},' for y in x)})"
    return json.dumps(x, ensure_ascii=False) if isinstance(x, str) else repr(x)

  return shlex.quote(f"--config.{key}={value if isinstance(value, str) else text(value)}")


def identity(folder: Place) -> str:
  """The name of the run in `folder`, which no other run has."""
  return (folder / _IDENTITY).read_text().strip()


def _write(path: Place, text: str) -> None:
  """Writes a small file whole or not at all."""
  if not is_local(path):  # objects are like that
    path.write_text(text + "\n")
    return
  with atomic.replacing(path) as temporary:
    temporary.write_text(text + "\n")


def _settled(config: Any) -> dict[str, Any]:
  """What a run is never continued with other values of; data may be moved, but not replaced."""
  told = {key: value for key, value in leaves(config).items() if not key.startswith(RESUMABLE)}
  if isinstance(source := told.get("data.source"), str):
    told["data.source"] = ",".join(x.partition(":")[0] for x in source.split(","))
  return told


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
  told = leaves(config)
  wrong = [name for name, kind in _NEEDED.items() if not isinstance(told.get(name), kind)]
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
  return _parsed(path, "restore it or retrain")


def _parsed(path: Place, remedy: str) -> Any:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise checkpoint.CheckpointError(f"{path} is not valid JSON ({error}); {remedy}.") from error


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
