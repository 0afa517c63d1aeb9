"""Where the time of a run goes: its steps, and what else it waited for."""

import collections
import contextlib
import queue
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

# What the seconds of a run are spent on. "start" is everything up to the first step of a process,
# with its compilation, and "lost" are seconds of earlier processes whose steps were not kept.
PARTS = ("steps", "data", "heldout", "checkpoint", "logging", "other", "start", "lost")


class Clock:
  """Splits the time of this process into parts.

  While a step is on the device it is that step's time, whatever the host does meanwhile; else it
  is the time of what the host does. So the parts add up to all of the time, and a checkpoint that
  is written, or a batch that is made, beside a step counts nothing.
  """

  def __init__(self):
    """Starts in the part "start"."""
    self._lock = threading.Lock()
    self._seconds: dict[str, float] = collections.defaultdict(float)
    self._part, self._running, self._last = "start", 0, time.perf_counter()
    self._outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Only who waits for a step knows when it ended, and the loop doesn't wait.
    self._thread = threading.Thread(target=self._wait, name="clock", daemon=True)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """What the host does inside is of that part of PARTS."""
    before = self._switch(name)
    try:
      yield
    finally:
      self._switch(before)

  def started(self, outputs: Any) -> None:
    """A step was handed to the device.

    Args:
      outputs: some of its results, not those that the next step is given to overwrite.
    """
    with self._lock:
      self._account()
      self._running += 1
      if self._part == "start":
        self._part = "other"
    if not self._thread.ident:
      self._thread.start()
    self._outputs.put(outputs)

  def take(self) -> dict[str, float]:
    """Seconds by part since the last call."""
    with self._lock:
      self._account()
      seconds, self._seconds = self._seconds, collections.defaultdict(float)
    return dict(seconds)

  def _switch(self, name: str) -> str:
    with self._lock:
      self._account()
      before, self._part = self._part, name
    return before

  def _account(self) -> None:
    now = time.perf_counter()
    self._seconds["steps" if self._running else self._part] += now - self._last
    self._last = now

  def close(self) -> None:
    """Ends the thread."""
    self._outputs.put(None)

  def _wait(self) -> None:
    while (outputs := self._outputs.get()) is not None:
      with contextlib.suppress(Exception):  # the loop meets the same error, and reports it
        jax.block_until_ready(outputs)
      with self._lock:
        self._account()
        self._running -= 1


def memory() -> dict[str, float]:
  """The most memory so far, in GiB: of this process, and of its fullest device if that tells."""
  # In KiB, on macOS in bytes.
  unit = 1 if sys.platform == "darwin" else 2**10
  found = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
  told = [device.memory_stats() for device in jax.local_devices()]
  peaks = [stats["peak_bytes_in_use"] for stats in told if stats and "peak_bytes_in_use" in stats]
  return found | ({"device_gib": max(peaks) / 2**30} if peaks else {})


def carried(lines: Sequence[Mapping[str, Any]], start: int) -> dict[str, float]:
  """What the first line of a process says of those before it, whose lines it drops.

  Between its last line and its death a process may have spent some more, which nobody knows.

  Args:
    lines: of `training.log`, in the order they were written in.
    start: the step that a run goes on from.

  Returns:
    Under "lost" their seconds that led to nothing, and under "starts" this one and those of them
    that will have no line.
  """
  watched = [line for line in lines if line["log"] == "watch"]
  if not watched:
    return {"lost": 0.0, "starts": 1}
  dropped = [line for line in watched if not 0 < start >= line["step"]]
  accounted = sum(line.get(part, 0.0) for line in dropped for part in PARTS)
  tail = max(0.0, lines[-1]["time"] - watched[-1]["time"])
  return {"lost": accounted + tail, "starts": 1 + sum(line.get("starts", 0) for line in dropped)}


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """The account of a whole run, over all its starts.

  Args:
    rows: of the log "watch".

  Returns:
    Seconds by part, and in all ("total"); "goodput", the share of them in steps that counted;
    "starts"; the most memory.
  """
  found = {part: sum(row.get(part, 0.0) for row in rows) for part in PARTS}
  found["total"] = sum(found.values())
  found["goodput"] = found["steps"] / found["total"] if found["total"] else 0.0
  found["starts"] = sum(row.get("starts", 0) for row in rows)
  for name in ("host_gib", "device_gib"):
    if any(name in row for row in rows):
      found[name] = max(row.get(name, 0.0) for row in rows)
  return found


def sentence(found: Mapping[str, float]) -> str:
  """One line about a `summary`."""
  total = max(found["total"], 1e-9)
  shares = ", ".join(
    f"{part} {found[part] / total:.1%}" for part in PARTS[1:] if found[part] >= 0.0005 * total
  )
  memory = ", ".join(
    f"{found[name]:.1f} GiB of {where}"
    for name, where in (("host_gib", "the host"), ("device_gib", "a device"))
    if name in found
  )
  return (
    f"time: {total:.0f} s in {found['starts']:.0f} start(s), {found['goodput']:.1%} of it in steps"
    f" that counted ({shares}); memory: at most {memory}"
  )
