"""The `cuda` backend on the CPU: its handlers and gsplat's kernels, compiled with an emulator.

Everything but CUDA itself is what runs on a GPU. The library is kept in the user's cache, under a
hash of all that it is made from.
"""

import functools
import hashlib
import pathlib
import shutil
import subprocess
import tempfile

import jax
import pytest

from d4s_jax.render.cuda import compiler, library, sources
from tests.render.cuda import translate

_COMPILER = "g++"
# Fortified longjmp forbids what fibres do.
_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-w", "-U_FORTIFY_SOURCE"]
_FLAGS += [f"-DGSPLAT_FFI_CHANNELS={sources.CHANNELS}"]


@functools.cache
def load(*flags: str) -> None:
  """Registers the handlers for the CPU; skips the test where they can't be compiled."""
  skip_without_compiler()
  library.register(compiled(*flags), "cpu")


def skip_without_compiler() -> None:
  """Skips the test where gsplat or a compiler is missing."""
  if not shutil.which(_COMPILER):
    pytest.skip(f"needs {_COMPILER}, to compile gsplat's kernels for the CPU")
  pytest.importorskip("gsplat")


def compiled(*flags: str) -> pathlib.Path:
  """The library, compiled if it is not in the cache: half a minute.

  Args:
    flags: for the compiler and the linker, besides the usual ones.
  """
  gsplat = sources.find_gsplat()
  units = {name: translate.launches(text) for name, text in sources.units(gsplat).items()}
  units["emulator"] = (sources.BRIDGE / "emulator" / "emulator.cc").read_text()
  version = subprocess.run([_COMPILER, "--version"], capture_output=True, text=True, check=True)
  parts = [version.stdout, *_FLAGS, *flags, *units.values()]
  parts += [sources.headers_digest(pathlib.Path(jax.ffi.include_dir()))]
  key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
  path = compiler.cache_folder() / f"gsplat_ffi_emulator-{key}.so"
  if not path.exists():
    includes = [f"-I{folder}" for folder in sources.include_folders(gsplat, "emulator")]
    includes += ["-isystem", jax.ffi.include_dir()]
    with tempfile.TemporaryDirectory() as folder:
      files = compiler.write_units(units, ".cc", folder)
      commands = {x: [_COMPILER, *_FLAGS, *flags, *includes, "-c", files[x]] for x in files}
      link = [_COMPILER, "-shared", *flags]
      compiler.compile_units(commands, link, path, "gsplat's kernels for the emulator")
  return path
