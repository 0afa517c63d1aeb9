"""Seconds and peak memory of stages of work, as they are kept beside a scene."""

import contextlib
import ctypes
import dataclasses
import gc
import json
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import jax

from d4s_jax.formats import checked

FILE = "cost.json"
_LONGEST = 2**16
_STATUS, _RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
_MEMORY = ("host_gib", "added_gib", "device_gib")


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one stage.

  Attributes:
    seconds: wall clock.
    host_gib: most resident memory of the process meanwhile, with all that it held before; None
      where the system doesn't tell.
    added_gib: how much of that came on top of what was resident when the stage began.
    device_gib: most memory of the accelerator so far, the stages before included; None on a CPU,
      whose devices have no memory of their own.
  """

  seconds: float
  host_gib: float | None
  added_gib: float | None
  device_gib: float | None


class Costs:
  """Measures stages one after another.

  Attributes:
    stages: what each took.
  """

  def __init__(self):
    self.stages: dict[str, Cost] = {}

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Measures the block, which has to wait for its own results.

    A stage that is entered again goes on: its seconds add up, of its memory the most counts.
    """
    before = _begin()
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    peak = None if before is None else _resident("VmHWM")
    added = None if peak is None or before is None else max(peak - before, 0.0)
    old = self.stages.get(name, Cost(0.0, None, None, None))
    self.stages[name] = Cost(
      round(old.seconds + seconds, 4),
      _most(old.host_gib, peak),
      _most(old.added_gib, added),
      _most(old.device_gib, _device()),
    )

  def write(self, folder: pathlib.Path) -> None:
    """Leaves cost.json."""
    value = {name: dataclasses.asdict(cost) for name, cost in self.stages.items()}
    (folder / FILE).write_text(json.dumps(value, indent=1) + "\n")


def read(folder: pathlib.Path) -> dict[str, Cost]:
  """What `Costs.write` left.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  path = folder / FILE
  value: Any = checked.parse(checked.read_bytes(path, _LONGEST, "cost"), str(path))
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected an object of stages.")
  found = {}
  for name, each in value.items():
    where = f"{path}: {name}"
    fields = checked.fields(each, where, ("seconds", *_MEMORY))

    def memory(key: str, fields=fields, where=where) -> float | None:
      x = fields[key]
      return None if x is None else checked.number(x, f"{where}.{key}", 0)

    seconds = checked.number(fields["seconds"], f"{where}.seconds", 0)
    found[name] = Cost(seconds, *map(memory, _MEMORY))
  return found


def _begin() -> float | None:
  """Gives back what is free, forgets the high-water mark; resident GiB now, None if it can't."""
  gc.collect()
  # What was freed before and kept would hide what comes. Only the C library of GNU can be asked to
  # give it back, and to keep no block above a megabyte from now on (-3 is M_MMAP_THRESHOLD).
  with contextlib.suppress(AttributeError, OSError):
    library = ctypes.CDLL(None)
    library.mallopt(-3, 2**20)
    library.malloc_trim(0)
  try:
    _RESET.write_text("5")
  except OSError:
    return None
  return _resident("VmRSS")


def _resident(which: str) -> float | None:
  """GiB of resident memory: VmRSS now, or VmHWM, the most since it was forgotten."""
  try:
    found = re.search(rf"{which}:\s+(\d+) kB", _STATUS.read_text())
  except OSError:
    return None
  return int(found.group(1)) / 2**20 if found else None


def _device() -> float | None:
  peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  return None if peak is None else peak / 2**30


def _most(*values: float | None) -> float | None:
  return max((x for x in values if x is not None), default=None)
