"""What a clip, its disk and its network may do to a worker."""

import errno
import multiprocessing
import os

import pytest

from d4s_jax.curation import estimates, guard
from d4s_jax.curation.guard import Guard
from d4s_jax.curation.settings import Settings
from tests.curation import hangs
from tests.curation.rows import row
from tests.data.records import scene_record


@pytest.fixture
def patient(tmp_path, monkeypatch):
  monkeypatch.setattr(guard, "PAUSES", (0, 0, 0))
  return Guard(tmp_path, 60)


def work_of(told, count, *errors):
  """A function that fails so many times, and then doesn't; files it reads count the calls."""

  def function():
    told.append(1)
    if len(told) <= count:
      raise errors[0]
    return "done"

  return function


def wrapped(number):
  """An error of the system as a reader of a format tells it."""
  try:
    try:
      raise OSError(number, os.strerror(number), "film.mp4")
    except OSError as error:
      raise ValueError("film.mp4 cannot be read") from error
  except ValueError as error:
    return error


def test_what_is_wrong_with_a_file_is_told_at_once(patient):
  told = []
  failed = patient.run("a", work_of(told, 9, ValueError("film.mp4 is\n no film")))
  assert failed == (None, "film.mp4 is no film", False) and len(told) == 1
  assert patient.run("a", work_of(told, 0)).result == "done"
  assert patient.run("a", work_of([], 9, KeyError("x"))).failed == "KeyError: 'x'"
  assert not list(patient.attempts.iterdir())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_comes_back_is_waited_for(patient, number):
  for error in (OSError(number, "away"), wrapped(number)):
    told = []
    assert patient.run("a", work_of(told, 3, error)) == ("done", "", False)
    assert len(told) == 4
    failed = patient.run("a", work_of([], 9, error))
    assert failed.again and "the same command tries it again" in failed.failed


def test_a_full_disk_and_a_server_that_is_down_are_no_fault_of_a_clip(patient):
  for error in (OSError(errno.ENOSPC, "full"), wrapped(errno.EDQUOT), ConnectionError("down")):
    with pytest.raises((ValueError, OSError)):
      patient.run("a", work_of([], 9, error))


@pytest.mark.parametrize(
  ("function", "patience", "reason"),
  [
    (hangs.spin, 0.5, "does not end within 0.5 s"),
    (hangs.sleep, 0.5, "does not end within 0.5 s"),
    (hangs.kill, 60, "its worker crashes, repeatedly"),
  ],
)
def test_a_clip_that_hangs_or_kills_its_worker_is_given_up(tmp_path, function, patience, reason):
  """The first attempts end their workers; then it is tried in a process apart."""
  context = multiprocessing.get_context("spawn")
  for attempt in range(guard.SUSPICIOUS):
    worker = context.Process(target=hangs.guarded, args=(tmp_path, patience, function))
    worker.start()
    worker.join(60)
    assert worker.exitcode not in (None, 0)
    assert Guard(tmp_path, 1).before("a") == attempt + 1
  failed = Guard(tmp_path, patience).run("a", function)
  assert reason in failed.failed and not failed.again
  assert not list(tmp_path.iterdir())


def test_a_network_that_is_gone_is_no_clip_that_hangs(patient):
  """Nor is it in a process apart, where the guard waits for the result."""
  patient._marker("a").write_bytes(b"..")
  failed = patient.run("a", hangs.away)
  assert failed.again and "Connection timed out" in failed.failed
  assert "tries it again" in failed.failed and "does not end" not in failed.failed


def test_clips_that_were_under_way_are_asked_about_alone_and_then_no_more(tmp_path, monkeypatch):
  batches = []

  def captioner():
    return lambda clips: batches.append([x.unit for x in clips]) or ["a cat"] * len(clips)

  monkeypatch.setattr(estimates.plugins, "open_estimator", lambda kind, name: captioner())
  made = estimates.Estimators(Settings(plugins={"captions": "a:b"}), Guard(tmp_path, 60))
  rows = [row(scene_record(0), f"{letter}.mp4") for letter in "abcd"]
  for letter, deaths in (("b", 1), ("d", 3)):
    marker = made._guard._marker(f"asking about videos/{letter}.mp4/3-19")
    marker.write_bytes(b"." * deaths)
  done = made.estimate(*rows)
  assert batches == [["videos/a.mp4", "videos/c.mp4"], ["videos/b.mp4"]]
  assert [bool(x["failed"]) for x in done] == [False, False, False, True]
  assert "process crashes on it, or doesn't end" in done[3]["failed"]
  assert not list(tmp_path.iterdir())
