"""Jobs: a bounded queue, one worker, results that expire.

All state belongs to the event loop's thread; the worker's thread sends what it has to say there. So
nothing is locked.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

from d4s_jax.pipeline import progress

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
_ENDED = (DONE, FAILED, CANCELLED)
_STOPS = "the server stops"
# Seconds between looks at what has expired.
_SWEEP = 10.0
# Seconds for which a result is kept in any case: its client is to fetch it.
GRACE = 60.0
# Progress that a job keeps for those who come late.
_MOST_EVENTS = 2000

# Makes what was ordered in a folder that is there and empty, and says how far it is through
# `pipeline.progress`.
Maker = Callable[[Any, pathlib.Path], None]


class FullError(Exception):
  """No more jobs are taken for now."""


class _Stopped(BaseException):
  """Not an Exception: what makes a scene may catch those."""


@dataclasses.dataclass(eq=False)
class Job:
  """One order and what became of it.

  Attributes:
    order: what is to be made; None once it has ended.
    folder: of its results.
    warnings: what was said of the order when it was taken.
    identity: its name, which can't be guessed.
    state: one of STATES.
    what: is being done, or why it failed.
    done: how much of that is done.
    total: of how much; 0 where that is not known.
    files: names of the results.
    created: seconds since 1970.
    ended: likewise; None before.
  """

  order: Any
  folder: pathlib.Path
  warnings: tuple[str, ...]
  identity: str
  state: str = QUEUED
  what: str = "waits for its turn"
  done: int = 0
  total: int = 0
  files: tuple[str, ...] = ()
  created: float = dataclasses.field(default_factory=time.time)
  ended: float | None = None

  def __post_init__(self):
    """Nobody was told anything yet."""
    self.events: list[dict[str, Any]] = []
    self.stop = threading.Event()
    self.unwatched = False
    self._changed = asyncio.Event()
    self.tell()

  @property
  def over(self) -> bool:
    """Whether nothing more will happen to it."""
    return self.state in _ENDED

  def tell(self, **changes: Any) -> None:
    """Changes fields, and wakes those who watch."""
    for name, value in changes.items():
      setattr(self, name, value)
    if self.over:
      self.ended, self.order = time.time(), None
      self.done = self.total = 0  # of a step that it was at
    if len(self.events) < _MOST_EVENTS or self.over:
      names = ("state", "what", "done", "total")
      self.events.append({name: getattr(self, name) for name in names})
    changed, self._changed = self._changed, asyncio.Event()
    changed.set()

  async def watch(self, start: int, patience: float) -> AsyncIterator[tuple[int, dict | None]]:
    """Yields events and their numbers from `start` on, up to the last, or until the server stops.

    When nothing happens for `patience` seconds, None is yielded instead of an event.
    """
    number = start
    while True:
      changed = self._changed
      while number < len(self.events):
        yield number, self.events[number]
        number += 1
      if self.over or self.unwatched:
        return
      try:
        await asyncio.wait_for(changed.wait(), patience)
      except TimeoutError:
        yield number, None


class Jobs:
  """The queue and what came out of it."""

  def __init__(
    self, make: Maker, folder: pathlib.Path, *, waiting: int, kept: int, keep_seconds: float
  ):
    """Takes jobs once `work` runs.

    Args:
      make: makes one of them.
      folder: for results; each job has a folder in it.
      waiting: jobs that may wait.
      kept: jobs that have ended and are kept, at most.
      keep_seconds: for how long.
    """
    self._make, self._folder = make, folder
    self._waiting, self._kept, self._keep_seconds = waiting, kept, keep_seconds
    self._all: dict[str, Job] = {}
    self._queue: list[Job] = []
    self._new = asyncio.Event()
    self._at_hand: Job | None = None

  def __len__(self) -> int:
    return len(self._queue)

  def find(self, identity: str) -> Job | None:
    """A job by its name; None if there never was one, or its time is over."""
    return self._all.get(identity)

  def place(self, job: Job) -> int | None:
    """How many jobs come before one that waits."""
    return self._queue.index(job) if job in self._queue else None

  def check_room(self) -> None:
    """Raises FullError if no more jobs are taken now."""
    if len(self._queue) >= self._waiting:
      raise FullError(f"{self._waiting} jobs wait already; come back later.")

  def submit(self, order: Any, warnings: tuple[str, ...] = ()) -> Job:
    """Queues an order; `warnings` say what is probably wrong with it.

    Raises:
      FullError: too many wait.
    """
    self.check_room()
    self.expire()
    identity = secrets.token_urlsafe(12)
    job = Job(order, self._folder / identity, warnings, identity)
    self._all[identity] = job
    self._queue.append(job)
    self._new.set()
    return job

  def cancel(self, job: Job) -> None:
    """Forgets a job; it is not made, or ends at its next step, and those who watch are told."""
    job.stop.set()
    if job in self._queue:
      self._queue.remove(job)
      job.tell(state=CANCELLED, what="cancelled")
    self._all.pop(job.identity, None)
    if job.over:
      self._forget(job)

  def stop(self) -> None:
    """Cancels all jobs, takes no more, and lets go of those who watch: a step may take long."""
    self._waiting = 0
    if self._at_hand is not None and not self._at_hand.over:
      self._at_hand.stop.set()
      self._at_hand.unwatched = True
      self._at_hand.tell(what=_STOPS)
    for job in self._queue:
      job.tell(state=CANCELLED, what=_STOPS)
    self._queue.clear()

  async def work(self) -> None:
    """Makes one job after another, until it is cancelled; the job at hand ends with it."""
    loop, sweeper = asyncio.get_running_loop(), asyncio.create_task(self._sweep())
    try:
      while True:
        while not self._queue:
          self._new.clear()
          await self._new.wait()
        job = self._at_hand = self._queue.pop(0)
        job.tell(state=RUNNING, what="begins")
        running = asyncio.create_task(asyncio.to_thread(self._run, job, loop))
        try:
          job.tell(**await asyncio.shield(running))
          if job.stop.is_set():  # too late to be stopped, but nobody wants it
            self._forget(job)
        except asyncio.CancelledError:
          job.stop.set()
          job.tell(**await running)
          raise
    finally:
      sweeper.cancel()
      self.stop()

  def _run(self, job: Job, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """In the worker's thread; returns how it ended."""

    def listen(what: str, done: int, total: int) -> None:
      if job.stop.is_set():
        raise _Stopped
      loop.call_soon_threadsafe(lambda: job.tell(what=what, done=done, total=total))

    try:
      job.folder.mkdir()
      with progress.listening(listen):
        self._make(job.order, job.folder)
      files = tuple(sorted(path.name for path in job.folder.iterdir() if path.is_file()))
      return {"state": DONE, "what": "done", "files": files}
    except _Stopped:
      ended = {"state": CANCELLED, "what": "cancelled"}
    except ValueError as error:
      text = " ".join(str(error).split()).replace(str(job.folder), "the result")
      ended = {"state": FAILED, "what": text}
    # Whatever it is, the next job must be made.
    except BaseException:
      # Of our own doing, or the disk's: its text is for the log, not for strangers.
      traceback.print_exc(file=sys.stderr)
      ended = {"state": FAILED, "what": "an error of the server's; its log has the reason"}
    shutil.rmtree(job.folder, ignore_errors=True)
    return ended

  async def _sweep(self) -> None:
    while True:
      self.expire()
      await asyncio.sleep(_SWEEP)

  def expire(self) -> None:
    """Forgets jobs that ended long ago, and the oldest of too many."""
    ages = {job: time.time() - job.ended for job in self._all.values() if job.ended is not None}
    ended = sorted(ages, key=lambda job: -ages[job])
    for index, job in enumerate(ended):
      crowded = index < len(ended) - self._kept and ages[job] > GRACE
      if crowded or ages[job] > self._keep_seconds:
        self._forget(job)

  def _forget(self, job: Job) -> None:
    self._all.pop(job.identity, None)
    with contextlib.suppress(OSError):
      shutil.rmtree(job.folder)
