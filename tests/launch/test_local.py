"""`launch/local.sh`, which starts a training again, with a trainer that ends as it is told."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.launch.stand_ins import LAUNCH, PATIENCE, ROOT, TRAINING, UNTIL_STOPPED, trainer
from tests.support import small_config, write_run

LINE = ["-m", "d4s_jax.train", *TRAINING]


def trainings(stand_ins):
  return [words for words in stand_ins.calls("python") if words[0] == "-m"]


def waits(stand_ins):
  return [int(words[0]) for words in stand_ins.calls("sleep")]


def test_a_training_that_ends_well_is_started_once(stand_ins):
  stand_ins.add("python", trainer(0))
  done = stand_ins.run("local.sh", "--", *TRAINING)
  assert done.returncode == 0 and done.stderr == ""
  assert trainings(stand_ins) == [LINE]


@pytest.mark.parametrize("crash", [70, 75, 134])
def test_after_crashes_it_is_started_again_with_growing_waits(stand_ins, crash):
  stand_ins.add("python", trainer(crash, crash, crash, 0))
  done = stand_ins.run("local.sh", "--", *TRAINING)
  assert done.returncode == 0
  assert trainings(stand_ins) == 4 * [LINE]
  assert waits(stand_ins) == [10, 20, 40]
  assert f"status {crash}; restart 3 of at most 10 without progress in 40 s" in done.stderr


def test_without_progress_it_gives_up(stand_ins):
  stand_ins.add("python", trainer(70))
  done = stand_ins.run("local.sh", "--restarts=8", "--backoff=5", "--", *TRAINING)
  assert done.returncode == 79
  assert len(trainings(stand_ins)) == 9
  assert waits(stand_ins) == [5, 10, 20, 40, 80, 160, 300, 300]
  assert done.stderr.splitlines()[-1].endswith("gave up after 8 restarts without progress")


def test_a_new_checkpoint_starts_the_count_and_the_waits_anew(stand_ins):
  stand_ins.add("python", trainer(70, 70, "s70", 70, 70, "s70", 0))
  done = stand_ins.run("local.sh", "--restarts=3", "--", *TRAINING)
  assert done.returncode == 0
  assert waits(stand_ins) == [10, 20, 10, 20, 40, 10]


def test_progress_is_the_newest_whole_checkpoint(tmp_path, stand_ins):
  """Asked of the package itself."""
  write_run(tmp_path / "run", small_config(), {"ldrm": {"bias": np.zeros(2)}}, step=7)
  script = f'source "{LAUNCH}/common.sh"; workdir="$1"; progress'
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  for folder, expected in ("run", "7\n"), ("none", ""):
    done = subprocess.run(
      ["bash", "-c", script, "bash", str(tmp_path / folder)],
      env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
      check=True,
    )
    assert done.stdout == expected


@pytest.mark.parametrize("status", [1, 2, 126, 127])
def test_what_is_refused_is_not_tried_again(stand_ins, status):
  stand_ins.add("python", trainer(status))
  assert stand_ins.run("local.sh", "--", *TRAINING).returncode == status
  assert len(trainings(stand_ins)) == 1 and not waits(stand_ins)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_training_once_which_saves_and_is_not_started_again(stand_ins, number):
  stand_ins.add("python", UNTIL_STOPPED)
  process = stand_ins.start("local.sh", "--", *TRAINING)
  while not (stand_ins.place / "ready").exists():
    time.sleep(0.01)
  process.send_signal(number)
  out, _ = process.communicate(timeout=PATIENCE)
  assert out == f"saved after {number.name}\n" and process.returncode == 75
  assert len(trainings(stand_ins)) == 1


def test_a_signal_while_it_looks_for_progress_ends_it_before_the_wait(stand_ins):
  look = """
import time
if words[0] == "-c":
  open(place + "/looking", "w").close()
  time.sleep(0.5)
  sys.exit()
"""
  stand_ins.add("python", look + trainer(70))
  process = stand_ins.start("local.sh", "--", *TRAINING)
  while not (stand_ins.place / "looking").exists():
    time.sleep(0.01)
  status, _ = stand_ins.stop(process)
  assert status == 70 and not waits(stand_ins)


def test_a_signal_during_a_wait_ends_it(stand_ins):
  stand_ins.add("python", trainer(70))
  stand_ins.add("sleep", "import time; time.sleep(60)")
  process = stand_ins.start("local.sh", "--", *TRAINING)
  stand_ins.wait_for("sleep")
  begin = time.monotonic()
  status, _ = stand_ins.stop(process)
  assert status == 70 and time.monotonic() - begin < 10
  assert len(trainings(stand_ins)) == 1
