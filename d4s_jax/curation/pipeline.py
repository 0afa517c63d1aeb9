"""A curation run on Ray: whole on this machine, or on the cluster that RAY_ADDRESS names.

Units are taken some at a time. First they are split into clips, then each clip is read, shown to
the plug-ins and assessed by whatever worker is free; decisions come back in order and go to the
ledger. A worker that dies takes nothing with it but the clip at hand, which another reads again.
"""

import collections
import contextlib
import importlib
import logging
import os
import pathlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import filelock

from d4s_jax.curation import estimates, plugins, work
from d4s_jax.curation.guard import Guard
from d4s_jax.curation.ledger import Ledger
from d4s_jax.curation.report import write_report
from d4s_jax.curation.settings import Settings
from d4s_jax.curation.units import Span, Unit, find
from d4s_jax.formats import atomic

# Clips under way for each core: one that is read and one that waits for its turn in the order.
_AHEAD = 3
# Units that are split before their clips are read: what the driver holds in memory.
_WAVE = 500
# Seconds between looks at how far workers are.
_LOOK = 2.0
# Attempts to start it: it gives up after half a minute, which is little on a busy machine.
_STARTS = 3
# Seconds in which a cluster has to take a connection: Ray itself waits for five minutes.
_CONNECTED = 10.0
# Bytes of this machine's memory for what passes between workers.
_STORE = 2 << 30

Bar = Callable[[str, int, str, int], Any]


def run(
  dataset: str,
  source: pathlib.Path,
  output: pathlib.Path,
  settings: Settings,
  bar: Bar,
  *,
  batch: int = 4,
  gpus: float = 0,
  workers: int = 1,
  patience: float = 1800,
) -> str:
  """Curates a dataset or a folder of videos; goes on where an earlier run ended.

  Args:
    dataset: of `data.datasets`, or "videos".
    source: its folder, which all workers see.
    output: folder for shards, manifest and report, which all workers see.
    settings: what results depend on.
    bar: makes a progress bar of a caption, a total, a unit and what was done before: a context with
      `update(n)`.
    batch: clips that a plug-in is given at once.
    gpus: of each worker of plug-ins.
    workers: of plug-ins.
    patience: seconds that one clip, or the search for shots in one file, may take.

  Returns:
    What was found, in a few lines.

  Raises:
    ValueError, OSError: something of this can't be used.
  """
  settings.check()
  source, output = source.absolute(), output.absolute()
  units, problems = find(dataset, source)
  atomic.make_folder(output)
  lock = filelock.FileLock(str(output.with_name(f".{output.name}.lock")))
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    raise ValueError(f"Another process curates into {output}; wait for it, or end it.") from None
  with lock:
    told = {"dataset": dataset, "source": str(source), **settings.to_json()}
    ledger = Ledger(output, told)
    attempts = output / "attempts"
    attempts.mkdir(exist_ok=True)
    if not all(ledger.done(unit.name) for unit in units):
      for kind, name in settings.plugins.items():
        plugins.reach(kind, name)
      with _engine() as engine:
        flow = _Flow(engine, settings, Guard(attempts, patience), batch, gpus, workers)
        _decide(flow, units, ledger, bar)
    return write_report(output, settings, problems)


def _decide(flow: "_Flow", units: list[Unit], ledger: Ledger, bar: Bar) -> None:
  """Curates what isn't decided yet, in the order in which an undisturbed run does.

  Waves are of all units: those of what is left would begin elsewhere after a kill.
  """
  left = sum(not ledger.done(unit.name) for unit in units)
  for start in range(0, len(units), _WAVE):
    wave = [unit for unit in units[start : start + _WAVE] if not ledger.done(unit.name)]
    left -= len(wave)
    if wave:
      _wave(flow, wave, left, ledger, bar)
  ledger.commit()


def _wave(flow: "_Flow", units: list[Unit], later: int, ledger: Ledger, bar: Bar) -> None:
  """Curates some units; as many more as `later` are thought to have as many clips each."""
  spans: list[Span] = []
  with bar("Looking for shots", 100 * len(units), "%", 0) as shown:
    for row in flow.split(units, shown.update):
      ledger.add_unit(row["unit"], len(row["spans"]), row["problems"], row["failed"], row["again"])
      spans += [span for span in row["spans"] if span.name not in ledger.clips]
  usual = sum(ledger.units.values()) / max(len(ledger.units), 1)
  done = len(ledger.clips)
  with bar("Judging clips", round(done + len(spans) + later * usual), "clip", done) as shown:
    for decision in flow.assess(spans):
      ledger.add(decision["told"], decision["record"])
      shown.update(1)


