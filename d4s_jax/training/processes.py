"""Several processes that train one model, one on each host: how they join, agree and wait.

All of them run the same program on the same folder. The first one writes logs and reports;
checkpoints are written by all, each its own part.
"""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds after which a process that says nothing is taken for dead; the others end then.
_PATIENCE = 30
# Steps between two questions whether any process was told to stop: an answer waits for all devices.
_EVERY = 10


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


def writes() -> bool:
  """Whether this process writes what is written once."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Returns when all processes have come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def any_wants(wanted: bool, step: int) -> bool:
  """Whether `wanted` holds in any process; all get the same answer for the same step.

  With several processes it is asked at some steps only, and False at the others.
  """
  if jax.process_count() == 1:
    return wanted
  if step % _EVERY:
    return False
  return bool(np.any(multihost_utils.process_allgather(np.array(wanted))))
