"""Orbax checkpoints: a step folder that is written whole or not at all, and config.json beside.

Layout of a run's folder::

  config.json            the run's configuration, enough to rebuild the model
  checkpoints/STEP/
    model/               all parameters, the moving average in place of the trained ones
    training/            what only training needs: step, trained parameters, optimizer moments

Files of a step appear under a temporary name and are renamed when complete, so a kill at any
moment leaves the previous steps untouched.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from d4s_jax.training.state import TrainState, averaged_params, flatten

# A run may be continued with other values of these.
RESUMABLE = ("steps", "log", "checkpoint", "heldout", "data.workers")


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
  return {"step": state.step, "trainable": state.trainable, "optimizer": state.optimizer}


def _restore(manager: ocp.CheckpointManager, step: int, args: ocp.args.Composite) -> Any:
  try:
    return manager.restore(step, args=args)
  except Exception as error:  # Orbax raises bare Exception for unreadable arrays.
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    raise CheckpointError(
      f"Checkpoint {manager.directory / str(step)} can't be read ({first}). It is damaged or of"
      " another configuration; remove this folder to go on from the step before it."
    ) from error


class Checkpoints:
  """The checkpoints of one run, written in the background."""

  def __init__(self, folder: pathlib.Path, keep: int):
    self._manager = _manager(folder, keep)

  @property
  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Starts to write `state`; a step that exists already is left alone."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        model=ocp.args.StandardSave(averaged_params(state)),
        training=ocp.args.StandardSave(_training_part(state)),
      ),
    )

  def restore(self, like: TrainState) -> TrainState:
    """Reads the newest step into the shapes and shardings of `like`."""
    step = self.latest
    assert step is not None
    restored = _restore(
      self._manager,
      step,
      ocp.args.Composite(
        model=ocp.args.StandardRestore(_abstract(averaged_params(like))),
        training=ocp.args.StandardRestore(_abstract(_training_part(like))),
      ),
    )
    model = flatten(restored.model)
    return TrainState(
      frozen={path: model[path] for path in like.frozen},
      average={path: model[path] for path in like.average},
      **restored.training,
    )

  def wait(self) -> None:
    """Blocks until everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and releases the background threads."""
    self._manager.close()


def write_config(folder: pathlib.Path, config: Mapping) -> None:
  """Records the configuration of a new run, or checks it against the one that is being resumed.

  Raises:
    CheckpointError: the folder holds a run with another configuration; lists the differences.
  """
  path = folder / "config.json"
  text = json.dumps(config, indent=2, sort_keys=True)
  if path.exists():
    saved, current = _leaves(read_config(folder)), _leaves(json.loads(text))
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


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The configuration of the run in `folder`; data only, nothing in it is executed."""
  path = folder / "config.json"
  if not path.is_file():
    raise CheckpointError(
      f"{folder} holds no trained model (no config.json). Train one first, for example with"
      " python -m d4s_jax.train --config=configs/joint.py, or name its folder."
    )
  try:
    config = json.loads(path.read_text())
  except ValueError as error:
    raise CheckpointError(f"{path} is not valid JSON ({error}); restore it or retrain.") from error
  if not isinstance(config, dict) or "model" not in config:
    raise CheckpointError(f"{path} has no 'model' section; it is not the configuration of a run.")
  return config


def read_model(folder: pathlib.Path, like: Any) -> tuple[Any, int]:
  """Reads the parameters of the newest checkpoint of a run.

  Args:
    folder: the run's folder.
    like: nested parameters, or their abstract shapes, as the configuration builds them.

  Returns:
    Nested parameters and the step they come from.
  """
  if not (folder / "checkpoints").is_dir():
    raise CheckpointError(f"{folder} holds no checkpoints yet; train it first or name another run.")
  manager = _manager(folder, read_only=True)
  step = manager.latest_step()
  if step is None:
    raise CheckpointError(f"{folder} holds no complete checkpoint yet; train it for longer.")
  restored = _restore(
    manager, step, ocp.args.Composite(model=ocp.args.StandardRestore(_abstract(like)))
  )
  return restored.model, step


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    key: value
    for name, part in tree.items()
    for key, value in _leaves(part, f"{prefix}.{name}" if prefix else name).items()
  }
