"""Checkpoints: exact round trip, retention, damage."""

import asyncio
import dataclasses
import errno
import fcntl
import gc
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d4s_jax.training import checkpoint, state
from tests.support import full_disk

PARAMS = {
  # Noise, so that compression leaves most of it.
  "ldrm": {"kernel": jax.random.normal(jax.random.key(0), (64, 64)), "bias": jnp.zeros(3)},
  "fixed": jnp.full((2,), 5.0),
}


def make_state(step):
  now = state.create(PARAMS, ("^ldrm/",), optax.adam(1e-3))
  moved = jax.tree.map(lambda x: x + step, (now.trainable, now.average, now.optimizer))
  trainable, average, optimizer = moved
  return dataclasses.replace(
    now, step=now.step + step, trainable=trainable, average=average, optimizer=optimizer
  )


def save(folder, *steps, keep=3, **options):
  saved = checkpoint.Checkpoints(folder, keep, **options)
  for step in steps:
    saved.save(make_state(step))
  saved.wait()
  saved.close()


def test_round_trip_is_exact(tmp_path):
  save(tmp_path, 7)
  restored = checkpoint.read_state(tmp_path, 7, make_state(0))
  jax.tree.map(np.testing.assert_array_equal, restored, make_state(7))


def test_only_the_newest_are_kept(tmp_path):
  save(tmp_path, 1, 2, 3, 4, keep=2)
  names = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
  assert names == {"3", "4"}


def test_some_are_kept_for_ever_by_step_and_by_time(tmp_path):
  save(tmp_path, 1, 2, 3, 4, 5, 6, keep=1, keep_every=2)
  assert checkpoint.whole_steps(tmp_path) == [2, 4, 6]
  # The first and what comes an hour later, which is nothing here, but the newest.
  save(tmp_path / "timed", 1, 2, 3, 4, keep=1, keep_hours=1.0)
  assert checkpoint.whole_steps(tmp_path / "timed") == [1, 4]


def test_model_is_the_average_with_the_frozen_parts(tmp_path):
  save(tmp_path, 5)
  params, step = checkpoint.read_model(tmp_path, jax.eval_shape(lambda: PARAMS))
  assert step == 5
  np.testing.assert_array_equal(params["ldrm"]["kernel"], PARAMS["ldrm"]["kernel"] + 5)
  np.testing.assert_array_equal(params["fixed"], PARAMS["fixed"])


def largest_file(folder):
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_checkpoint_is_one_clear_error(tmp_path, damage):
  save(tmp_path, 3, 4)
  victim = largest_file(tmp_path / "checkpoints" / "4" / "model")
  if damage == "truncate":
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
  else:
    victim.unlink()
  with pytest.raises(checkpoint.CheckpointError, match="checkpoints/4 can't be read.*damaged") as e:
    checkpoint.read_model(tmp_path, jax.eval_shape(lambda: PARAMS))
  assert "\n" not in str(e.value)
  # The step before it is still good.
  shutil.rmtree(tmp_path / "checkpoints" / "4")
  assert checkpoint.read_model(tmp_path, jax.eval_shape(lambda: PARAMS))[1] == 3


def test_a_read_that_nobody_asks_for_any_more_says_nothing(tmp_path, caplog):
  """When one array fails Orbax gives up the others, whose own failures asyncio then logs."""
  with checkpoint.reading(tmp_path):
    pass

  async def fail(message):
    raise ValueError(message)

  async def forget(message):
    task = asyncio.get_running_loop().create_task(fail(message))
    await asyncio.sleep(0)
    del task

  for message in ("Encountered error while reading array index: 3", "something else"):
    asyncio.run(forget(message))
  gc.collect()
  assert [str(record.exc_info[1]) for record in caplog.records] == ["something else"]


def test_no_process_waits_in_a_sum_for_one_that_could_not_read(tmp_path, monkeypatch):
  save(tmp_path, 4)
  said = []
  monkeypatch.setattr(checkpoint, "sums", lambda _: pytest.fail("waits for ever"))
  monkeypatch.setattr(checkpoint.processes, "told", lambda ok: said.append(ok) or [ok, [0]])
  # Another one could not.
  with pytest.raises(checkpoint.DamagedError, match="process 1 could not do its part"):
    checkpoint.read_state(tmp_path, 4, make_state(0))
  # This one can't.
  largest_file(tmp_path / "checkpoints" / "4" / "model").unlink()
  with pytest.raises(checkpoint.DamagedError, match="can't be read"):
    checkpoint.read_state(tmp_path, 4, make_state(0))
  assert said == [[1], [0]]


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ESTALE, "Stale file handle"),
    Exception("UNAVAILABLE: try again"),
    ValueError("ABORTED: Error reading local file: Stale file handle [os_error_code='116']"),
  ],
)
def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, monkeypatch, error):
  save(tmp_path, 4)

  def fail(*_, **__):
    raise error

  monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", fail)
  with pytest.raises(type(error)) as raised:
    checkpoint.read_state(tmp_path, 4, make_state(0))
  assert raised.value is error


