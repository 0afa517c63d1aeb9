"""Several processes that train one model, one on each host: how they join, agree and wait.

All of them run the same program on the same folder. The first one writes logs and reports;
checkpoints are written by all, each its own part.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the client of `jax.distributed`, which has no public name
from jax.experimental import multihost_utils

from d4s_jax import errors

# Seconds after which a process that says nothing is taken for dead; the others end then.
_PATIENCE = 30
# Seconds between two looks whether another process has ended.
_LOOK = 1.0
# Numbers that a process may tell the others at once.
_MOST = 256
# What processes tell each other lies under these keys.
_ENDED, _WISHES, _EXCHANGES = "d4s_jax/ended", "d4s_jax/wishes", "d4s_jax/exchanges"
# Milliseconds that processes wait for one that lives: as long as it takes.
_EVER = 2**31 - 1

# Set once this process ends by itself: it need not hear of others then.
_ending = threading.Event()


def join() -> None:
  """Joins the other processes of the run, before anything else is asked of JAX.

  JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID say
  where they are; without them, the launcher's own variables do (Slurm, Open MPI, Kubernetes, Cloud
  TPU).

  Raises:
    ValueError: neither says it, or only some of the three are set.
    ConnectionError: the others were not to be found.
  """
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  found = [os.environ.get(name) for name in names]
  address, *numbers = found
  if any(found) and not (all(found) and all((number or "").isdigit() for number in numbers)):
    values = ", ".join(f"{name}={value}" for name, value in zip(names, found))
    raise ValueError(f"{values}; expected all three, the last two as numbers, or none of them.")
  count, index = (int(number) if number else None for number in numbers)
  # Its handler would swallow a SIGTERM that comes before our own is set.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      address, count, index, heartbeat_timeout_seconds=_PATIENCE, shutdown_timeout_seconds=_PATIENCE
    )
  except RuntimeError as error:
    reason = str(error).splitlines()[0]
    raise ConnectionError(f"The other processes can't be joined ({reason}).") from error
  except ValueError as error:
    raise ValueError(
      f"--distributed found no launcher ({str(error).splitlines()[0]}); set {', '.join(names)}, or"
      " leave the flag out on one machine."
    ) from error
  threading.Thread(target=_listen, daemon=True).start()


@contextlib.contextmanager
def telling() -> Iterator[None]:
  """Ends all processes, each with the reason, when the body raises in one of them.

  Else they would wait for it within a computation, and end without a word when its heartbeat is
  missed.
  """
  try:
    yield
  except BaseException as error:
    client: Any = distributed.global_state.client
    if client is not None:
      _ending.set()
      reason = " ".join(str(error).split()) or type(error).__name__
      # If they are gone already there is nobody to tell; the error itself is what matters.
      with contextlib.suppress(Exception):
        told = f"{errors.status(error)} {reason}"
        client.key_value_set(f"{_ENDED}/{jax.process_index()}", told)
        jax.distributed.shutdown()
    raise


def _listen() -> None:
  """Ends this process as soon as another one told why it ends."""
  client: Any = distributed.global_state.client
  while not _ending.wait(_LOOK):
    try:
      told = client.key_value_dir_get(f"{_ENDED}/")
    except Exception:  # the run is over, or its first process is: JAX reports that itself
      return
    if told and not _ending.is_set():
      name, (number, _, reason) = told[0][0], told[0][1].partition(" ")
      index = name.rpartition("/")[2]
      print(f"\nerror: process {index} ended: {reason}", file=sys.stderr, flush=True)
      with contextlib.suppress(Exception):
        jax.distributed.shutdown()
      # The main thread waits for the others within a computation, out of reach. Of all processes a
      # launcher hears the same: whether to start them again.
      os._exit(int(number))


def writes() -> bool:
  """Whether this process writes what is written once."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Returns when all processes have come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def told(numbers: list[int]) -> list[list[int]]:
  """What each process gave, in their order; of many numbers, the last ones."""
  if jax.process_count() == 1:
    return [numbers]
  padded = [-1] * _MOST + numbers
  rows = multihost_utils.process_allgather(np.array(padded[-_MOST:], np.int32))
  return [[x for x in row if x >= 0] for row in np.asarray(rows).tolist()]


@contextlib.contextmanager
def together() -> Iterator[None]:
  """What each process does by itself, and all of them have done before any goes on.

  Raises:
    ValueError: another process's body raised; where it did, that.
  """
  failed = None
  try:
    yield
  except Exception as error:
    failed = error
  done = [ok for (ok,) in told([int(failed is None)])]
  if failed:
    raise failed
  if not all(done):
    raise ValueError(f"process {done.index(0)} could not do its part")


class Exchange:
  """What each process has to say, heard by all, while the devices go on with their work."""

  def __init__(self, name: str):
    """`name` is of this exchange alone, in every process the same."""
    self._name, self._count = f"{_EXCHANGES}/{name}", 0

  def __call__(self, words: str) -> list[str]:
    """The words of all processes in their order, without those that have none; all call it."""
    if jax.process_count() == 1:
      return [words] if words else []
    client: Any = distributed.global_state.client
    folder = f"{self._name}/{self._count}"
    if words:
      client.key_value_set(f"{folder}/{jax.process_index():06}", words)
    client.wait_at_barrier(folder, _EVER)
    if self._count and writes():
      # All have come here, so they have read it.
      client.key_value_delete(f"{self._name}/{self._count - 1}/")
    self._count += 1
    return [told for _, told in sorted(client.key_value_dir_get(f"{folder}/"))]


class Wish:
  """Something that any process may want, and that all then do after the same step.

  It costs one question to the first process a step, and no waiting. It relies on this: who asks
  after step n has seen results of step n - 1, to which all processes contributed. So none has
  asked after step n + 2 before every other one has asked after step n.
  """

  def __init__(self, name: str):
    """`name` is of this wish alone, in every process the same."""
    self._name, self._granted = name, 0

  def due(self, wanted: bool, step: int) -> bool:
    """Whether to do it after step `step`; all processes get the same answer.

    Args:
      wanted: whether this process wants it, from now on until it is due.
      step: the step that was started last; ask once after each.
    """
    if jax.process_count() == 1:
      return wanted
    client: Any = distributed.global_state.client
    folder = f"{_WISHES}/{self._name}/{self._granted}/"
    if wanted:
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one wished first: that counts
        client.key_value_set(f"{folder}step", str(step + 2))
    found = client.key_value_dir_get(folder)
    if not found or step < int(found[0][1]):
      return False
    if step > int(found[0][1]):
      raise RuntimeError(
        f"{self._name} was due after step {found[0][1]}, this process is at {step}."
      )
    self._granted += 1
    return True
