"""What a run says while it goes: skipped updates, and Gaussians that died."""

import re
from types import SimpleNamespace
from typing import Any

from d4s_jax.training.record import Record


def told(tmp_path, capsys, steps):
  saved: Any = SimpleNamespace()
  with Record(tmp_path, 0, len(steps), saved) as record:
    for number, changes in enumerate(steps, start=1):
      usual = {"loss": 1.0, "gradient_norm": 2.0, "finite": True, "skipped": False, "dead": 0.1}
      record.train(number, usual | changes)
    record.flush()
  captured = capsys.readouterr()
  return re.findall(r"step (\d+: [^\n]+)", captured.out + captured.err)


def test_a_skipped_update_is_explained_and_counted(tmp_path, capsys):
  lines = told(tmp_path, capsys, [{}, {"skipped": True, "gradient_norm": 123.0}, {}])
  (line,) = (line for line in lines if "skipped" in line)
  assert line.startswith("2: gradient norm 123") and "optimizer.peak" in line
  rows = (tmp_path / "train.csv").read_text().splitlines()
  column = rows[0].split(",").index("skipped")
  assert [float(row.split(",")[column]) for row in rows[1:]] == [0, 1, 0]


def test_dead_gaussians_are_explained_once(tmp_path, capsys):
  lines = told(tmp_path, capsys, [{}, {"dead": 0.7}, {"dead": 0.8}])
  (line,) = (line for line in lines if "transparent" in line)
  assert line.startswith("2: 70% of the Gaussians") and "opacity_bias" in line
