"""Orbax checkpoints: a step folder that is written whole or not at all.

Layout::

  checkpoints/STEP/
    model/               all parameters, the moving average in place of the trained ones
    training/            what only training needs: step, trained parameters, optimizer moments
    sums/                a number for each array, which tells whether a disk changed it

Files of a step appear under a temporary name and are renamed when complete (on an object store,
which can't rename, a last file says that they are), so a kill at any moment leaves the previous
steps untouched.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import pathlib
import secrets
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from d4s_jax import errors
from d4s_jax.formats import atomic
from d4s_jax.training import processes
from d4s_jax.training.places import Place, is_local, move
from d4s_jax.training.state import TrainState, averaged_params, flatten
from d4s_jax.training.sums import by_path, sums

# The folder of all steps.
_STEPS = "checkpoints"
# Bytes of a stack of blocks that is worth cutting, and of the largest piece.
_LARGE, _LARGEST_PIECE = 16 * 2**20, 256 * 2**20


class CheckpointError(ValueError):
  """A checkpoint is missing, unreadable or belongs to another configuration."""


class DamagedError(CheckpointError):
  """A checkpoint of this run is there but can't be read."""


def _steps(folder: Place) -> Place:
  """Where the steps of a run lie; Orbax wants all of the path."""
  return (folder.absolute() if is_local(folder) else folder) / _STEPS


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


def _cut(x: Any) -> ocp.SaveArgs:
  """In which pieces an array lies on disk, so that one block of a large stack can be read alone."""
  stack = x.ndim > 2 and x.nbytes > _LARGE
  return ocp.SaveArgs(chunk_byte_size=_LARGEST_PIECE, shard_axes=(0,) if stack else ())


def first_line(error: Exception) -> str:
  """Of the text of an error; those of Orbax go on for pages."""
  text = str(error).strip()
  return text.splitlines()[0][:200] if text else repr(error)


def _check_room(folder: Place, tree: Any) -> None:
  """Raises OSError unless this process's share of the arrays fits on the disk.

  Asked before Orbax starts, so that the run ends here and not at the next checkpoint, when the
  steps up to it are lost. What can reserve room knows of quotas too; else what is free must do.
  """
  size = sum(x.nbytes for x in jax.tree.leaves(tree)) // jax.process_count()
  probe = folder / f".room-{jax.process_index()}"
  if not hasattr(os, "posix_fallocate"):  # macOS
    return atomic.check_room(probe, size)
  try:
    # To append: where a file system can't reserve, glibc refuses that and else writes all of it.
    with probe.open("ab") as file:
      os.posix_fallocate(file.fileno(), 0, size)
  except OSError as error:
    if error.errno not in (errno.EBADF, errno.EOPNOTSUPP):
      raise
    atomic.check_room(probe, size)
  finally:
    probe.unlink(missing_ok=True)


# How errors begin of reads and writes that Orbax has given up.
_LATE = ("Event loop is closed", "Encountered error while reading array")


@functools.cache
def _log_failures_once() -> None:
  """Keeps what is printed of a failure from the error that Orbax raises of it as well.

  Each of its threads logs a traceback; and when one array fails, Orbax closes its event loop while
  others are on their way, each of which would print one more: from Python's hook, or, where it
  failed by itself and nobody asks for it any more, from asyncio's log.
  """
  shown = sys.unraisablehook

  def is_late(error: BaseException | None) -> bool:
    return str(error).startswith(_LATE)

  def is_news(record: logging.LogRecord) -> bool:
    failed = record.levelno >= logging.ERROR and record.exc_info
    of_orbax = "orbax" in pathlib.Path(record.pathname).parts
    return not (failed and (of_orbax or is_late(failed[1])))

  sys.unraisablehook = lambda x: None if is_late(x.exc_value) else shown(x)
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(is_news)


@contextlib.contextmanager
def reading(place: Place) -> Iterator[ocp.PyTreeCheckpointHandler]:
  """Yields what reads items of a step's folder; whatever goes wrong is one CheckpointError."""
  _log_failures_once()
  # Each process reads by itself: one that fails must not leave the others waiting.
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read_{me}"
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  with damage_of(place):
    yield handler


@contextlib.contextmanager
def damage_of(place: Place) -> Iterator[None]:
  """Whatever goes wrong in reading a step is one CheckpointError."""
  try:
    yield
  except (CheckpointError, MemoryError):
    raise
  except Exception as error:  # Orbax raises bare Exception for unreadable arrays.
    if "RESOURCE_EXHAUSTED" in str(error) or errors.passes(error):
      raise
    raise DamagedError(
      f"Checkpoint {place} can't be read ({first_line(error)}). It is damaged: training goes on"
      " from the step before it by itself; to use that one now, move this folder elsewhere."
    ) from error


def stored_arrays(reader: ocp.PyTreeCheckpointHandler, step: Place, item: str) -> dict[str, Any]:
  """What Orbax knows of the arrays of an item: shape, type and name of each, by path."""
  stored: Any = reader.metadata(epath.Path(step / item))
  return by_path(getattr(stored, "tree", stored), is_leaf=lambda x: hasattr(x, "shape"))


