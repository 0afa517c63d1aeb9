"""Several processes on this machine train one model: as several hosts would."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from d4s_jax import errors
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
# A run that goes on for longer must have learnt at the same rates before.
make = loop.make_optimizer
loop.make_optimizer = lambda steps, **options: make(steps=10**6, **options)
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
    "optimizer.warmup": 1,
  } | changes
  changes |= {
    "heldout.every": 100,
    "heldout.batches": 1,
    "mesh.fsdp": min(count, 2),
  }
  port = port or free_port()
  running = []
  for index in range(count):
    environment = os.environ | {
      **{"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
      "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder).parent / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
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


def finish(running, timeout=900):
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
    [read_metrics(folder, log) for folder in (alone, together)] for log in ("train", "heldout")
  )
  assert [row["step"] for row in train[1]] == list(range(1, STEPS + 1))
  # The same clips and the same noise; sums in another order.
  for rows in (train, heldout):
    for ours, theirs in zip(rows[1], rows[0], strict=True):
      np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-3)
  for name in ("samples.png", "curves.png", "summary.json"):
    assert (together / name).exists()


@pytest.mark.slow
def test_processes_share_a_text_cache(tmp_path):
  """Two of them fill it and train as one without it; so do two that find half of it."""
  plain, cached, again, cache = (tmp_path / x for x in ("plain", "cached", "again", "prompts"))
  one = {"steps": 1, "optimizer.warmup": 0}
  finish(start(1, plain, **one))
  said = finish(start(2, cached, text_cache=str(cache), **one))
  assert "compiling the text encoder" in said[0]
  first = {path.name: path.read_bytes() for path in cache.iterdir()}
  assert len(first) > 2 and all(name.endswith(".safetensors") for name in first)
  # What one of them lacks, both embed: each writes what its own samples need.
  for path in sorted(cache.iterdir())[::2]:
    path.unlink()
  finish(start(2, again, text_cache=str(cache), **one))
  assert {path.name: path.read_bytes() for path in cache.iterdir()} == first
  losses = [read_metrics(folder, "train")[0]["loss"] for folder in (plain, cached, again)]
  np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-3)


@pytest.mark.slow
def test_any_number_of_processes_goes_on_at_the_exact_sample(tmp_path):
  alone, shared = tmp_path / "alone", tmp_path / "shared"
  finish(start(1, alone, steps=6))
  local = {"checkpoint.local": str(tmp_path / "local"), "checkpoint.local_every": 1}
  before = 0
  for steps, count in ((2, 1), (3, 2), (4, 4), (5, 4), (6, 1)):
    said = finish(start(count, shared, steps=steps, **local))
    assert not before or f"resumed at step {before}" in said[0]
    before = steps
  losses = [[row["loss"] for row in read_metrics(x, "train")] for x in (alone, shared)]
  assert len(losses[0]) == 6
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_and_they_go_on_together(tmp_path):
  running = start(2, tmp_path / "run", steps=400)
  wait_for(tmp_path / "run", 2)
  running[1].send_signal(signal.SIGTERM)
  said = finish(running)
  assert "Stopped by a signal at step" in said[0]
  step = checkpoint.latest_step(tmp_path / "run")
  # A step or two after it was told.
  told = read_metrics(tmp_path / "run", "train")[-1]["step"]
  assert 2 <= step == told < 400
  said = finish(start(2, tmp_path / "run", steps=step + 2))
  assert f"resumed at step {step}" in said[0]
  rows = read_metrics(tmp_path / "run", "train")
  assert [row["step"] for row in rows] == list(range(1, step + 3))


@pytest.mark.slow
@pytest.mark.parametrize("count, killed", [(2, 1), (2, 0), (4, 2)])
def test_when_one_is_killed_the_others_end_within_a_minute_and_nothing_is_lost(
  count, killed, tmp_path
):
  """Any of them; the first one is what the others ask."""
  running = start(count, tmp_path / "run", steps=4000)
  wait_for(tmp_path / "run", 2)
  running.pop(killed).kill()
  begin = time.monotonic()
  said = [process.communicate(timeout=60)[0] for process in running]
  assert time.monotonic() - begin < 60
  assert all(process.returncode != 0 for process in running)
  # Who asks it in vain says so, and who was told by it what it had missed.
  why = "another task died" if killed else "coordination service"
  assert all(why in text for text in said), said
  step = checkpoint.latest_step(tmp_path / "run")
  said = finish(start(count, tmp_path / "run", steps=step + 2))
  assert f"resumed at step {step}" in said[0]


def test_a_process_that_refuses_tells_the_others_why(tmp_path):
  # Another run lies in the folder.
  (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
  (tmp_path / "run" / "config.json").write_text('{"seed": 7}')
  running = start(2, tmp_path / "run")
  said = [process.communicate(timeout=900)[0] for process in running]
  assert [process.returncode for process in running] == [1, 1]
  assert "error: " + str(tmp_path / "run") + " holds a run with another configuration" in said[0]
  assert "error: process 0 ended: " in said[1] and "stage: saved None" in said[1]


class Client:
  """What processes tell each other, in one of them."""

  def __init__(self):
    self.told, self.barriers = {}, []

  def key_value_set(self, key, value):
    if key in self.told:
      raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
    self.told[key] = value

  def key_value_dir_get(self, folder):
    return [(key, value) for key, value in self.told.items() if key.startswith(folder)]

  def key_value_delete(self, folder):
    self.told = {key: value for key, value in self.told.items() if not key.startswith(folder)}

  def wait_at_barrier(self, name, timeout):
    del timeout
    self.barriers.append(name)


@pytest.mark.parametrize("seed", range(20))
def test_a_wish_is_granted_to_all_after_the_same_step(monkeypatch, seed):
  random, client = np.random.default_rng(seed), Client()
  monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
  monkeypatch.setattr(processes.distributed.global_state, "client", client)
  wishes, steps = [processes.Wish("stop") for _ in range(3)], [0] * 3
  wanted_from = random.integers(1, 30, 3)
  granted = [[] for _ in range(3)]
  while min(steps) < 40:
    index = random.integers(3)
    if steps[index] > min(steps) + 1:  # it waits for results of the others
      continue
    steps[index] += 1
    wanted = steps[index] >= wanted_from[index] and len(granted[index]) == 0
    if wishes[index].due(bool(wanted), steps[index]):
      granted[index].append(steps[index])
  assert granted[0] == granted[1] == granted[2]
  assert min(wanted_from) < granted[0][0] <= min(wanted_from) + 2
  assert any(key.endswith("stop/0/step") for key in client.told)


def test_what_was_exchanged_is_heard_in_order_and_forgotten(monkeypatch):
  client = Client()
  monkeypatch.setattr(processes.jax, "process_count", lambda: 11)
  monkeypatch.setattr(processes.jax, "process_index", lambda: 0)
  monkeypatch.setattr(processes.distributed.global_state, "client", client)
  exchange = processes.Exchange("x")
  for index in (10, 9, 1):
    client.key_value_set(f"d4s_jax/exchanges/x/0/{index:06}", str(index))
  assert exchange("0") == ["0", "1", "9", "10"]
  assert exchange("") == [] and exchange("again") == ["again"]
  assert len(set(client.barriers)) == 3
  assert list(client.told.values()) == ["again"]


def wait_for(folder, step, timeout=900):
  """Returns once a checkpoint of at least `step` steps is whole."""
  begin = time.monotonic()
  while time.monotonic() - begin < timeout:
    if any(int(x.name) >= step for x in folder.glob("checkpoints/*") if x.name.isdigit()):
      return
    time.sleep(0.5)
  raise AssertionError("no checkpoint")


def pair(script, *arguments):
  """Two processes that run a script."""
  address = f"127.0.0.1:{free_port()}"
  own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  return [
    subprocess.Popen(
      [sys.executable, "-c", script, *arguments],
      env=os.environ | own | dict(zip(NAMES, (address, "2", str(index)))),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]


CRASH = """
import jax, time
from d4s_jax import errors
from d4s_jax.training import processes

