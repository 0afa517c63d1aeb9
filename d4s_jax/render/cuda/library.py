"""Loads the compiled library into this process, once, or says why it can't be had."""

import ctypes
import pathlib
import re
import threading

import jax

from d4s_jax.render.backend import BackendUnavailable
from d4s_jax.render.cuda import compiler

# Name of XLA's custom call to the symbol of its handler.
HANDLERS = {
  "d4s_jax_gsplat_project_forward": "GsplatProjectForward",
  "d4s_jax_gsplat_project_backward": "GsplatProjectBackward",
  "d4s_jax_gsplat_intersect": "GsplatIntersect",
  "d4s_jax_gsplat_rasterize_forward": "GsplatRasterizeForward",
  "d4s_jax_gsplat_rasterize_backward": "GsplatRasterizeBackward",
}


_lock = threading.Lock()
_registered: set[str] = set()
_failure: str | None = None


def register(path: pathlib.Path, platform: str) -> None:
  """Makes the handlers of a library known to XLA.

  Args:
    path: what `compiler` made.
    platform: "CUDA"; "cpu" for the emulator of the tests.
  """
  library = ctypes.CDLL(str(path))
  for name, symbol in HANDLERS.items():
    handler = jax.ffi.pycapsule(getattr(library, symbol))
    jax.ffi.register_ffi_target(name, handler, platform=platform)
  _registered.add(platform)


def ensure(capability: int | None = None) -> None:
  """Registers the handlers for a GPU, unless some are registered already.

  Args:
    capability: ten times its compute capability, to compile a program for a GPU that isn't here;
      None for the first one of this machine.

  Raises:
    BackendUnavailable: they can't be had. The cause is remembered, not tried again.
  """
  global _failure
  with _lock:
    if _registered:
      return
    if _failure is None:
      try:
        register(compiler.build_for(capability or _capability()), "CUDA")
        return
      except (ValueError, OSError) as error:
        _failure = f"The backend 'cuda' can't be used: {error}"
    raise BackendUnavailable(_failure)


def _capability() -> int:
  """Ten times the compute capability of the first GPU."""
  if jax.default_backend() != "gpu":
    raise ValueError(
      f"JAX sees no NVIDIA GPU, it runs on {jax.default_backend()!r}. On a machine with one, run:"
      " pip install -e '.[cuda]'"
    )
  capability = str(getattr(jax.devices()[0], "compute_capability", ""))
  if not (found := re.fullmatch(r"(\d+)\.(\d)", capability)):
    raise ValueError(f"{jax.devices()[0].device_kind} is not an NVIDIA GPU.")
  return int(found[1] + found[2])
