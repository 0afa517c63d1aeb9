"""Functions that hang or kill their process, for processes of their own: light to import."""

import errno
import os
import time

from d4s_jax.curation.guard import Guard


def spin():
  """Runs Python for ever."""
  while True:
    pass


def sleep():
  """Waits for a thing that doesn't come."""
  time.sleep(1000)


def kill():
  """Dies at once."""
  os.kill(os.getpid(), 9)


def away():
  """Waits for a network that is gone, which is no TimeoutError of the guard's."""
  raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", "film.mp4")


def guarded(folder, patience, function):
  """Works on the clip "a"."""
  Guard(folder, patience).run("a", function)
