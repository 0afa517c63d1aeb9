"""Going on from the newest of checkpoints and emergency copies that can be read."""

import dataclasses
import errno
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax import errors
from d4s_jax.training import checkpoint, recovery, run_folder
from d4s_jax.training.emergency import Copies
from tests.training.test_checkpoint import largest_file, make_state, save
from tests.training.test_run_folder import CONFIG, DATA

OPTIONS = types.SimpleNamespace(local="", every=10, minutes=0.0, local_every=1)


def copies_of(folder, *steps):
  copies = Copies(str(folder), "run")
  for step in steps:
    copies.save(make_state(step))
  copies.wait()
  return copies


def same(state, step):
  jax.tree.map(np.testing.assert_array_equal, state, make_state(step))
  return True


def cut(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_the_newer_of_both_is_taken(tmp_path):
  assert recovery.newest(tmp_path, None, make_state(0)) is None
  save(tmp_path, 3)
  assert same(recovery.newest(tmp_path, None, make_state(0)), 3)
  copies = copies_of(tmp_path / "local", 2, 3, 5)
  assert copies.steps() == [3, 5]
  assert same(recovery.newest(tmp_path, copies, make_state(0)), 5)
  save(tmp_path, 6)
  assert same(recovery.newest(tmp_path, copies, make_state(0)), 6)


@pytest.mark.parametrize("damage", ["cut", "bit", "unreadable"])
def test_what_is_damaged_is_set_aside_and_the_one_before_serves(tmp_path, capsys, damage):
  save(tmp_path, 3, 4, 6)
  copies = copies_of(tmp_path / "local", 5, 7)
  local = tmp_path / "local" / "run" / "0_of_1"
  for victim in (
    largest_file(tmp_path / "checkpoints" / "4" / "training"),
    largest_file(tmp_path / "checkpoints" / "6" / "model"),
    local / "5.safetensors",
    local / "7.safetensors",
  ):
    contents = bytearray(victim.read_bytes())
    contents[len(contents) // 2] ^= 1
    victim.write_bytes(
      {"cut": contents[: len(contents) // 2], "bit": contents, "unreadable": b""}[damage]
    )
  assert same(recovery.newest(tmp_path, copies, make_state(0)), 3)
  said = capsys.readouterr().out
  assert [said.count(f"step {step} is not used") for step in (3, 4, 5, 6, 7)] == [0, 1, 1, 1, 1]
  assert checkpoint.whole_steps(tmp_path) == [3] and copies.steps() == []
  assert sorted(x.name[0] for x in (tmp_path / "damaged").iterdir()) == ["4", "6"]
  assert {x.name for x in local.iterdir()} == {"5.damaged", "7.damaged"}
  # And again, as if nothing had been.
  assert same(recovery.newest(tmp_path, copies, make_state(0)), 3)


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.EIO, "Input/output error"),
    ValueError("UNKNOWN: Error reading local file: Input/output error [os_error_code='5']"),
  ],
)
def test_the_one_before_serves_where_a_block_of_a_disk_went_bad(tmp_path, monkeypatch, error):
  save(tmp_path, 3, 4)
  restore = checkpoint.ocp.PyTreeCheckpointHandler.restore

  def unreadable(self, place, **options):
    if "/3/" not in str(place):
      raise Exception("Encountered error while reading array index") from error
    return restore(self, place, **options)

  monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", unreadable)
  assert same(recovery.newest(tmp_path, None, make_state(0)), 3)
  assert checkpoint.whole_steps(tmp_path) == [3]
  # The whole disk may be read again tomorrow.
  shutil.rmtree(tmp_path / "checkpoints" / "3")
  save(tmp_path, 4)
  with pytest.raises(checkpoint.CheckpointError, match="Nothing that was saved") as raised:
    recovery.newest(tmp_path, None, make_state(0))
  assert errors.status(raised.value) == errors.UNREACHABLE


def test_if_nothing_can_be_read_nothing_is_touched(tmp_path):
  save(tmp_path, 3, 4)
  for step in ("3", "4"):
    cut(largest_file(tmp_path / "checkpoints" / step / "model"))
  with pytest.raises(checkpoint.CheckpointError, match="Nothing that was saved of .* can be read"):
    recovery.newest(tmp_path, None, make_state(0))
  assert checkpoint.whole_steps(tmp_path) == [3, 4]


def test_another_configuration_is_not_taken_for_damage(tmp_path):
  save(tmp_path, 3, 4)
  other = dataclasses.replace(make_state(0), frozen={"fixed": jnp.zeros(3)})
  with pytest.raises(
    checkpoint.CheckpointError, match="of another configuration .fixed: .2,. ther"
  ):
    recovery.newest(tmp_path, None, other)
  assert checkpoint.whole_steps(tmp_path) == [3, 4]


def test_copies_that_another_process_lacks_do_not_take_the_place_of_new_ones(tmp_path, monkeypatch):
  """Its host was replaced: what is on this one's disk is of no use."""
  save(tmp_path, 4)
  ours, theirs = copies_of(tmp_path / "ours", 6, 7), copies_of(tmp_path / "theirs")
  monkeypatch.setattr(
    recovery.processes,
    "told",
    lambda numbers: [numbers, theirs.steps() if numbers == ours.steps() else numbers],
  )
  assert same(recovery.newest(tmp_path, ours, make_state(0)), 4)
  for copies in (ours, theirs):
    copies.save(make_state(5))
    copies.wait()
  assert ours.steps() == theirs.steps() == [5]
  # Nor those of a run that starts anew.
  theirs.set_aside(5)
  assert recovery.newest(tmp_path / "none", ours, make_state(0)) is None
  assert ours.steps() == []


def begun(folder):
  """A run that left an emergency copy before its first checkpoint, and where such copies lie."""
  run, options = folder / "run", types.SimpleNamespace(local=str(folder / "local"))
  run_folder.write_config(run, CONFIG, DATA)
  copies = recovery.open_copies(run, options)
  copies.save(make_state(5))
  copies.close()
  return run, options


def test_copies_of_another_run_are_not_seen(tmp_path):
  run, options = begun(tmp_path)
  # A run that was cut short before its first checkpoint goes on from its copy.
  run_folder.write_config(run, {**CONFIG, "steps": 20}, DATA)
  assert recovery.open_copies(run, options).steps() == [5]
  # One that starts there with another configuration does not.
  run_folder.write_config(run, {**CONFIG, "seed": 1}, DATA)
  assert recovery.open_copies(run, options).steps() == []


def test_copies_of_other_data_are_not_seen(tmp_path):
  run, options = begun(tmp_path)
  run_folder.write_config(run, CONFIG, DATA)
  assert recovery.open_copies(run, options).steps() == [5]
  run_folder.write_config(run, CONFIG, {"clips": 4})
  assert recovery.open_copies(run, options).steps() == []


def test_saves_come_by_step_and_by_time(tmp_path, monkeypatch):
  saved, copies = checkpoint.Checkpoints(tmp_path, keep=9), Copies(str(tmp_path / "local"), "run")
  options = types.SimpleNamespace(every=4, minutes=1.0, local_every=2)
  clock = [0.0]
  monkeypatch.setattr(recovery.time, "monotonic", lambda: clock[0])
  saves = recovery.Saves(saved, copies, options)
  for step in range(1, 12):
    clock[0] += 25.0
    saves.after(step, make_state(step), lambda: None, must=step == 11)
  saves.close()
  # After 75 s, at 4 though it is due at 6 only, and so on.
  assert checkpoint.whole_steps(tmp_path) == [3, 4, 7, 8, 11]
  assert copies.steps() == [6, 10]


def test_a_checkpoint_is_waited_for_after_a_tenth_of_the_interval(monkeypatch):
  said, clock = [], [0.0]
  saved = types.SimpleNamespace(
    save=lambda state: said.append(f"save {state}"), wait=lambda: said.append("wait")
  )
  monkeypatch.setattr(recovery.time, "monotonic", lambda: clock[0])
  saves = recovery.Saves(saved, None, types.SimpleNamespace(every=40, minutes=1.0))
  for step in range(40, 45):
    saves.after(step, step, said.clear, must=False)
    said.append(step)
  assert said == ["save 40", 40, 41, 42, 43, "wait", 44]
  # By time, where steps are slow.
  saves.after(80, 80, said.clear, must=False)
  for step in (81, 82):
    clock[0] += 5.0
    saves.after(step, step, said.clear, must=False)
    said.append(step)
  assert said == ["save 80", 81, "wait", 82]


def test_what_was_begun_before_an_error_is_still_written(tmp_path, monkeypatch, capsys):
  options = types.SimpleNamespace(every=1, minutes=0)
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  with pytest.raises(ValueError, match="what ended it"):
    with recovery.Saves(saved, None, options) as saves:
      saves.after(1, make_state(1), lambda: None, must=False)
      raise ValueError("what ended it")
  state = recovery.newest(tmp_path, None, make_state(0))
  jax.tree.map(np.testing.assert_array_equal, state, make_state(1))

  def full():
    raise checkpoint.CheckpointError("no room")

  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  monkeypatch.setattr(saved, "close", full)
  with pytest.raises(ValueError, match="what ended it"):
    with recovery.Saves(saved, None, options):
      raise ValueError("what ended it")
  assert capsys.readouterr().out == "WARNING: no room\n"


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
  copies_of(tmp_path, 1)
  half = tmp_path / "run" / "0_of_1" / ".2.safetensors.00112233.safetensors"
  half.write_bytes(b"half")
  assert Copies(str(tmp_path), "run").steps() == [1] and not half.exists()


def test_a_copy_that_cannot_be_written_is_one_clear_error(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(checkpoint.CheckpointError, match="leave out --config.checkpoint.local"):
    Copies(str(tmp_path / "file"), "run")
  copies = copies_of(tmp_path / "local", 1)
  (tmp_path / "local" / "run" / "0_of_1").rename(tmp_path / "gone")
  (tmp_path / "local" / "run").rmdir()
  (tmp_path / "local" / "run").touch()
  copies.save(make_state(2))
  with pytest.raises(checkpoint.CheckpointError, match="can't be written"):
    copies.close()
