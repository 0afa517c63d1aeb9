"""The C++ kernels by themselves, with sanitizers watching and hostile numbers going in."""

import pathlib
import platform
import shutil
import subprocess

import pytest

from d4s_jax.render import cpu

SOURCES = pathlib.Path(cpu.__file__).parent / "csrc"
FUZZ = pathlib.Path(__file__).parent / "fuzz.cc"
SANITIZED = [
  *("-std=gnu++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread"),
  *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}"),
]
# Instruction sets, and what the compiler has to be told.
VARIANTS = {"baseline": []}
if platform.machine() == "x86_64":
  VARIANTS["x86_64_v3"] = ["-march=x86-64-v3"]


def build(folder: pathlib.Path, variants: list[str]) -> pathlib.Path:
  """The fuzzing program with the given variants; it takes the best that the processor runs."""
  compiler = shutil.which("g++") or shutil.which("clang++")
  if compiler is None:
    pytest.skip("needs a C++ compiler")
  macros = [f"-DD4S_HAS_{name.upper()}" for name in variants]

  def compile_(source, name, *flags):
    target = folder / f"{name}.o"
    command = [compiler, *SANITIZED, *macros, *flags, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return str(target)

  objects = [
    compile_(SOURCES / "tiles.cc", name, f"-DD4S_VARIANT={name}", *VARIANTS[name])
    for name in variants
  ]
  objects += [
    compile_(source, source.stem) for source in (SOURCES / "binning.cc", SOURCES / "rasterize.cc")
  ]
  objects.append(compile_(FUZZ, "fuzz"))
  program = folder / "fuzz"
  subprocess.run([compiler, *SANITIZED, *objects, "-o", str(program)], check=True)
  return program


@pytest.mark.parametrize("variants", [["baseline"], list(VARIANTS)], ids=" ".join)
def test_good_and_hostile_scenes_are_drawn_without_a_wrong_step(tmp_path, variants):
  """No access out of bounds, no undefined behaviour, and what the definition gives in float64."""
  program = build(tmp_path, variants)
  done = subprocess.run([program, "400"], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  assert "400 scenes" in done.stdout
  if variants == ["baseline"]:
    assert "baseline kernels" in done.stdout


@pytest.mark.slow
def test_many_scenes(tmp_path):
  program = build(tmp_path, list(VARIANTS))
  done = subprocess.run([program, "20000"], capture_output=True, text=True, timeout=3000)
  assert done.returncode == 0, done.stdout + done.stderr