class _Flow:
  """The work, spread over the engine's workers; results come in the order of what is asked."""

  def __init__(
    self,
    engine: Any,
    settings: Settings,
    guard: Guard,
    batch: int,
    gpus: float,
    workers: int,
  ):
    self._engine = engine
    # Once in the engine's store, instead of with every call.
    self._common = (engine.put(settings), engine.put(guard))
    self._guard = guard
    # Whatever kills a worker, another one does its clip again.
    again = engine.remote(max_retries=-1)
    self._split, self._read = again(work.split), again(work.read)
    self._assess = again(work.assess)
    self._batch, self._plugins = batch, []
    if settings.plugins:
      # Actors: weights are loaded once. They share the cores with the readers.
      lasting = engine.remote(
        max_restarts=-1, max_task_retries=-1, num_gpus=gpus, num_cpus=0 if gpus else 0.1
      )
      self._plugins = [
        lasting(estimates.Estimators).remote(settings, guard) for _ in range(workers)
      ]

  def split(self, units: list[Unit], update: Callable[[int], Any]) -> Iterator[work.Row]:
    """The clips of units; `update` is told of each hundredth of a unit."""
    meters = [self._guard.meter(unit.name) for unit in units]
    for meter in meters:  # what a kill left
      meter.forget()
    told = done = 0

    def look():
      nonlocal told
      now = 100 * done + sum(meter.read() for meter in meters[done:])
      update(now - told)
      told = now

    def start(unit, number):
      return [self._split.remote(unit, *self._common)]

    for row in self._ordered(units, start, 1, look):
      meters[done].forget()
      done += 1
      look()
      yield row

  def assess(self, spans: list[Span]) -> Iterator[work.Row]:
    """Decisions about clips."""
    size = self._batch if self._plugins else 1
    batches = [spans[start : start + size] for start in range(0, len(spans), size)]
    return self._ordered(batches, self._assessed, size, lambda: None)

  def _assessed(self, spans: list[Span], number: int) -> list[Any]:
    rows = [self._read.remote(span, *self._common) for span in spans]
    if self._plugins:
      actor = self._plugins[number % len(self._plugins)]
      rows = actor.estimate.options(num_returns=len(rows)).remote(*rows)
      rows = rows if isinstance(rows, list) else [rows]
    return [self._assess.remote(row, *self._common) for row in rows]

  def _ordered(
    self,
    things: list[Any],
    start: Callable[[Any, int], list[Any]],
    size: int,
    look: Callable[[], None],
  ) -> Iterator[work.Row]:
    """Results in order, while as many are under way as keep all workers busy, and no more.

    Meanwhile it is looked how far they are.
    """
    ahead = max(4, _AHEAD * int(self._engine.cluster_resources().get("CPU", 1))) // size + 1
    under_way: collections.deque[list[Any]] = collections.deque()
    try:
      for number, thing in enumerate(things):
        under_way.append(start(thing, number))
        if len(under_way) > ahead:
          yield from self._got(under_way.popleft(), look)
      while under_way:
        yield from self._got(under_way.popleft(), look)
    except Exception as error:
      cause = _cause(error)
      if isinstance(cause, ValueError | OSError):
        raise cause from error
      raise

  def _got(self, results: list[Any], look: Callable[[], None]) -> list[work.Row]:
    while self._engine.wait(results, num_returns=len(results), timeout=_LOOK)[1]:
      look()
    return self._engine.get(results)


def _cause(error: BaseException) -> BaseException:
  """The error of our own code that the engine wrapped, with its message and remedy."""
  # Not `__cause__`: what our own error came from says less.
  while isinstance(inner := getattr(error, "cause", None), BaseException):
    error = inner
  return error


def _reach(address: str) -> None:
  """Refuses the address of a cluster, HOST:PORT, at which nothing listens."""
  host, _, port = address.rpartition("//")[2].rpartition(":")
  if not port.isdecimal():  # "auto", for one
    return
  try:
    socket.create_connection((host.strip("[]"), int(port)), _CONNECTED).close()
  except (OSError, OverflowError) as error:
    raise ConnectionError(
      f"RAY_ADDRESS={address} can't be reached ({error}); expected HOST:PORT of a running cluster,"
      " or nothing for this machine alone."
    ) from error


@contextlib.contextmanager
def _engine() -> Iterator[Any]:
  """Ray, on this machine unless RAY_ADDRESS names a cluster.

  Raises:
    ValueError: it isn't installed.
    ConnectionError: there is no such cluster.
  """
  # Nothing is reported to anybody, and nothing listens beyond this machine.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
  # Else workers give way to everything, and come to nothing on a machine that is busy.
  os.environ.setdefault("RAY_worker_niceness", "0")
  address = os.environ.get("RAY_ADDRESS")
  if address:
    _reach(address)
    # Else a server that is no Ray is asked for a quarter of an hour.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
  try:
    ray: Any = importlib.import_module("ray")
  except ImportError:
    raise ValueError("Curation needs Ray; pip install -e '.[curation]' brings it.") from None
  if ray.is_initialized():
    raise ValueError("Ray runs in this process already; curate in a process of its own.")
  quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
  if not address:
    quiet |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    quiet |= {"object_store_memory": _STORE}
  starts, stop = 1 if address else _STARTS, signal.getsignal(signal.SIGTERM)
  for attempt in range(starts):
    try:
      ray.init(**quiet)
      # Ray's own handler prints a stack, where one line should be.
      signal.signal(signal.SIGTERM, stop)
      break
    except Exception as error:  # a bare one where a busy machine is too slow
      ray.shutdown()
      if attempt + 1 == starts:
        told = " ".join(str(error).split())[:300]
        raise ConnectionError(
          f"Ray can't be started ({told}); is RAY_ADDRESS right, or this machine too busy?"
        ) from error
  try:
    yield ray
  finally:
    ray.shutdown()
