"""What a command says while it works, on the standard error stream."""

import contextlib
import sys
import time
from collections.abc import Iterator

import tqdm


def say(text: str) -> None:
  """Prints a line."""
  print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
  """Prints what is being done, and how long it took once it is done."""
  print(f"{what} ...", end="", file=sys.stderr, flush=True)
  start, done = time.perf_counter(), False
  try:
    yield
    done = True
  finally:
    # An error message that follows gets a line of its own.
    print(f" {time.perf_counter() - start:.1f} s" if done else "", file=sys.stderr, flush=True)


def bar(what: str, total: int, unit: str = "frame") -> tqdm.tqdm:
  """A progress bar with an estimate; bytes ("B") are shown by thousands, millions and so on.

  Without a label there is none.
  """
  scale = unit == "B"
  return tqdm.tqdm(
    total=total, desc=what, unit=unit, unit_scale=scale, file=sys.stderr, disable=not what
  )
