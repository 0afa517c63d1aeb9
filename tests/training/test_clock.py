"""Where time goes: parts that add up, and steps that count whatever the host does meanwhile."""

import threading
import time

import jax
import pytest

from d4s_jax.training import clock


class Output:
  """A result of a step that runs until it is released; `jax.block_until_ready` waits for it."""

  def __init__(self):
    self._done = threading.Event()

  def block_until_ready(self):
    self._done.wait()
    return self

  def finish(self, watch):
    self._done.set()
    while watch._running:
      time.sleep(0.001)


@pytest.fixture
def watch():
  found = clock.Clock()
  yield found
  found.close()


def test_parts_nest_and_add_up(watch, monkeypatch):
  now = [5.0]
  watch.take()
  watch._last = now[0]
  monkeypatch.setattr("time.perf_counter", lambda: now[0])
  now[0] += 1
  with watch.part("heldout"):
    now[0] += 2
    with watch.part("logging"):
      now[0] += 4
    now[0] += 8
  now[0] += 16
  assert watch.take() == {"start": 17, "heldout": 10, "logging": 4}
  assert sum(watch.take().values()) == 0


def test_while_a_step_runs_time_is_its_own(watch):
  output = Output()
  watch.started(output)
  with watch.part("checkpoint"):
    time.sleep(0.1)
  output.finish(watch)
  with watch.part("data"):
    time.sleep(0.05)
  found = watch.take()
  assert found["steps"] >= 0.1 and found["data"] >= 0.05
  assert found.get("checkpoint", 0) < 0.05, found
  # The first step is where the start ends.
  time.sleep(0.01)
  assert watch.take().keys() == {"other"}


def test_a_step_that_fails_does_not_stop_the_clock(watch):
  class Failing:
    def block_until_ready(self):
      raise RuntimeError("out of memory")

  watch.started(Failing())
  output = Output()
  watch.started(output)
  output.finish(watch)
  assert not watch._running


def test_real_steps_are_waited_for(watch):
  step = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: y @ y / 2, x))
  x = jax.block_until_ready(step(jax.numpy.eye(200)))
  watch.take()
  begin = time.perf_counter()
  output = step(x)
  watch.started(output)
  jax.block_until_ready(output)
  seconds = time.perf_counter() - begin
  time.sleep(0.01)
  assert watch.take()["steps"] == pytest.approx(seconds, abs=0.5 * seconds + 0.01)


def test_memory_is_that_of_this_process():
  held = bytearray(b"x" * 2**20)
  assert 0.05 < clock.memory()["host_gib"] < 100 and len(held) == 2**20


def test_nothing_is_lost_without_lines_or_after_a_clean_end():
  assert clock.carried([], 0) == {"lost": 0, "starts": 1}
  lines = [
    {"log": "watch", "step": 0, "time": 10.0, "lost": 0.0, "start": 2.0, "starts": 1},
    {"log": "train", "step": 1, "time": 11.0},
    {"log": "watch", "step": 1, "time": 11.0, "steps": 1.0},
  ]
  assert clock.carried(lines, 1) == {"lost": 0, "starts": 1}
  # Without a checkpoint all of it is.
  assert clock.carried(lines, 0) == {"lost": 3.0, "starts": 2}


def test_one_sentence_says_it_all():
  rows = [{"lost": 1.0, "starts": 1, "start": 9.0}, {"steps": 80.0, "data": 10.0, "host_gib": 1.5}]
  text = clock.sentence(clock.summary(rows))
  assert text == (
    "time: 100 s in 1 start(s), 80.0% of it in steps that counted (data 10.0%, start 9.0%,"
    " lost 1.0%); memory: at most 1.5 GiB of the host"
  )
