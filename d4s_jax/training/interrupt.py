"""Turns SIGTERM and Ctrl-C into a request to save and stop, when what runs is done."""

import signal
import threading
from types import TracebackType
from typing import Any


class StopRequest:
  """A context in which SIGTERM and the first SIGINT only set `requested`.

  Schedulers may send SIGTERM several times, and what they want is what the first one began; a
  second Ctrl-C is a person's, who doesn't want to wait.
  """

  def __init__(self):
    self.requested = False
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "StopRequest":
    # Only the main thread may set handlers; elsewhere (tests) the process keeps its own.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _on_signal(self, number: int, frame: object) -> None:
    del frame
    self.requested = True
    if number == signal.SIGINT:
      signal.signal(number, self._previous[number])
