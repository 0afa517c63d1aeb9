"""Loading the native library, which `pip install` built if it found a C++ compiler."""

import ctypes
import functools
import importlib.util

import jax

from d4s_jax.render.backend import BackendUnavailable

DRAW, TRANSPOSE = "d4s_cpu_draw", "d4s_cpu_transpose"
_SYMBOLS = {DRAW: "D4sDraw", TRANSPOSE: "D4sTranspose"}
_REMEDY = "give the command `python -m pip install -e .` again in the checkout."


def path() -> str | None:
  """Where the library lies; None if it was not built."""
  found = importlib.util.find_spec("d4s_jax.render.cpu._native")
  return found.origin if found else None


@functools.cache
def _problem() -> str:
  """Loads the library and makes its functions known to XLA; what stands against it, or ""."""
  origin = path()
  if origin is None:
    return f"The CPU renderer was not built; have a C++ compiler (g++ or clang++) and {_REMEDY}"
  try:
    library = ctypes.CDLL(origin)
    symbols = {target: getattr(library, symbol) for target, symbol in _SYMBOLS.items()}
  except (OSError, AttributeError) as error:
    return f"The CPU renderer {origin} can't be loaded ({error}); {_REMEDY}"
  for target, symbol in symbols.items():
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform="cpu")
  return ""


def load() -> None:
  """Loads the library once.

  Raises:
    BackendUnavailable: it was not built, or not for this machine.
  """
  if problem := _problem():
    raise BackendUnavailable(problem)
