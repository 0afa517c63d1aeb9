"""Compiles the library of the `cuda` backend with nvcc, and keeps it in a cache.

Libraries lie in $D4S_JAX_CACHE, by default ~/.cache/d4s_jax, under a hash of all that they are made
from: gsplat's sources, ours, XLA's headers, the compiler and its flags.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax

from d4s_jax.render.cuda import sources

COMMAND = "python -m d4s_jax.render.cuda.build"
CACHE = "D4S_JAX_CACHE"

# Compute capabilities, ten times: A100, H100, B200.
_DEFAULT = (80, 90, 100)
# As gsplat's own build: fast division and exponentials, denormals are zero.
NVCC_FLAGS = ["-std=c++17", "-O3", "-use_fast_math", "--expt-relaxed-constexpr", "-DNDEBUG", "-w"]
NVCC_FLAGS += [f"-DGSPLAT_FFI_CHANNELS={sources.CHANNELS}", "-Xcompiler", "-fPIC"]
# The runtime is linked in, so that the library loads on machines without a driver.
_LINK_FLAGS = ["-shared", "-cudart", "static"]
# Named for what is compiled, by what, and what for.
_NAME = re.compile(r"gsplat_ffi-(?P<sources>\w+)-(?P<nvcc>\w+)(?P<architectures>(-sm_\d+)+)\.so")


def build(architectures: Sequence[int] = ()) -> pathlib.Path:
  """The library for these architectures, compiled unless it is in the cache.

  Args:
    architectures: compute capabilities, ten times (90 is sm_90); by default those of A100, H100 and
      B200 that nvcc knows. The newest is also kept as PTX, for GPUs that are newer.

  Raises:
    ValueError: nvcc or gsplat is missing or unfit, or compiling fails.
  """
  gsplat, nvcc = sources.find_gsplat(), find_nvcc()
  known = known_architectures(nvcc)
  architectures = sorted(architectures) or [x for x in _DEFAULT if x in known]
  if unknown := [f"sm_{x}" for x in architectures if x not in known]:
    names = ", ".join(f"sm_{x}" for x in known)
    raise ValueError(f"{nvcc} can't compile for {', '.join(unknown)}; it knows {names}.")
  names = "".join(f"-sm_{x}" for x in architectures)
  path = cache_folder() / f"gsplat_ffi-{_sources_key(gsplat)}-{_nvcc_key(nvcc)}{names}.so"
  if not path.exists():
    _compile(gsplat, nvcc, architectures, path)
  return path


def build_for(capability: int) -> pathlib.Path:
  """A library that runs on a GPU of this compute capability, from the cache or compiled.

  One in the cache serves whichever nvcc made it, and where there is none: it may have been compiled
  on another machine.

  Raises:
    ValueError: as `build`.
  """
  key = _sources_key(sources.find_gsplat())
  for path in sorted(cache_folder().glob("gsplat_ffi-*.so")):
    found = _NAME.fullmatch(path.name)
    if found and found["sources"] == key:
      if runs_on([int(x) for x in re.findall(r"sm_(\d+)", found["architectures"])], capability):
        return path
  nvcc = find_nvcc()
  older = [x for x in known_architectures(nvcc) if x <= capability]
  if not older:
    raise ValueError(f"{nvcc} can't compile for this GPU, which is sm_{capability}.")
  return build([max(older)])


def runs_on(architectures: Sequence[int], capability: int) -> bool:
  """Whether a library has code for a GPU: of its generation, or PTX of an older one."""
  same = any(x // 10 == capability // 10 and x <= capability for x in architectures)
  return same or max(architectures) <= capability


def cache_folder() -> pathlib.Path:
  """Where compiled libraries are kept."""
  if folder := os.environ.get(CACHE):
    return pathlib.Path(folder)
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "d4s_jax"


def find_nvcc() -> str:
  """The CUDA compiler: of $CUDA_HOME, on the PATH, or of /usr/local/cuda.

  Raises:
    ValueError: there is none.
  """
  places = [os.environ.get("CUDA_HOME", ""), "", "/usr/local/cuda"]
  for place in places:
    candidate = shutil.which(os.path.join(place, "bin", "nvcc") if place else "nvcc")
    if candidate:
      return candidate
  raise ValueError(
    "nvcc was not found: not in $CUDA_HOME/bin, not on the PATH, not in /usr/local/cuda/bin."
    f" Install the CUDA toolkit, then run: {COMMAND}"
  )


def known_architectures(nvcc: str) -> list[int]:
  """Compute capabilities, ten times, that a compiler knows, rising."""
  listed = _output([nvcc, "--list-gpu-arch"])
  return sorted(int(number) for number in re.findall(r"^compute_(\d+)$", listed, re.MULTILINE))


def compile_units(
  commands: dict[str, list[str]], link: list[str], path: pathlib.Path, what: str
) -> None:
  """Runs compilers side by side, then a linker, and moves the library to `path` at the end.

  Args:
    commands: name of a unit to its command, which gets "-o" and a file.
    link: the command that gets "-o", a file and the objects.
    path: the library; a process that reads it never sees half of one.
    what: what is compiled, for the progress line.

  Raises:
    ValueError: one of them fails.
  """
  start = time.monotonic()
  path.parent.mkdir(parents=True, exist_ok=True)

  def progress(done):
    seconds = time.monotonic() - start
    text = f"\rCompiling {what}: {done} of {len(commands)} files, {seconds:.0f} s"
    print(text, end="", file=sys.stderr, flush=True)

  with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder:
    objects = {name: os.path.join(folder, f"{name}.o") for name in commands}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      jobs = [pool.submit(_output, [*commands[x], "-o", objects[x]]) for x in commands]
      progress(0)
      try:
        for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
          job.result()
          progress(done)
      finally:
        pool.shutdown(cancel_futures=True)
        print(file=sys.stderr)
    library = os.path.join(folder, "library.so")
    _output([*link, "-o", library, *objects.values()])
    os.replace(library, path)


def write_units(units: dict[str, str], suffix: str, folder: str) -> dict[str, str]:
  """Writes translation units into a folder; returns the path of each."""
  paths = {name: os.path.join(folder, name + suffix) for name in units}
  for name, text in units.items():
    pathlib.Path(paths[name]).write_text(text)
  return paths


def _compile(gsplat, nvcc, architectures, path):
  targets = [f"-gencode=arch=compute_{x},code=sm_{x}" for x in architectures]
  targets += [f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]
  includes = [f"-I{folder}" for folder in sources.include_folders(gsplat, "gpu")]
  includes += ["-isystem", jax.ffi.include_dir()]
  with tempfile.TemporaryDirectory() as folder:
    files = write_units(sources.units(gsplat), ".cu", folder)
    commands = {x: [nvcc, *NVCC_FLAGS, *targets, *includes, "-c", files[x]] for x in files}
    names = ", ".join(f"sm_{x}" for x in architectures)
    link = [nvcc, *_LINK_FLAGS, *targets]
    compile_units(commands, link, path, f"gsplat's kernels for {names}")


def _sources_key(gsplat: pathlib.Path) -> str:
  """A hash of all that decides what a library does, but for the compiler and the architectures."""
  parts = [platform.machine(), *NVCC_FLAGS, *_LINK_FLAGS, *sources.units(gsplat).values()]
  parts += [sources.headers_digest(pathlib.Path(jax.ffi.include_dir()))]
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _nvcc_key(nvcc: str) -> str:
  return hashlib.sha256(_output([nvcc, "--version"]).encode()).hexdigest()[:8]


def _output(command: list[str]) -> str:
  """What a command prints.

  Raises:
    ValueError: it fails; with the end of what it said.
  """
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    said = (done.stdout + done.stderr).strip().splitlines()
    wrong = [line for line in said if "error" in line.lower()] or said[-3:]
    raise ValueError(f"{command[0]} failed with status {done.returncode}: {' / '.join(wrong[:3])}")
  return done.stdout
