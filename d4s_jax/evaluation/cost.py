"""Seconds and peak memory of stages of work, as they are kept beside a scene."""

import contextlib
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one stage.

  Attributes:
    seconds: wall clock.
    host_gib: most memory of the process meanwhile; None where the system doesn't tell.
    device_gib: most memory of an accelerator so far; None on a CPU.
  """

  seconds: float
  host_gib: float | None
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
    """Measures the block, which has to wait for its own results."""
    with contextlib.suppress(OSError):
      _RESET.write_text("5")
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    stats = jax.devices()[0].memory_stats() or {}
    device = stats.get("peak_bytes_in_use")
    gib = None if device is None else device / 2**30
    self.stages[name] = Cost(round(seconds, 4), _peak(), gib)

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
    fields = checked.fields(each, f"{path}: {name}", ("seconds", "host_gib", "device_gib"))
    where = f"{path}: {name}"

    def memory(key: str, fields=fields, where=where) -> float | None:
      x = fields[key]
      return None if x is None else checked.number(x, f"{where}.{key}", 0)

    seconds = checked.number(fields["seconds"], f"{where}.seconds", 0)
    found[name] = Cost(seconds, memory("host_gib"), memory("device_gib"))
  return found


def _peak() -> float | None:
  """The high-water mark of resident memory since the last reset, GiB."""
  try:
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
  except OSError:
    return None
  return int(found.group(1)) / 2**20 if found else None
