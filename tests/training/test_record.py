"""What a run says while it goes: skipped updates, Gaussians that died, what was left out."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from d4s_jax.training import clock
from d4s_jax.training.log import read_metrics
from d4s_jax.training.record import Record, TrainingDiverged

USUAL = {
  "loss": 1.0,
  "gradient_norm": 2.0,
  "finite": True,
  "skipped": False,
  "dead": 0.1,
  "overflow": 0,
}


def make(folder, start=0, steps=10, corrupt=lambda: 0):
  saved: Any = SimpleNamespace(wait=lambda: None, latest=None)
  diagnose = "the batch is {}.".format
  return Record(folder, start, steps, saved, clock.Clock(), diagnose, corrupt)


def told(tmp_path, capsys, steps, heldout=()):
  with make(tmp_path) as record:
    for number, changes in enumerate(steps, start=1):
      record.train(number, USUAL | changes, None)
      if number in heldout:
        record.heldout(number, {"psnr": 20.0})
    record.flush()
  captured = capsys.readouterr()
  return re.findall(r"step (\d+: [^\n]+)", captured.out + captured.err)


def test_a_skipped_update_is_explained_and_counted(tmp_path, capsys):
  lines = told(tmp_path, capsys, [{}, {"skipped": True, "gradient_norm": 123.0}, {}])
  (line,) = (line for line in lines if "skipped" in line)
  assert line.startswith("2: gradient norm 123") and "optimizer.peak" in line
  assert [row["skipped"] for row in read_metrics(tmp_path, "train")] == [0, 1, 0]


def test_clips_that_could_not_be_read_are_in_the_accounts_of_a_run(tmp_path):
  """Of two starts; each account has those since the one before, so that a kill loses few."""
  for start, so_far in ((0, [2, 2, 5]), (3, [1])):
    counts = iter(so_far)
    with make(tmp_path, start, corrupt=lambda counts=counts: next(counts)) as record:
      for number in range(start + 1, start + 1 + len(so_far)):
        record.train(number, USUAL, None)
        record.settle()
  told = [row["corrupt"] for row in read_metrics(tmp_path, "watch") if "corrupt" in row]
  assert told == [2, 0, 3, 1]


@pytest.mark.parametrize(
  ("bad", "text", "remedy"),
  [
    ({"dead": 0.7}, "70% of the Gaussians", "opacity_bias"),
    ({"overflow": 5}, "no room for 5 meetings", "optimizer.peak"),
  ],
)
def test_what_goes_on_is_explained_once_between_looks_at_heldout_clips(
  tmp_path, capsys, bad, text, remedy
):
  lines = told(tmp_path, capsys, [{}, bad, bad, bad, {}, bad, bad, {}], heldout=(3,))
  found = [line for line in lines if text in line]
  assert [line.split(":")[0] for line in found] == ["2", "4"] and remedy in found[0]


def test_the_message_of_a_run_that_diverges_has_the_diagnosis_of_its_batch(tmp_path):
  with pytest.raises(TrainingDiverged, match="^Step 2 is not finite: the batch is B2. The update"):
    with make(tmp_path) as record:
      for number in (1, 2, 3):
        record.train(number, USUAL | {"finite": number < 2}, f"B{number}")
  assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1]


def test_account_of_a_run_over_its_starts(tmp_path, capsys, monkeypatch):
  """Three processes: the first dies at step 7, with a checkpoint of step 4; then a stop, then 8."""
  now = [100.0]
  monkeypatch.setattr("time.perf_counter", lambda: now[0])
  monkeypatch.setattr("time.time", lambda: now[0])

  def go(start, last, seconds, dies):
    now[0] += 1000  # nobody was at work
    record = make(tmp_path, start)
    now[0] += 3
    for number in range(start + 1, last + 1):
      with record.time.part("data"):
        now[0] += seconds
      record.train(number, USUAL, None)
      if number == 4:
        record.settle()
    if not dies:
      record.finish(last)
      return
    record.flush()

  go(0, 7, 2.0, dies=True)
  go(4, 6, 1.0, dies=False)
  go(6, 8, 1.0, dies=False)
  rows = read_metrics(tmp_path, "watch")
  found = clock.summary(rows)
  # The first one's last line is that of step 7: steps 5 to 7 are lost, what came before is not.
  assert found["lost"] == pytest.approx(6.0) and found["starts"] == 3
  assert found["start"] == pytest.approx(9.0)
  assert found["steps"] + found["data"] == pytest.approx(8.0 + 2.0 + 2.0)
  assert found["total"] == pytest.approx(9 + 6 + 12) and found["host_gib"] > 0.1
  assert "in 3 start(s)" in capsys.readouterr().out
  assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