def test_a_single_bit_that_flipped_is_found(tmp_path):
  save(tmp_path, 4)
  for item, read in (("model", checkpoint.read_model), ("training", None)):
    victim = largest_file(tmp_path / "checkpoints" / "4" / item)
    good = bytearray(victim.read_bytes())
    bad = good.copy()
    bad[len(bad) // 2] ^= 1
    victim.write_bytes(bad)
    with pytest.raises(checkpoint.DamagedError, match="can't be read"):
      checkpoint.read_state(tmp_path, 4, make_state(0))
    if read:
      with pytest.raises(checkpoint.DamagedError, match="arrays are not what was written.*kernel"):
        read(tmp_path, jax.eval_shape(lambda: PARAMS))
    victim.write_bytes(good)
  checkpoint.read_state(tmp_path, 4, make_state(0))


def test_another_precision_is_read_on_request(tmp_path):
  save(tmp_path, 4)
  like = make_state(0)
  half = dataclasses.replace(
    like, frozen={name: x.astype(jnp.bfloat16) for name, x in like.frozen.items()}
  )
  restored = checkpoint.read_state(tmp_path, 4, jax.eval_shape(lambda: half))
  assert all(x.dtype == jnp.bfloat16 for x in restored.frozen.values())
  jax.tree.map(np.testing.assert_array_equal, restored.trainable, make_state(4).trainable)


def test_other_shapes_are_refused(tmp_path):
  save(tmp_path, 3)
  other = {**PARAMS, "fixed": jnp.zeros(3)}
  with pytest.raises(checkpoint.CheckpointError, match="can't be read"):
    checkpoint.read_model(tmp_path, jax.eval_shape(lambda: other))


def test_what_was_not_written_to_its_end_is_not_called_good(tmp_path, monkeypatch):
  saved = checkpoint.Checkpoints(tmp_path, keep=3)
  saved.save(make_state(1))
  saved.wait()
  with full_disk(100):
    with pytest.raises(checkpoint.CheckpointError, match="; 1 is good"):
      saved.save(make_state(2))
    # As if the disk had become full after the look at its room: Orbax writes in the background.
    monkeypatch.setattr(checkpoint, "_check_room", lambda *_: None)
    saved.save(make_state(2))
    assert saved.latest == 1
    with pytest.raises(checkpoint.CheckpointError, match="; 1 is good"):
      saved.save(make_state(3))
  assert saved.latest == 1


def test_where_a_disk_cannot_reserve_room_nothing_is_written_to_find_out(tmp_path, monkeypatch):
  """On NFS 3, say, glibc writes to every block; but not through a file that is appended to."""

  def emulated(descriptor, *_):
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND, "all of it would be written"
    raise OSError(errno.EBADF, "Bad file descriptor")

  monkeypatch.setattr(checkpoint.os, "posix_fallocate", emulated)
  usage = shutil.disk_usage(tmp_path)
  save(tmp_path, 1)
  monkeypatch.setattr(checkpoint.atomic.shutil, "disk_usage", lambda _: usage._replace(free=100))
  saved = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(checkpoint.CheckpointError, match="its disk has 100.*; 1 is good"):
    saved.save(make_state(2))
  saved.close()


FILLING = """
import pathlib, sys
from d4s_jax import errors
from d4s_jax.training import checkpoint
from tests.support import full_disk
from tests.training.test_checkpoint import make_state

checkpoint._check_room = lambda *_: None
with errors.one_line(), full_disk(5000):
  saved = checkpoint.Checkpoints(pathlib.Path(sys.argv[1]))
  saved.save(make_state(1))
  saved.wait()
"""


def test_a_disk_that_fills_while_it_is_written_to_is_one_line(tmp_path):
  # In a process of its own: what the threads of Orbax print comes when they like, and on a busy
  # machine one of them may be late with a traceback of its own (seen once in some hundred runs).
  for attempt in range(3):
    command = [sys.executable, "-c", FILLING, tmp_path / str(attempt)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *more, line = done.stderr.splitlines()
    assert "can't be written" in line and "no checkpoint was written yet. Make room" in line
    if not more:
      return
  pytest.fail(done.stderr)
