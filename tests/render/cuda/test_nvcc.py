"""The real compiler: it takes the sources for the GPUs we name; the library needs neither GPU nor
torch to load."""

import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

from d4s_jax.render.cuda import compiler, library, sources

pytest.importorskip("gsplat")


@pytest.fixture(scope="module")
def nvcc():
  try:
    return compiler.find_nvcc()
  except ValueError as missing:
    pytest.skip(str(missing))


def test_nvcc_takes_the_handlers(nvcc, tmp_path):
  """One unit, the one with kernels of ours; the slow test below has all."""
  gsplat = sources.find_gsplat()
  files = compiler.write_units(sources.units(gsplat), ".cu", str(tmp_path))
  includes = [f"-I{folder}" for folder in sources.include_folders(gsplat, "gpu")]
  includes += ["-isystem", jax.ffi.include_dir()]
  output = tmp_path / "intersect.ptx"
  command = [nvcc, *compiler.NVCC_FLAGS, *includes, "-arch=compute_90", "-ptx", files["intersect"]]
  done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  text = output.read_text()
  assert ".target sm_90" in text
  kernels = re.findall(r"\.entry (\w+)", text)
  for name in ("DepthKeys", "Reorder", "Place", "CountOverflow", "Pad", "Finish"):
    assert any(name in kernel for kernel in kernels), name


LOAD = """
import pathlib, sys
from d4s_jax.render.cuda import library
library.register(pathlib.Path(sys.argv[1]), "CUDA")
print("torch" in sys.modules, "gsplat" in sys.modules)
"""


@pytest.mark.slow
def test_library_for_all_architectures(nvcc, tmp_path, monkeypatch):
  monkeypatch.setenv(compiler.CACHE, str(tmp_path))
  wanted = [x for x in (80, 90, 100) if x in compiler.known_architectures(nvcc)]
  assert wanted[:2] == [80, 90]
  path = compiler.build()
  defined, undefined = (
    subprocess.run(
      ["nm", "-D", "-C", f"--{kind}-only", path], capture_output=True, text=True, check=True
    ).stdout
    for kind in ("defined", "undefined")
  )
  for symbol in library.HANDLERS.values():
    assert f" T {symbol}\n" in defined
  assert "memcpy" in undefined and not re.search(r"torch|\bat::|c10", undefined)
  needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
  assert not re.search("cuda|torch", needed)
  if cuobjdump := shutil.which("cuobjdump") or shutil.which(nvcc.replace("nvcc", "cuobjdump")):
    code = subprocess.run([cuobjdump, "-lelf", path], capture_output=True, text=True, check=True)
    assert {int(x) for x in re.findall(r"sm_(\d+)", code.stdout)} == set(wanted)
  loaded = subprocess.run(
    [sys.executable, "-c", LOAD, str(path)],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    check=False,
  )
  assert loaded.returncode == 0, loaded.stderr[-2000:]
  assert loaded.stdout.split() == ["False", "False"]