def main(argv):
  with errors.one_line(), processes.telling():
    processes.join()
    if jax.process_index():
      raise {error}
    time.sleep(100)

errors.run(main)
"""


@pytest.mark.parametrize(
  "error, status", [("RuntimeError", errors.CRASHED), ("ValueError", errors.REFUSED)]
)
def test_all_processes_end_as_the_one_that_ended_them(error, status):
  running = pair(CRASH.format(error=f"{error}('why')"))
  said = [process.communicate(timeout=400)[0] for process in running]
  assert [process.returncode for process in running] == [status, status], said
  assert "error: process 1 ended: why" in said[0]


PARTLY = """
import pathlib, sys
import jax
from jax.sharding import NamedSharding, PartitionSpec
from d4s_jax.training import checkpoint, processes, recovery, sharding

processes.join()
from tests.training.test_checkpoint import make_state  # which computes

folder, mesh = pathlib.Path(sys.argv[1]), sharding.make_mesh(2)
cut = jax.tree.map(
  lambda x: NamedSharding(mesh, PartitionSpec("fsdp") if x.ndim == 2 else PartitionSpec()),
  jax.eval_shape(lambda: make_state(0)),
)
with jax.set_mesh(mesh):
  saved = checkpoint.Checkpoints(folder, keep=2)
  for step in (1, 2):
    now = jax.jit(lambda: make_state(step), out_shardings=cut)()
    saved.save(now)
  saved.close()
  restore = checkpoint.ocp.PyTreeCheckpointHandler.restore

  def partly(self, place, **options):
    if jax.process_index() and "/2/" in str(place):
      raise OSError("gone")
    return restore(self, place, **options)

  checkpoint.ocp.PyTreeCheckpointHandler.restore = partly
  found = recovery.newest(folder, None, now)
print("goes on at step", int(found.step), flush=True)
processes.wait("end")
"""


def test_a_checkpoint_that_one_of_them_cannot_read_is_left_by_all(tmp_path):
  said = finish(pair(PARTLY, str(tmp_path)), timeout=400)
  assert all("goes on at step 1" in text for text in said), said
  assert "gone" in said[1] and "process 1 could not do its part" in said[0]
  assert checkpoint.whole_steps(tmp_path) == [1]


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
  wish = processes.Wish("stop")
  assert wish.due(True, 3) and not wish.due(False, 3)
  assert processes.told([3, 4]) == [[3, 4]]
  exchange = processes.Exchange("nobody")
  assert exchange("a") == ["a"] and exchange("") == []
