"""Loading the native library, which `pip install` built if it found a C++ compiler."""

import ctypes
import functools
import hashlib
import importlib.util
import pathlib
import re

import jax

from d4s_jax.render.backend import BackendUnavailable

DRAW, TRANSPOSE = "d4s_cpu_draw", "d4s_cpu_transpose"
_SYMBOLS = {DRAW: "D4sDraw", TRANSPOSE: "D4sTranspose"}
# Without isolation the library is compiled against the jaxlib that is installed.
_REMEDY = (
  "in the checkout give the command"
  " `python -m pip install setuptools && python -m pip install --no-build-isolation -e .`"
)
_SOURCES = pathlib.Path(__file__).parent / "csrc"


def path() -> str | None:
  """Where the library lies; None if it was not built."""
  found = importlib.util.find_spec("d4s_jax.render.cpu._native")
  return found.origin if found else None


def sources_digest() -> str:
  """A hash of the C++ sources, as setup.py compiles it into the library."""
  files = sorted(_SOURCES.iterdir(), key=lambda path: path.name)
  return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def interface_version() -> tuple[int, ...]:
  """Version of XLA's foreign-function interface in the jaxlib that is installed."""
  header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
  text = header.read_text()
  names = ("XLA_FFI_API_MAJOR", "XLA_FFI_API_MINOR")
  return tuple(int(number) for name in names for number in re.findall(rf"{name} (\d+)", text)[:1])


@functools.cache
def _problem() -> str:
  """Loads the library and makes its functions known to XLA; what stands against it, or ""."""
  origin = path()
  if origin is None:
    return f"The CPU renderer was not built; have a C++ compiler (g++ or clang++) and {_REMEDY}"
  try:
    library = ctypes.CDLL(origin)
    symbols = {target: getattr(library, symbol) for target, symbol in _SYMBOLS.items()}
    built_for = library.D4sFfiMajor(), library.D4sFfiMinor()
    library.D4sSources.restype = ctypes.c_char_p
    built_from = library.D4sSources().decode()
  except (OSError, AttributeError) as error:
    return f"The CPU renderer {origin} can't be loaded ({error}); {_REMEDY}"
  if built_from != sources_digest():
    return f"The CPU renderer {origin} was built from other sources than those beside it; {_REMEDY}"
  if built_for != interface_version():
    return (
      f"The CPU renderer {origin} was built for version {built_for} of XLA's interface, and this"
      f" jaxlib has {interface_version()}; {_REMEDY}"
    )
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
