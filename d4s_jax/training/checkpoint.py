"""Orbax checkpoints: a step folder that is written whole or not at all, and config.json beside.

Layout of a run's folder::

  config.json            the run's configuration, enough to rebuild the model
  tokenizer/             a copy of the tokenizer's files, if it is not that of bytes
  checkpoints/STEP/
    model/               all parameters, the moving average in place of the trained ones
    training/            what only training needs: step, trained parameters, optimizer moments

Files of a step appear under a temporary name and are renamed when complete, so a kill at any
moment leaves the previous steps untouched.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from d4s_jax.formats import tokenizer_files
from d4s_jax.models.system import System
from d4s_jax.models.tokenizer import MissingPackageError
from d4s_jax.training.state import TrainState, averaged_params, flatten

# A run may be continued with other values of these.
RESUMABLE = (
  *("steps", "checkpoint", "heldout", "data.workers", "data.cache", "text_cache"),
  "sampling",
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


class CheckpointError(ValueError):
  """A checkpoint is missing, unreadable or belongs to another configuration."""


def _manager(folder: pathlib.Path, keep: int = 1, read_only: bool = False) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=None if read_only else keep,
    read_only=read_only,
    create=not read_only,
    cleanup_tmp_directories=not read_only,
  )
  return ocp.CheckpointManager(folder.absolute() / "checkpoints", options=options)


def _abstract(tree: Any) -> Any:
  """Shapes, types and shardings: what Orbax needs to know to restore onto these devices."""

  def describe(x):
    sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(describe, tree)


def _training_part(state: TrainState) -> dict[str, Any]:
  return {
    "step": state.step,
    "trainable": state.trainable,
    "optimizer": state.optimizer,
    "usual_norm": state.usual_norm,
  }


def _reason(error: Exception) -> str:
  """The first line of an error; those of Orbax go on for pages."""
  text = str(error).strip()
  return text.splitlines()[0][:200] if text else repr(error)


def _check_room(folder: pathlib.Path, tree: Any) -> None:
  """Raises OSError unless this process's share of the arrays fits on the disk.

  Asked before Orbax starts: its background threads answer a full disk with pages of tracebacks.
  On macOS, which can't reserve room in this way, they still do.
  """
  if not hasattr(os, "posix_fallocate"):
    return
  size = sum(x.nbytes for x in jax.tree.leaves(tree)) // jax.process_count()
  probe = folder / f".room-{jax.process_index()}"
  try:
    with probe.open("wb") as file:
      os.posix_fallocate(file.fileno(), 0, size)
  finally:
    probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(place: pathlib.Path) -> Iterator[None]:
  """Whatever goes wrong in reading a step's folder is one CheckpointError."""
  shown = sys.unraisablehook

  def without_late_reads(unraisable: Any) -> None:
    # When one array can't be read, Orbax closes its event loop while others are on their way; each
    # of those would print a traceback beside the error that matters.
    if str(unraisable.exc_value) != "Event loop is closed":
      shown(unraisable)

  sys.unraisablehook = without_late_reads
  try:
    yield
  except Exception as error:  # Orbax raises bare Exception for unreadable arrays.
    raise CheckpointError(
      f"Checkpoint {place} can't be read ({_reason(error)}). It is damaged or of another"
      " configuration; remove this folder to go on from the step before it."
    ) from error
  sys.unraisablehook = shown


