"""The code is formatted, linted and type-checked; the settings are in the dotfiles of the root."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PLACES = ("d4s_jax", "tests", "configs")


@pytest.mark.parametrize(
  "command",
  [
    ["ruff", "format", "--check", *PLACES],
    ["ruff", "check", *PLACES],
    ["basedpyright", "--pythonpath", sys.executable],
  ],
  ids=lambda command: " ".join(command[:2]),
)
def test_nothing_to_complain_about(command):
  pytest.importorskip(command[0])
  done = subprocess.run(
    [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
