"""A trace of some steps by JAX's profiler, for TensorBoard's profile page, XProf or Perfetto."""

import contextlib
import pathlib
import re
import sys
from typing import Any

import jax


def parse(text: str | None) -> tuple[int, int] | None:
  """The steps N to M of "N:M"; None for None.

  Raises:
    ValueError: the text is no such range.
  """
  if text is None:
    return None
  found = re.fullmatch(r"(\d+):(\d+)", text)
  if not found or not 1 <= int(found[1]) <= int(found[2]):
    raise ValueError(f"--profile is {text!r}; expected N:M, the first and the last step, N <= M.")
  return int(found[1]), int(found[2])


class Profile(contextlib.AbstractContextManager):
  """Traces steps N to M into FOLDER/profile; a run that ends between them has what came so far."""

  def __init__(self, folder: pathlib.Path, asked: tuple[int, int] | None, start: int, steps: int):
    """Checks what is asked for.

    Args:
      folder: of the run.
      asked: first and last step; None for no trace.
      start: updates made so far.
      steps: updates in all.

    Raises:
      ValueError: the run ends before these steps.
    """
    if asked and asked[1] > steps:
      raise ValueError(
        f"--profile asks for steps {asked[0]} to {asked[1]}, and this run ends at {steps}."
      )
    if asked and asked[0] <= start:
      # The same command goes on after a stop.
      print(f"note: step {asked[0]} was made before; nothing is traced.", file=sys.stderr)
      asked = None
    self._folder, self._asked, self._running = folder / "profile", asked, False

  def begin(self, number: int) -> None:
    """Is told that step `number` comes next."""
    if self._asked and number == self._asked[0]:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def end(self, number: int, outputs: Any) -> None:
    """Is told that step `number` was handed to the device, and what will come of it."""
    if self._running and self._asked and number == self._asked[1]:
      jax.block_until_ready(outputs)
      self._stop()

  def __exit__(self, *exception: object) -> None:
    if self._running:
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._running = False
