"""Metric files: one row a step, also after a resumed or a killed run."""

from d4s_jax.training.log import MetricLog, draw_curves, ends, read_metrics


def write(folder, start, steps):
  log = MetricLog(folder, "train", start)
  for step in steps:
    log.write(step, {"loss": 1 / step, "overflow": 0})
  log.close()


def test_resumed_run_has_each_step_once(tmp_path):
  write(tmp_path, 0, range(1, 8))
  write(tmp_path, 5, range(6, 10))
  rows = read_metrics(tmp_path / "train.csv")
  assert [row["step"] for row in rows] == list(range(1, 10))
  assert rows[2]["loss"] == 1 / 3 or abs(rows[2]["loss"] - 1 / 3) < 1e-9  # nine digits are written


def test_row_cut_short_anywhere_is_left_out(tmp_path):
  write(tmp_path, 0, range(1, 5))
  path = tmp_path / "train.csv"
  text = path.read_text()
  last = text[: text.rstrip("\n").rindex("\n") + 1]
  for end in range(len(last), len(text)):
    path.write_text(text[:end])
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3], text[len(last) : end]


def test_a_run_that_starts_anew_starts_an_empty_log(tmp_path):
  write(tmp_path, 0, range(1, 4))
  write(tmp_path, 0, range(1, 3))
  assert [row["step"] for row in read_metrics(tmp_path / "train.csv")] == [1, 2]


def test_ends_are_means_of_both_tenths():
  rows = [{"step": float(i), "loss": float(i)} for i in range(1, 41)]
  assert ends(rows) == {"loss": (2.5, 38.5)}


def test_curves_are_drawn(tmp_path):
  from PIL import Image

  write(tmp_path, 0, range(1, 60))
  path = draw_curves(tmp_path)
  colors = Image.open(path).convert("RGB").getcolors(1 << 24)
  assert len(colors) > 10  # lines and labels, not an empty sheet