class Checkpoints:
  """The checkpoints of one run, written in the background."""

  def __init__(self, folder: pathlib.Path, keep: int):
    self._manager = _manager(folder, keep)

  @property
  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Starts to write `state`; a step that exists already is left alone.

    Raises:
      CheckpointError: there is no room for it, or an earlier one could not be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    model, training = averaged_params(state), _training_part(state)
    with self._writing():
      _check_room(pathlib.Path(self._manager.directory), (model, training))
      self._manager.save(
        step,
        args=ocp.args.Composite(
          model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training)
        ),
      )

  def restore(self, like: TrainState) -> TrainState:
    """Reads the newest step into the shapes and shardings of `like`, which may be abstract."""
    step = self.latest
    assert step is not None
    args = ocp.args.Composite(
      model=ocp.args.StandardRestore(_abstract(averaged_params(like))),
      training=ocp.args.StandardRestore(_abstract(_training_part(like))),
    )
    with _reading(pathlib.Path(self._manager.directory) / str(step)):
      restored: Any = self._manager.restore(step, args=args)
    model = flatten(restored.model)
    return TrainState(
      frozen={path: model[path] for path in like.frozen},
      average={path: model[path] for path in like.average},
      **restored.training,
    )

  def wait(self) -> None:
    """Blocks until everything is on disk; raises CheckpointError if it can't be written."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, like `wait`, and releases the background threads."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except (ValueError, OSError) as error:  # tensorstore raises ValueError for a failed write
      good = "no checkpoint was written yet" if self.latest is None else f"{self.latest} is good"
      raise CheckpointError(
        f"A checkpoint can't be written to {self._manager.directory} ({_reason(error)}); {good}."
        " Make room there and give the same command to go on."
      ) from error


def write_config(folder: pathlib.Path, config: Mapping) -> None:
  """Records the configuration of a new run, or checks it against the one that is being resumed.

  A folder without a checkpoint has nothing to resume: a new run may start there.

  Raises:
    CheckpointError: the folder holds a run with another configuration; lists the differences.
  """
  path = folder / "config.json"
  text = json.dumps(config, indent=2, sort_keys=True)
  if is_resumed(folder):
    saved, current = _leaves(_read_json(folder)), _leaves(json.loads(text))
    differences = [
      f"{key}: saved {saved.get(key)!r}, now {current.get(key)!r}"
      for key in sorted(saved.keys() | current.keys())
      if saved.get(key) != current.get(key) and not key.startswith(RESUMABLE)
    ]
    if differences:
      raise CheckpointError(
        f"{folder} holds a run with another configuration ({'; '.join(differences)})."
        " Choose another --workdir, or give the same configuration to resume it."
      )
  folder.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(".json.tmp")
  temporary.write_text(text + "\n")
  temporary.replace(path)


def is_resumed(folder: pathlib.Path) -> bool:
  """Whether a run in this folder goes on; Orbax names only complete steps by their number."""
  return any(entry.name.isdigit() for entry in folder.glob("checkpoints/*"))


def read_tokenizer(folder: pathlib.Path, model: Mapping[str, Any]) -> dict[str, bytes]:
  """The files of the tokenizer of a run that starts or goes on in `folder`; none for bytes.

  A run that goes on has its own copy: the folder that `model.backbone.tokenizer` names may be gone.
  """
  named = model["backbone"].get("tokenizer", "")
  if not named:
    return {}
  own = is_resumed(folder) and _tokenizer(folder).is_dir()
  return tokenizer_files.read(_tokenizer(folder) if own else pathlib.Path(named))


def write_tokenizer(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
  """Leaves the copy of the tokenizer in the folder of a run."""
  tokenizer_files.write(_tokenizer(folder), files)


def _tokenizer(folder: pathlib.Path) -> pathlib.Path:
  return folder / "tokenizer"


def is_run(folder: pathlib.Path) -> bool:
  """Whether a folder is that of a run, whatever state it is in."""
  return (folder / "checkpoints").is_dir()


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The configuration of the run in `folder`; data only, nothing in it is executed."""
  config = _read_json(folder)
  leaves = _leaves(config)
  wrong = [name for name, kind in _NEEDED.items() if not isinstance(leaves.get(name), kind)]
  if wrong:
    raise CheckpointError(
      f"{folder / 'config.json'} is not the configuration of a run: {', '.join(wrong)} are missing"
      " or of another type. Restore it or retrain."
    )
  return config


def _read_json(folder: pathlib.Path) -> Any:
  path = folder / "config.json"
  if not path.is_file():
    if (folder / "checkpoints").is_dir():
      raise CheckpointError(
        f"{folder} has checkpoints but no config.json, without which their shapes are not known;"
        " put it back."
      )
    raise CheckpointError(
      f"{folder} holds no trained model (no config.json). Train one first, for example with"
      " python -m d4s_jax.train --config=configs/joint.py, or name its folder."
    )
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise CheckpointError(f"{path} is not valid JSON ({error}); restore it or retrain.") from error


def read_system(folder: pathlib.Path) -> tuple[dict[str, Any], System]:
  """The configuration of the run in `folder`, and the models it describes."""
  config = read_config(folder)
  try:
    own = config["model"]["backbone"].get("tokenizer", "")
    files = tokenizer_files.read(_tokenizer(folder)) if own else {}
    return config, System.build(config["model"], files)
  except MissingPackageError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise CheckpointError(
      f"The model section of {folder / 'config.json'} describes no model"
      f" ({type(error).__name__}: {_reason(error)}); restore it or retrain."
    ) from error


def latest_step(folder: pathlib.Path) -> int:
  """The newest complete checkpoint of a run; raises CheckpointError if there is none."""
  if not (folder / "checkpoints").is_dir():
    raise CheckpointError(f"{folder} holds no checkpoints yet; train it first or name another run.")
  step = _manager(folder, read_only=True).latest_step()
  if step is None:
    raise CheckpointError(f"{folder} holds no complete checkpoint yet; train it for longer.")
  return step


def read_model(folder: pathlib.Path, like: Mapping[str, Any]) -> tuple[Any, int]:
  """Reads parameters of the newest checkpoint of a run.

  Args:
    folder: the run's folder.
    like: nested parameters, or their abstract shapes, as the configuration builds them. Only the
      parts it has are read, in its types and, where it has some, its shardings.

  Returns:
    Nested parameters and the step they come from.
  """
  step = latest_step(folder)
  place, like = folder.absolute() / "checkpoints" / str(step) / "model", _abstract(dict(like))
  with _reading(place.parent), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    stored: Any = reader.metadata(place)
    _check_same(flatten(like), flatten({x: stored.item_metadata[x] for x in like}))
    types = ocp.checkpoint_utils.construct_restore_args(like)
    wanted = ocp.args.PyTreeRestore(like, restore_args=types, partial_restore=True)
    return reader.restore(place, args=wanted), step


def _check_same(like: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
  """Raises ValueError where names or shapes differ; Orbax would leave out what isn't asked for."""
  for path in sorted(like.keys() | stored.keys()):
    shapes = [tuple(x[path].shape) if path in x else None for x in (stored, like)]
    if shapes[0] != shapes[1]:
      raise ValueError(f"{path}: {shapes[0]} there, {shapes[1]} here")


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    key: value
    for name, part in tree.items()
    for key, value in _leaves(part, f"{prefix}.{name}" if prefix else name).items()
  }
