"""How a command reports bad input: one clear line and an exit status that is not zero."""

import contextlib
import os
import sys
from collections.abc import Iterator

TRACEBACK = "D4S_JAX_TRACEBACK"


@contextlib.contextmanager
def one_line() -> Iterator[None]:
  """Ends the process with "error: ..." if the body raises ValueError or OSError.

  These two are what the package raises for input that it can't use: values and files. Set the
  environment variable D4S_JAX_TRACEBACK=1 to see the traceback instead.
  """
  try:
    yield
  except (ValueError, OSError) as error:
    if os.environ.get(TRACEBACK):
      raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
