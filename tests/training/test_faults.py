"""The script that breaks runs, with a few faults of each kind."""

import os
import pathlib
import subprocess
import sys
from unittest import mock

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_a_run_that_starts_anew_has_lost_all():
  with mock.patch.dict(os.environ):
    from tests.benchmarks import faults
  lost = {"": (0, 0), "resumed at step 12": (5, 4), "new run": (17, 16)}
  for said, expected in lost.items():
    row = faults.Row("a fault")
    row.restarted(f"tiny; {said}; folder runs/x", reached=17, whole=16)
    assert (row.lost, row.forgotten) == expected


@pytest.mark.slow
def test_nothing_that_was_saved_is_lost_and_runs_end_as_if_undisturbed():
  done = subprocess.run(
    [sys.executable, ROOT / "tests" / "benchmarks" / "faults.py", "--kills=4", "--others=1"],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=3600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")][2:]
  assert [int(row[1]) for row in rows] == [4, 1, 1, 1, 1, 1, 1]
  for row in rows:
    runs, same = map(int, row[4].split(","))
    assert runs == same >= 1, row
    # Every 4 steps a checkpoint, on disk a step later; one that is damaged is lost as well.
    assert int(row[2]) <= (9 if "checkpoint" in row[0] else 5), row
    # A damaged checkpoint is one that was saved, and is lost.
    assert int(row[3]) == 0 or "checkpoint" in row[0], row
