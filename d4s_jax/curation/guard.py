"""Work on one clip, guarded against what the clip, its disk or its network do to the worker."""

import contextlib
import dataclasses
import errno
import faulthandler
import hashlib
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

# After so many workers died on a clip, it is worked on in a process of its own.
SUSPICIOUS = 2
# Seconds before a clip is tried again whose disk or network failed.
PAUSES = (1, 5, 20)
AGAIN = " (the same command tries it again)"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of errors that say nothing about the contents of a file.
_PASSING = {
  *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOMEM),
  *(errno.EMFILE, errno.ENFILE, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
  *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNABORTED, errno.EREMOTEIO),
  *(errno.ENODEV, errno.ENXIO, errno.ENOLINK, errno.ENOTCONN, errno.ESHUTDOWN),
}


class Outcome(NamedTuple):
  """What came of it.

  Attributes:
    result: of the work; None if it failed.
    failed: why, "" if it didn't.
    again: whether the reason may have passed when the same command is given again.
  """

  result: Any
  failed: str = ""
  again: bool = False


@dataclasses.dataclass(frozen=True)
class Meter:
  """How much of some work is done, for other processes to see.

  Attributes:
    path: of a file with a byte for each hundredth.
  """

  path: pathlib.Path

  def tell(self, share: float) -> None:
    """Notes that so much of it is done; less than before is not noted."""
    more = min(int(100 * share), 100) - self.read()
    if more > 0:
      with self.path.open("ab") as file:
        file.write(b"." * more)

  def read(self) -> int:
    """Hundredths that are done."""
    try:
      return self.path.stat().st_size
    except FileNotFoundError:
      return 0

  def forget(self) -> None:
    """Begins anew."""
    self.path.unlink(missing_ok=True)


class _EndlessError(Exception):
  """Work took longer than it may."""


@dataclasses.dataclass(frozen=True)
class Guard:
  """Counts attempts, and ends those that don't end.

  Attributes:
    attempts: folder with a file for each clip that is worked on, of a byte for each attempt.
    patience: seconds that one clip, or the search for shots in one file, may take.
  """

  attempts: pathlib.Path
  patience: float

  def run(self, name: str, function: Callable, *arguments: Any) -> Outcome:
    """The result of a function, or why there is none.

    Whatever a clip does to its worker, the worker's next attempt is counted, and one that seems to
    be deadly is made in a process apart, so that nothing else is lost with it. Errors of disks and
    networks are waited for a little.

    Raises:
      ConnectionError: a server that is asked doesn't answer.
      OSError: a disk is full.
    """
    for pause in (*PAUSES, None):
      try:
        with self.attempt(name) as before:
          if before >= SUSPICIOUS:
            return Outcome(self._apart(function, *arguments))
          with watched(self.patience):
            return Outcome(function(*arguments))
      except BrokenProcessPool:
        return Outcome(None, "its worker crashes, repeatedly; remove the file, or fetch it again")
      except _EndlessError:
        return Outcome(None, f"it does not end within {self.patience:g} s; remove the file")
      except Exception as error:
        passing = may_pass(error)
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())[:500]}"
        if not passing:
          return Outcome(None, reason)
        if pause is None:
          return Outcome(None, reason + AGAIN, again=True)
        time.sleep(pause)
    raise AssertionError("unreachable")

  @contextlib.contextmanager
  def attempt(self, *names: str) -> Iterator[int]:
    """Counts attempts that did not come to an end; yields how many there were before."""
    markers = [self._marker(name) for name in names]
    before = max((self.before(name) for name in names), default=0)
    for marker in markers:
      with marker.open("ab") as file:
        file.write(b".")
    try:
      yield before
    finally:
      for marker in markers:
        marker.unlink(missing_ok=True)

  def before(self, name: str) -> int:
    """Attempts that did not come to an end."""
    marker = self._marker(name)
    return marker.stat().st_size if marker.exists() else 0

  def forget(self, name: str) -> None:
    """Forgets attempts: something was decided."""
    self._marker(name).unlink(missing_ok=True)

  def meter(self, name: str) -> Meter:
    """Of the work on a clip or unit."""
    return Meter(self._marker(name).with_suffix(".share"))

  def _marker(self, name: str) -> pathlib.Path:
    return self.attempts / hashlib.sha256(name.encode()).hexdigest()[:32]

  def _apart(self, function: Callable, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    for attempt in range(2):
      with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
          work = pool.submit(function, *arguments)
          return work.result(timeout=self.patience)
        except BrokenProcessPool:
          if attempt:
            raise
        except TimeoutError as error:
          if work.done() and work.exception() is error:  # the work's own: of a network
            raise
          for process in multiprocessing.active_children():
            process.kill()
          raise _EndlessError from None
    raise AssertionError("unreachable")


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[None]:
  """Ends this process if the body takes longer: another worker goes on from there.

  It is no exception: a decoder that hangs runs no Python, and a file of a dead server can't be
  closed. The thread that watches needs neither.
  """
  faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()


def may_pass(error: BaseException) -> bool:
  """Whether a disk or a network failed, which may be over when it is tried again.

  Raises:
    ConnectionError: the error, if it is of a server that is asked and doesn't answer.
    ValueError, OSError: the error, if a disk is full: that is no property of a clip.
  """
  numbers = set(_numbers(error))
  if isinstance(error, ConnectionError) and not numbers or numbers & set(_FULL):
    raise error
  return bool(numbers & _PASSING)


def _numbers(error: BaseException | None) -> Iterator[int]:
  """The numbers of an error of the system, and of those that it came from."""
  while error is not None:
    number = getattr(error, "errno", None)
    if isinstance(number, int):
      yield number
    elif isinstance(error, TimeoutError):  # of a socket
      yield errno.ETIMEDOUT
    error = error.__cause__ or error.__context__
