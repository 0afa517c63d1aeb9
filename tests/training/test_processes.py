"""Several processes on this machine train one model: as several hosts would."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from d4s_jax.training import checkpoint, processes
from d4s_jax.training.log import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
STEPS = 4
SCRIPT = """
import json, pathlib, sys
from d4s_jax import errors
from d4s_jax.training import loop, processes
from tests.support import small_config

folder, distributed, changes = sys.argv[1:]
config = small_config()
config.update_from_flattened_dict(json.loads(changes))
with errors.one_line(), processes.telling():
  if distributed == "1":
    processes.join()
  loop.run(config, pathlib.Path(folder))
"""


def start(count, folder, port=None, **changes):
  """Processes that train together; a single one joins nothing."""
  changes = {
    "stage": "diffusion",
    "steps": STEPS,
    "batch_size": 4,
    "checkpoint.every": 2,
  } | changes
  changes |= {
    "heldout.every": 100,
    "heldout.batches": 1,
    "optimizer.warmup": 1,
    "mesh.fsdp": min(count, 2),
  }
  port = port or free_port()
  running = []
  for index in range(count):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    if count > 1:
      values = f"127.0.0.1:{port}", str(count), str(index)
      environment |= dict(zip(NAMES, values))
    command = [sys.executable, "-c", SCRIPT, str(folder), str(int(count > 1)), json.dumps(changes)]
    running.append(
      subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
      )
    )
  return running


def free_port():
  with socket.socket() as place:
    place.bind(("127.0.0.1", 0))
    return place.getsockname()[1]


def finish(running, timeout=400):
  said = [process.communicate(timeout=timeout)[0] for process in running]
  assert [process.returncode for process in running] == [0] * len(running), "\n".join(said)
  return said


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_what_one_would_and_write_it_once(tmp_path, count):
  alone, together = tmp_path / "alone", tmp_path / "together"
  finish(start(1, alone))
  said = finish(start(count, together))
  # One table of results, in the first process's output.
  assert [text.count("Look at ") for text in said] == [1] + [0] * (count - 1)
  assert checkpoint.latest_step(together) == STEPS
  train, heldout = (
    [read_metrics(folder / f"{log}.csv") for folder in (alone, together)]
    for log in ("train", "heldout")
  )
  assert [row["step"] for row in train[1]] == list(range(1, STEPS + 1))
  # The same start, scored on the same clips; sums in another order.
  np.testing.assert_allclose(list(heldout[1][0].values()), list(heldout[0][0].values()), rtol=2e-3)
  # A batch has the same clips in another order, and each place has its own noise: the ends are near
  # each other, not equal.
  np.testing.assert_allclose(list(heldout[1][-1].values()), list(heldout[0][-1].values()), rtol=0.1)
  for name in ("samples.png", "curves.png", "summary.json"):
    assert (together / name).exists()


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_and_they_go_on_together(tmp_path):
  running = start(2, tmp_path / "run", steps=400)
  wait_for(tmp_path / "run", 2)
  running[1].send_signal(signal.SIGTERM)
  said = finish(running)
  assert "Stopped by a signal at step" in said[0]
  step = checkpoint.latest_step(tmp_path / "run")
  assert 2 <= step < 400 and step % 10 == 0
  said = finish(start(2, tmp_path / "run", steps=step + 2))
  assert f"resumed at step {step}" in said[0]
  rows = read_metrics(tmp_path / "run" / "train.csv")
  assert [row["step"] for row in rows] == list(range(1, step + 3))


@pytest.mark.slow
def test_when_one_is_killed_the_others_end_within_a_minute_and_nothing_is_lost(tmp_path):
  running = start(2, tmp_path / "run", steps=4000)
  wait_for(tmp_path / "run", 2)
  running[1].kill()
  begin = time.monotonic()
  running[0].wait(timeout=60)
  assert time.monotonic() - begin < 60
  assert running[0].returncode != 0
  step = checkpoint.latest_step(tmp_path / "run")
  said = finish(start(2, tmp_path / "run", steps=step + 2))
  assert f"resumed at step {step}" in said[0]


def wait_for(folder, step, timeout=300):
  """Returns once a checkpoint of at least `step` steps is whole."""
  begin = time.monotonic()
  while time.monotonic() - begin < timeout:
    if any(int(x.name) >= step for x in folder.glob("checkpoints/*") if x.name.isdigit()):
      return
    time.sleep(0.5)
  raise AssertionError("no checkpoint")


def test_half_an_address_is_refused(monkeypatch):
  for name in NAMES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv(NAMES[0], "127.0.0.1:1234")
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES=None.*expected all three"):
    processes.join()
  for name in NAMES[1:]:
    monkeypatch.setenv(name, "two")
  with pytest.raises(
    ValueError, match="JAX_PROCESS_ID=two; expected all three, the last two as num"
  ):
    processes.join()


def test_one_process_asks_nobody():
  assert processes.writes()
  processes.wait("nobody")
  assert processes.any_wants(True, 3) and not processes.any_wants(False, 3)
