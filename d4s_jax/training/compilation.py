"""Compiled programs kept on disk, so that a command compiles a model once and not each time."""

import os
import pathlib

import jax

# The folder may not grow beyond this; the programs that were not used for longest go first.
_MOST_BYTES = 8 * 2**30
# JAX itself keeps what took a second; of less there is enough to be seen in a start.
_LEAST_SECONDS = 0.2


def cache() -> str:
  """From here on, programs that took some time to compile are kept for the next time.

  They lie in ~/.cache/d4s_jax, which is made readable by its owner alone: whoever can write there
  can have code run. JAX's own variables go first: JAX_COMPILATION_CACHE_DIR names another folder.

  Returns:
    Why nothing will be kept; empty if it will.
  """
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return ""
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  folder = pathlib.Path(home) / "d4s_jax"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
  except OSError as error:
    return f"note: what is compiled can't be kept ({error})."
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
  return ""