def check_shapes(step: Place, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
  """Raises CheckpointError unless the arrays of a checkpoint are those of the configuration."""
  for path in sorted(here.keys() | there.keys()):
    shapes = [tuple(x[path].shape) if path in x else None for x in (there, here)]
    if shapes[0] != shapes[1]:
      raise CheckpointError(
        f"Checkpoint {step} can't be read: it is of another configuration ({path}: {shapes[0]}"
        f" there, {shapes[1]} here)."
      )


def _read(reader: ocp.PyTreeCheckpointHandler, step: Place, item: str, like: Any) -> Any:
  """Reads an item, or of a dictionary the parts that `like` has, and checks its sums."""
  # A sum is of all processes: one that can't read its part would leave the others waiting in it.
  with processes.together():
    there, here = stored_arrays(reader, step, item), by_path(like)
    if isinstance(like, dict):
      there = {path: x for path, x in there.items() if path.split("/")[0] in like}
    check_shapes(step, there, here)
    types = ocp.checkpoint_utils.construct_restore_args(like)
    wanted = ocp.args.PyTreeRestore(like, restore_args=types, partial_restore=True)
    found = reader.restore(epath.Path(step / item), args=wanted)
    written = step / "sums" / "metadata"
    expected = json.loads(written.read_text())[item] if (step / "sums").exists() else {}
  if expected:
    # What is read in another type has other bits.
    same = {path: x for path, x in by_path(found).items() if x.dtype == there[path].dtype}
    wrong = [path for path, number in sums(same).items() if number != expected[path]]
    if wrong:
      raise ValueError(f"{len(wrong)} arrays are not what was written: {', '.join(wrong[:3])}")
  return found


class Checkpoints:
  """The checkpoints of one run, written in the background."""

  def __init__(self, folder: Place, keep: int = 1, keep_every: int = 0, keep_hours: float = 0):
    """Opens the folder of a run to write there.

    Args:
      folder: of the run.
      keep: how many of the newest are kept.
      keep_every: those whose step it divides are kept for ever; 0 for none.
      keep_hours: of those that follow each other within so many hours, the first is kept for ever;
        0 for none.
    """
    _log_failures_once()
    kept: list[Any] = [policies.LatestN(keep)]
    if keep_every:
      kept.append(policies.EveryNSteps(keep_every))
    if keep_hours:
      kept.append(policies.EveryNSeconds(round(keep_hours * 3600)))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
    )
    self._local = is_local(folder)
    self._manager = ocp.CheckpointManager(_steps(folder), options=options)

  @property
  def latest(self) -> int | None:
    """The newest complete step, or None: on the disk, since Orbax counts what it still writes."""
    return max(ocp.utils.checkpoint_steps(self._manager.directory), default=None)

  def save(self, state: TrainState) -> None:
    """Starts to write `state`; a step that exists already is left alone.

    Raises:
      CheckpointError: there is no room for it, or an earlier one could not be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = {"model": averaged_params(state), "training": _training_part(state)}
    with self._writing():
      if self._local:
        _check_room(pathlib.Path(self._manager.directory), items)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          sums=ocp.args.JsonSave({name: sums(item) for name, item in items.items()}),
          **{name: ocp.args.StandardSave(x, jax.tree.map(_cut, x)) for name, x in items.items()},
        ),
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
        f"A checkpoint can't be written to {self._manager.directory} ({first_line(error)}); {good}."
        " Make room there and give the same command to go on."
      ) from error


def set_aside(folder: Place, step: int) -> Place:
  """Moves a checkpoint to where it is not taken for one; returns where."""
  place = folder / "damaged" / f"{step}-{secrets.token_hex(2)}"
  move(folder / _STEPS / str(step), place)
  return place


def is_run(folder: Place) -> bool:
  """Whether a folder is that of a run, whatever state it is in."""
  return (folder / _STEPS).is_dir()


def whole_steps(folder: Place) -> list[int]:
  """The steps whose checkpoints were written to their end, the newest last."""
  place = _steps(folder)
  return sorted(ocp.utils.checkpoint_steps(place)) if place.is_dir() else []


def latest_step(folder: Place) -> int:
  """The newest complete checkpoint of a run; raises CheckpointError if there is none."""
  steps = whole_steps(folder)
  if not is_run(folder):
    raise CheckpointError(f"{folder} holds no checkpoints yet; train it first or name another run.")
  if not steps:
    raise CheckpointError(
      f"{folder} holds no complete checkpoint yet; train it for longer or name another run."
    )
  return steps[-1]


def step_place(folder: Place, step: int) -> Place:
  """Where the files of a step of a run lie."""
  return _steps(folder) / str(step)


def read_state(folder: Place, step: int, like: TrainState) -> TrainState:
  """Reads a step into the types and shardings of `like`, which may be abstract.

  Raises:
    DamagedError: it can't be read.
    CheckpointError: it is of another configuration.
  """
  place = _steps(folder) / str(step)
  with reading(place) as reader:
    model = _read(reader, place, "model", _abstract(averaged_params(like)))
    training = _read(reader, place, "training", _abstract(_training_part(like)))
  model = flatten(model)
  return TrainState(
    frozen={path: model[path] for path in like.frozen},
    average={path: model[path] for path in like.average},
    **training,
  )


def read_model(folder: Place, like: Mapping[str, Any]) -> tuple[Any, int]:
  """Reads parameters of the newest checkpoint of a run.

  Args:
    folder: the run's folder.
    like: nested parameters, or their abstract shapes, as the configuration builds them. Only the
      parts it has are read, in its types and, where it has some, its shardings.

  Returns:
    Nested parameters and the step they come from.
  """
  step = latest_step(folder)
  place = _steps(folder) / str(step)
  with reading(place) as reader:
    return _read(reader, place, "model", _abstract(dict(like))), step
