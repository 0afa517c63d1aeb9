"""What is said during work: on the standard error stream, or to whoever listens."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

# (what is being done, how much of it is done, of how much): 0 of 0 where that is not known. It may
# raise, which ends the work.
Listener = Callable[[str, int, int], None]

_LISTENER: contextvars.ContextVar[Listener | None] = contextvars.ContextVar(
  "listener", default=None
)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
  """Within it, and in this thread, the listener is told and nothing is printed."""
  token = _LISTENER.set(listener)
  try:
    yield
  finally:
    _LISTENER.reset(token)


def say(text: str) -> None:
  """Prints a line."""
  listener = _LISTENER.get()
  if listener:
    listener(text, 0, 0)
  else:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
  """Prints what is being done, and how long it took once it is done."""
  listener = _LISTENER.get()
  if listener:
    listener(what, 0, 0)
    yield
    return
  print(f"{what} ...", end="", file=sys.stderr, flush=True)
  start, done = time.perf_counter(), False
  try:
    yield
    done = True
  finally:
    # An error message that follows gets a line of its own.
    print(f" {time.perf_counter() - start:.1f} s" if done else "", file=sys.stderr, flush=True)


def bar(what: str, total: int, unit: str = "frame", done: int = 0) -> tqdm.tqdm:
  """A progress bar with an estimate; bytes ("B") are shown by thousands, millions and so on.

  Without a label there is none. What was `done` before says nothing of how fast it goes.
  """
  listener = _LISTENER.get()
  if listener:
    listener(what, done, total)
    return _Told(what, total, listener, done)
  shown: dict[str, Any] = {"desc": what, "unit": unit, "unit_scale": unit == "B"}
  return tqdm.tqdm(total=total, initial=done, file=sys.stderr, disable=not what, **shown)


class _Told(tqdm.tqdm):
  """A bar that is not drawn."""

  def __init__(self, what: str, total: int, listener: Listener, done: int):
    super().__init__(total=total, disable=True)
    self._what, self._whole, self._listener, self._done = what, total, listener, done

  def update(self, n: float | None = 1) -> bool | None:
    """Tells the listener."""
    self._done += int(n or 0)
    self._listener(self._what, self._done, self._whole)
    return None
