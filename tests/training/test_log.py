"""The file of metrics: one line a step, also after a resumed or a killed run."""

import json
import math

import pytest

from d4s_jax.training.log import MetricLog, draw_curves, ends, read_metrics


def write(folder, start, steps):
  log = MetricLog(folder, start)
  for step in steps:
    log.write("train", step, {"loss": 1 / step, "overflow": 0})
  log.close()


def test_resumed_run_has_each_step_once(tmp_path):
  write(tmp_path, 0, range(1, 8))
  write(tmp_path, 5, range(6, 10))
  rows = read_metrics(tmp_path, "train")
  assert [row["step"] for row in rows] == list(range(1, 10))
  assert rows[2]["loss"] == 1 / 3 or abs(rows[2]["loss"] - 1 / 3) < 1e-9  # nine digits are written


def test_row_cut_short_anywhere_is_left_out(tmp_path):
  write(tmp_path, 0, range(1, 5))
  path = tmp_path / "metrics.jsonl"
  text = path.read_text()
  last = text[: text.rstrip("\n").rindex("\n") + 1]
  for end in range(len(last), len(text)):
    path.write_text(text[:end])
    assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1, 2, 3], text[
      len(last) : end
    ]


def test_a_run_that_starts_anew_starts_an_empty_log(tmp_path):
  write(tmp_path, 0, range(1, 4))
  write(tmp_path, 0, range(1, 3))
  assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1, 2]


def test_a_line_is_json_that_says_what_it_is(tmp_path):
  log = MetricLog(tmp_path, 0)
  log.write("heldout", 3, {"psnr": math.nan, "loss": 0.125})
  log.close()
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
  assert strict.pop("time") > 1.7e9
  assert strict == {"log": "heldout", "step": 3, "psnr": None, "loss": 0.125}
  (row,) = read_metrics(tmp_path, "heldout")
  assert math.isnan(row["psnr"]) and not read_metrics(tmp_path, "train")


def test_logs_share_a_file_and_are_cut_together(tmp_path):
  for start, steps in ((0, range(1, 8)), (4, range(5, 7))):
    log = MetricLog(tmp_path, start)
    for step in steps:
      log.write("train", step, {"loss": 1.0})
      if step % 2 == 0:
        log.write("heldout", step, {"psnr": 1.0})
    log.close()
  assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]
  assert [row["step"] for row in read_metrics(tmp_path, "heldout")] == [2, 4, 6]


def test_ends_are_means_of_both_tenths():
  rows = [{"step": float(i), "loss": float(i)} for i in range(1, 41)]
  assert ends(rows) == {"loss": (2.5, 38.5)}


def test_curves_are_drawn(tmp_path):
  from PIL import Image

  write(tmp_path, 0, range(1, 60))
  path = draw_curves(tmp_path)
  colors = Image.open(path).convert("RGB").getcolors(1 << 24)
  assert len(colors) > 10  # lines and labels, not an empty sheet
