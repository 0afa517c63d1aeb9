"""Where the numbers of a run go: a progress line, JSON lines, TensorBoard, and a picture of curves.

FOLDER/metrics.jsonl has one object a line::

  {"log": "train", "step": 5, "time": 1767225600.25, "loss": 0.5, ...}

`log` says of what it is: "train", of each update; "heldout", scores; "watch", where time went since
the line of this kind before (`training.clock`). `time` is when it was written, in seconds of Unix
time. A number that is not finite is null.
"""

import json
import math
import pathlib
import time
from typing import Any

import numpy as np
import tqdm
from tensorboardX import SummaryWriter

_FILE = "metrics.jsonl"
Line = dict[str, Any]


class MetricLog:
  """Appends lines to FOLDER/metrics.jsonl, and their numbers to TensorBoard.

  A resumed run first drops the lines after its start, so that each step has exactly one of each
  kind; a run that starts at 0 starts empty. `found` are the lines before anything was dropped.
  """

  def __init__(self, folder: pathlib.Path, start: int):
    """Opens the file, keeping its lines up to step `start` if that is not 0."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FILE
    self.found = _read(path)
    # Scores at step 0 belong to the run that starts there, and it writes them itself.
    kept = [line for line in self.found if 0 < start >= line["step"]]
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(path)
    self._file = path.open("a")
    self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, max_queue=100)

  def write(self, log: str, step: int, metrics: dict[str, float]) -> None:
    """Writes the numbers of a log after `step` updates."""
    numbers = {key: _number(value) for key, value in metrics.items()}
    line = {"log": log, "step": step, "time": round(time.time(), 3), **numbers}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    for key, value in metrics.items():
      self._board.add_scalar(f"{log}/{key}", value, step)

  def close(self) -> None:
    """Flushes and closes both files."""
    self._file.close()
    self._board.close()


def _number(value: float) -> float | int | None:
  """Nine digits, which are all that float32 has."""
  if not math.isfinite(value):
    return None
  return int(value) if float(value).is_integer() and abs(value) < 1e15 else float(f"{value:.9g}")


def _read(path: pathlib.Path) -> list[Line]:
  """The lines of a file; a last one that a kill or a full disk cut short is left out."""
  if not path.exists():
    return []
  whole, _, _ = path.read_text().rpartition("\n")
  return [json.loads(line) for line in whole.splitlines()]


def read_metrics(folder: pathlib.Path, log: str) -> list[dict[str, float]]:
  """The steps and numbers of one log of a run, line by line; empty without a file."""
  return [
    {key: math.nan if value is None else value for key, value in line.items() if key not in _ABOUT}
    for line in _read(folder / _FILE)
    if line["log"] == log
  ]


# Keys of a line that are no numbers of its step.
_ABOUT = ("log", "time")


class Progress:
  """One line on the terminal: step, loss, speed and the time left."""

  def __init__(self, start: int, steps: int, shown: bool = True):
    self._bar = tqdm.tqdm(
      disable=not shown,
      total=steps,
      initial=start,
      desc="train",
      unit="step",
      dynamic_ncols=True,
      mininterval=1.0,
      smoothing=0.05,
    )

  def update(self, metrics: dict[str, float]) -> None:
    """Advances by one step and shows these numbers."""
    text = " ".join(f"{key} {value:.3g}" for key, value in metrics.items())
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update()

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    self._bar.write(text)

  def close(self) -> None:
    """Leaves the finished line on the terminal."""
    self._bar.close()


def ends(rows: list[dict[str, float]], share: float = 0.1) -> dict[str, tuple[float, float]]:
  """The mean of each metric over the first and the last share of the rows."""
  count = max(1, math.ceil(share * len(rows)))
  columns = [key for key in rows[0] if key != "step"]
  return {
    key: (
      float(np.mean([row[key] for row in rows[:count]])),
      float(np.mean([row[key] for row in rows[-count:]])),
    )
    for key in columns
  }


def draw_curves(
  folder: pathlib.Path, names: tuple[str, ...] = ("train", "heldout")
) -> pathlib.Path:
  """Draws every metric of these logs over the steps into FOLDER/curves.png."""
  from matplotlib.figure import Figure  # imported here: slow, and only needed at the end

  series = {}
  for name in names:
    for row in read_metrics(folder, name):
      for key, value in row.items():
        if key != "step":
          series.setdefault(f"{name}/{key}", []).append((row["step"], value))
  columns = 4
  rows = max(1, math.ceil(len(series) / columns))
  figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
  for index, (title, points) in enumerate(series.items()):
    axes = figure.add_subplot(rows, columns, index + 1)
    steps, values = np.array(points).T
    dense = len(values) > 40
    axes.plot(steps, values, color="#9ecae1" if dense else "#08519c", linewidth=1, marker="")
    if dense:
      window = max(2, len(values) // 25)
      kernel = np.ones(window) / window
      axes.plot(steps[window - 1 :], np.convolve(values, kernel, "valid"), color="#08519c")
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
  path = folder / "curves.png"
  figure.savefig(path, dpi=100)
  return path
