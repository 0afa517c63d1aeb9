"""How a command reports bad input: one clear line and an exit status that is not zero.

The status tells whoever started the command (`launch/`) whether to give it again.
"""

import contextlib
import errno
import gc
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags

TRACEBACK = "D4S_JAX_TRACEBACK"

# It would be refused again: a person has to change something. Python itself uses it for a module
# that is missing.
REFUSED = 1
# Other processes, a disk or a store did not answer, or went away. This and the next two have the
# numbers of sysexits.h.
UNREACHABLE = 69
# An error that nobody foresaw; its traceback was printed.
CRASHED = 70
# Told to stop before the end. The same command goes on from there.
STOPPED = 75
# Told to stop before there was anything to save.
INTERRUPTED = 130

# Of errors of a disk that is full, or of what may be written to it.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of errors of a disk or a host that did not answer. EIO is not one: a block that went bad stays so.
_UNANSWERED = (errno.ESTALE, errno.ENOTCONN, errno.EHOSTUNREACH)
# So do texts of XLA and tensorstore begin then; the latter says ABORTED once it has tried enough.
_STATUS = re.compile("(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): ")
# Where tensorstore, whose errors are of one class, writes the number of an OSError.
_NUMBER = re.compile(r"[A-Z_]+: .*\[os_error_code='(\d+)'\]", re.DOTALL)
# What HTTP answers then.
_HTTP = (429, 502, 503, 504)
# In the text of XLA's error when it is out of memory; this module knows no JAX.
_NO_MEMORY = "RESOURCE_EXHAUSTED"


def run(main: Callable[[list[str]], None], words: int = 0) -> None:
  """Parses the flags and runs a command; bad options and Ctrl-C end it with one line too.

  So does SIGTERM, which else would leave temporary files behind.

  Args:
    main: the command.
    words: how many it takes that are no options, at most.
  """
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  # What was imported stays: looking through it for garbage again and again, while models are
  # traced, takes a second of a start.
  gc.freeze()
  try:
    app.run(main, flags_parser=lambda arguments: _parse(arguments, words))
  except KeyboardInterrupt:
    print("\nerror: interrupted", file=sys.stderr)
    _leave(INTERRUPTED)
  except SystemExit as ended:
    if ended.code in (REFUSED, UNREACHABLE):
      _leave(ended.code)
    raise
  except Exception:
    # Python would end with 1, which is for what is refused.
    traceback.print_exc()
    _leave(CRASHED)


def _leave(number: int) -> NoReturn:
  """Ends the process without Python's teardown.

  That crashes while a program of XLA's still runs, as after an error between two steps of training,
  and then the status is another.
  """
  for stream in (sys.stdout, sys.stderr):
    # Nobody may read it any more, or it was closed from the start.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(number)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
  """Ends the process with "error: ..." if the body raises ValueError or OSError.

  These two are what the package raises for input that it can't use: values and files. When XLA is
  out of memory, that is told in one line too. Set the environment variable D4S_JAX_TRACEBACK=1 to
  see the traceback as well.
  """
  try:
    yield
  except Exception as error:
    number, text = status(error), str(error)
    if number == CRASHED:
      raise
    if _NO_MEMORY in text:
      text = (
        f"Out of memory ({text.strip().splitlines()[0]}); ask for less (fewer frames or views,"
        " smaller pictures or batches), or use more devices."
      )
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
      text += ". Make room on the disk that is written to, or write to another one."
    _end(text, number)


def status(error: BaseException) -> int:
  """What a command ends with when this error ends it."""
  if isinstance(error, KeyboardInterrupt):
    return INTERRUPTED
  if isinstance(error, ValueError | OSError):
    # What a disk could not read it may read the next time, or something older serves.
    again = passes(error) or errno.EIO in map(_number, _causes(error))
    return UNREACHABLE if again else REFUSED
  return REFUSED if _NO_MEMORY in str(error) else CRASHED


def passes(error: BaseException) -> bool:
  """Whether an error, or what it was raised from, is of a host or a disk that didn't answer."""
  return any(
    isinstance(x, ConnectionError | TimeoutError)
    or _number(x) in _UNANSWERED
    or _STATUS.match(str(x))
    or getattr(x, "code", None) in _HTTP
    for x in _causes(error)
  )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__


def _number(error: BaseException) -> int | None:
  if isinstance(error, OSError):
    return error.errno
  found = _NUMBER.match(str(error))
  return int(found[1]) if found else None


def _parse(arguments: list[str], words: int) -> list[str]:
  try:
    rest = flags.FLAGS(arguments)
  except SystemExit:
    # --help, which absl ends with 1.
    sys.exit(0)
  # A config file is executed here, and keys that it lacks are AttributeErrors.
  except Exception as error:
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
      text = "Unknown configuration key " + text.strip("'\"").replace("\\'", "'").replace(
        "\\n", " "
      )
    elif "Traceback" in text:  # of the config file; its last line says what is wrong
      text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
    _end(f"{text} (--help shows the options)")
  if len(rest) > 1 + words:
    _end(
      f"Unexpected words {rest[1 + words :]}; options start with --, and texts with spaces need"
      " quotes."
    )
  return rest


def _end(text: str, number: int = REFUSED) -> NoReturn:
  if os.environ.get(TRACEBACK):
    traceback.print_exc()
  print("error:", " ".join(text.split()), file=sys.stderr)
  sys.exit(number)
