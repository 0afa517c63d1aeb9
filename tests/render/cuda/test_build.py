"""Building the library: from what, for which GPUs, when not again, and what a failure says."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys

import pytest

from d4s_jax.render.cuda import compiler, sources

pytest.importorskip("gsplat")

# Stands in for nvcc: knows three architectures, notes what it is asked for, writes what it should.
NVCC = """#!/bin/sh
folder=$(dirname "$0")
case "$1" in
  --version) echo "release 13.0"; exit;;
  --list-gpu-arch) printf 'compute_80\\ncompute_90\\ncompute_100\\n'; exit;;
esac
if [ -e "$folder/broken" ]; then echo "x.cu(7): error: no such thing" >&2; exit 2; fi
echo "$@" >> "$folder/asked"
while [ "$1" != "-o" ]; do shift; done
echo library > "$2"
"""


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
  """The folder of a compiler that is quick; the cache is empty."""
  folder = tmp_path / "bin"
  folder.mkdir()
  program = folder / "nvcc"
  program.write_text(NVCC)
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("CUDA_HOME", str(tmp_path))
  monkeypatch.setenv(compiler.CACHE, str(tmp_path / "cache"))
  return folder


def compiled(nvcc):
  """How many times the compiler was called since the last time this was."""
  asked = nvcc / "asked"
  lines = asked.read_text().splitlines() if asked.exists() else []
  asked.unlink(missing_ok=True)
  return len(lines)


def test_default_is_every_architecture_that_nvcc_knows(nvcc):
  path = compiler.build()
  assert path.name.endswith("-sm_80-sm_90-sm_100.so")
  assert path.read_text() == "library\n"
  asked = (nvcc / "asked").read_text()
  for target in ("sm_80", "sm_90", "sm_100", "compute_100"):
    assert f"code={target} " in asked
  assert "code=compute_90" not in asked


def test_what_is_cached_is_not_compiled_again(nvcc):
  first = compiler.build([90])
  # Four files of gsplat, three of ours, and the link.
  assert compiled(nvcc) == 8
  assert compiler.build([90]) == first and compiler.build_for(90) == first
  # sm_90's PTX runs there, too.
  assert compiler.build_for(100) == first
  assert compiled(nvcc) == 0
  assert compiler.build_for(86) != first
  assert compiled(nvcc) == 8
  assert [path.suffix for path in first.parent.iterdir()] == [".so", ".so"]


def test_what_another_machine_compiled_serves_where_there_is_no_nvcc(nvcc, monkeypatch):
  first = compiler.build([90])

  def missing():
    raise ValueError("nvcc was not found")

  monkeypatch.setattr(compiler, "find_nvcc", missing)
  assert compiler.build_for(90) == first
  with pytest.raises(ValueError, match="nvcc was not found"):
    compiler.build_for(80)


def test_another_compiler_is_another_library(nvcc):
  first = compiler.build([90])
  text = (nvcc / "nvcc").read_text()
  (nvcc / "nvcc").write_text(text.replace("13.0", "13.1"))
  assert compiler.build([90]) != first


def test_a_failure_leaves_nothing_and_says_why(nvcc):
  (nvcc / "broken").touch()
  with pytest.raises(ValueError, match=r"nvcc failed with status 2: x.cu\(7\): error: no such"):
    compiler.build([90])
  assert list((nvcc.parent / "cache").iterdir()) == []


def test_architectures_that_nvcc_does_not_know(nvcc):
  with pytest.raises(ValueError, match=r"can't compile for sm_123; it knows sm_80, sm_90, sm_100"):
    compiler.build([90, 123])
  with pytest.raises(ValueError, match="can't compile for this GPU, which is sm_75"):
    compiler.build_for(75)


def test_which_library_runs_where():
  assert compiler.runs_on([80], 86) and compiler.runs_on([80, 90], 90)
  # Through PTX.
  assert compiler.runs_on([80, 90], 120)
  assert not compiler.runs_on([90], 80) and not compiler.runs_on([89], 86)
  # Code of the wrong generation, and PTX that is too new.
  assert not compiler.runs_on([80, 120], 90)


def test_the_cache_is_where_the_environment_says(monkeypatch):
  monkeypatch.setenv(compiler.CACHE, "/here")
  monkeypatch.setenv("XDG_CACHE_HOME", "/there")
  assert compiler.cache_folder() == pathlib.Path("/here")
  monkeypatch.delenv(compiler.CACHE)
  assert compiler.cache_folder() == pathlib.Path("/there/d4s_jax")
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert compiler.cache_folder() == pathlib.Path.home() / ".cache" / "d4s_jax"


@pytest.mark.parametrize(
  "name", ["include/Utils.cuh", "csrc/IntersectTile.cu", "csrc/third_party/glm/glm/mat2x2.hpp"]
)
def test_changed_sources_are_refused(tmp_path, name):
  copy = tmp_path / "cuda"
  shutil.copytree(sources.find_gsplat(), copy)
  sources.check(copy)
  (copy / name).write_text((copy / name).read_text() + "\n// mine\n")
  with pytest.raises(ValueError, match=r"is not the file of gsplat 1\.5\.3"):
    sources.check(copy)
  (copy / name).unlink()
  with pytest.raises(ValueError, match="missing|is not the file"):
    sources.check(copy)


def test_sources_are_gsplats_but_for_channel_numbers():
  folder = sources.find_gsplat()
  units = sources.units(folder)
  for name in ("ProjectionEWA3DGSFused", "IntersectTile"):
    assert (folder / "csrc" / f"{name}.cu").read_text() in units[name]
  for name in ("RasterizeToPixels3DGSFwd", "RasterizeToPixels3DGSBwd"):
    original = (folder / "csrc" / f"{name}.cu").read_text().splitlines()
    left = units[name].splitlines()[1:]
    assert len(left) == len(original)
    changed = [line for line, now in zip(original, left) if line != now]
    assert len(changed) == 18 and all(line.startswith("__INS__(") for line in changed)
    assert "__INS__(4)" in left


def command(*arguments, **environment):
  return subprocess.run(
    [sys.executable, "-m", *compiler.COMMAND.split()[2:], *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    check=False,
  )


def test_the_command(nvcc):
  done = command("--arch=sm_90,sm_80")
  assert done.returncode == 0, done.stderr
  path = pathlib.Path(done.stdout.split()[-1])
  assert path.parent == nvcc.parent / "cache" and path.name.endswith("-sm_80-sm_90.so")
  assert "gsplat's kernels for sm_80, sm_90: 7 of 7 files" in done.stderr


def test_the_command_has_help():
  done = command("--helpshort")
  assert "python -m d4s_jax.render.cuda.build --arch=sm_80,sm_90" in done.stdout
  assert "--arch: GPUs to compile for" in done.stdout


def test_the_command_says_what_is_wrong(nvcc):
  done = command("--arch=hopper")
  assert done.returncode == 1
  assert (
    done.stderr == "error: --arch='hopper'; expected names such as sm_90, with commas between.\n"
  )
