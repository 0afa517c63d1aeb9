"""setup.py builds the renderer where there is a compiler, and says so where there is none."""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[3]


def build(place, **environment):
  """Runs setup.py in a copy of what it needs; the library, if one was made, and what was said."""
  for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, place / name)
  shutil.copytree(ROOT / "d4s_jax", place / "d4s_jax", ignore=shutil.ignore_patterns("*.so"))
  done = subprocess.run(
    [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
    cwd=place,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return list((place / "d4s_jax" / "render" / "cpu").glob("_native.*")), done.stderr


def test_with_a_compiler(tmp_path):
  built, said = build(tmp_path)
  assert len(built) == 1 and "note" not in said


def test_without_a_compiler_the_installation_goes_on_and_says_so(tmp_path):
  built, said = build(tmp_path, CC="false", CXX="false")
  assert not built
  assert "note: the C++ renderer was not built" in said
