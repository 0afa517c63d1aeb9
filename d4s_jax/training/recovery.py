"""How a run goes on: from the newest step that can be read, and what is saved for that when."""

import time
from collections.abc import Callable
from typing import Any

from d4s_jax.config import Config
from d4s_jax.training import checkpoint, processes, run_folder
from d4s_jax.training.emergency import Copies
from d4s_jax.training.places import Place
from d4s_jax.training.state import TrainState


def open_copies(folder: Place, options: Config) -> Copies | None:
  """The emergency copies of the run in `folder` if `options`, config.checkpoint, ask for them."""
  return Copies(options.local, run_folder.identity(folder)) if options.local else None


def newest(folder: Place, copies: Copies | None, like: TrainState) -> TrainState | None:
  """The newest state that can be read of a run's checkpoints and emergency copies.

  What can't be read is reported, and set aside once something older could be; it is never deleted.
  Checkpoints go to FOLDER/damaged. With several processes all of them read the same step; newer
  copies, which some of them lack, are set aside, else they would be kept instead of new ones.

  Args:
    folder: of the run.
    copies: its emergency copies, if there are any.
    like: the state to read, which may be abstract.

  Returns:
    The state, or None if nothing was saved yet.

  Raises:
    CheckpointError: something was saved, but nothing can be read, or it is of another
      configuration.
  """
  durable = processes.told(checkpoint.whole_steps(folder))[0]
  local = set.intersection(*map(set, processes.told(copies.steps() if copies else [])))
  # Where both have a step the checkpoint is as good.
  found = sorted({(x, True) for x in durable} | {(x, False) for x in local - set(durable)})
  damaged: list[tuple[int, bool]] = []
  failure: Exception | None = None
  for step, is_durable in reversed(found):
    now, failure = None, checkpoint.DamagedError("Another process could not read its part.")
    try:
      now = (
        checkpoint.read_state(folder, step, like)
        if is_durable or copies is None
        else copies.read(step, like)
      )
    except checkpoint.DamagedError as error:
      failure = error
    if all(ok for (ok,) in processes.told([int(now is not None)])):
      for bad, was_durable in damaged:
        _set_aside(folder, copies, bad, was_durable)
      _set_aside_after(step, copies)
      return now
    damaged.append((step, is_durable))
    if now is None or processes.writes():
      print(f"WARNING: step {step} is not used. {failure}", flush=True)
  if damaged:
    raise checkpoint.CheckpointError(
      f"Nothing that was saved of {folder} can be read. {failure} Restore one of its"
      " checkpoints, or start anew in another --workdir."
    ) from failure
  _set_aside_after(0, copies)
  return None


def _set_aside(folder: Place, copies: Copies | None, step: int, is_durable: bool) -> None:
  if not is_durable and copies:
    copies.set_aside(step)
  elif processes.writes():
    print(f"WARNING: step {step} was moved to {checkpoint.set_aside(folder, step)}.", flush=True)
  processes.wait(f"aside {step}")


def _set_aside_after(step: int, copies: Copies | None) -> None:
  for newer in copies.steps() if copies else []:
    if copies and newer > step:
      copies.set_aside(newer)
      print(f"WARNING: the copy of step {newer} was set aside: not all have one.", flush=True)


# The part of an interval in which a checkpoint has to be on disk.
_TIMELY = 10


class Saves:
  """What a run saves while it goes, and when."""

  def __init__(
    self,
    saved: checkpoint.Checkpoints,
    copies: Copies | None,
    options: Config,
    publish: Callable[[], None] | None = None,
  ):
    """Starts the clock.

    Args:
      saved: the run's checkpoints.
      copies: its emergency copies, if it makes any.
      options: config.checkpoint.
      publish: is called with every checkpoint, to bring logs to where that is.
    """
    self._publish = publish
    self._saved, self._copies, self._options = saved, copies, options
    self._timed, self._last = processes.Wish("save"), time.monotonic()
    self._step = 0

  def after(self, step: int, state: TrainState, flush: Callable[[], None], must: bool) -> None:
    """Saves `state` if it is time to, or if it must be; ask once after each step.

    A checkpoint has a tenth of the interval to be written while training goes on; then it is waited
    for, so that a kill loses hardly more than the interval.

    Args:
      step: the number of the step that made it.
      state: what to save.
      flush: is called before: what it raises keeps the state from being saved.
      must: whether to save it anyhow.
    """
    options: Any = self._options
    passed = time.monotonic() - self._last
    late = bool(options.minutes) and self._timed.due(passed >= 60 * options.minutes, step)
    if must or late or step % options.every == 0:
      flush()
      self._saved.save(state)
      self._last, self._step = time.monotonic(), step
      if self._publish:
        self._publish()
      return
    steps_are_over = _TIMELY * (step - self._step) >= options.every
    if steps_are_over or options.minutes and _TIMELY * passed >= 60 * options.minutes:
      self._saved.wait()
    if self._copies and step % options.local_every == 0:
      flush()
      self._copies.save(state)

  def close(self) -> None:
    """Returns when everything is on disk; raises CheckpointError if it can't be written."""
    self._saved.close()
    if self._copies:
      self._copies.close()

  def __enter__(self) -> "Saves":
    return self

  def __exit__(self, kind: object, error: object, trace: object) -> None:
    """After an error, what was begun is still written; that it can't be is only told then."""
    if kind is None:
      return
    try:
      self.close()
    except checkpoint.CheckpointError as second:
      print(f"WARNING: {second}", flush=True)
