"""Where the numbers of a run go: a progress line, CSV, TensorBoard, and a picture of the curves."""

import csv
import math
import pathlib

import numpy as np
import tqdm
from tensorboardX import SummaryWriter


class MetricLog:
  """Appends one row of numbers for each step to a CSV file and to TensorBoard.

  A resumed run first drops the rows after its start, so each step has exactly one row; a run that
  starts at 0 starts empty.
  """

  def __init__(self, folder: pathlib.Path, name: str, start: int):
    """Opens FOLDER/NAME.csv, keeping its rows up to step `start` if that is not 0."""
    folder.mkdir(parents=True, exist_ok=True)
    self.path = folder / f"{name}.csv"
    self._name = name
    # Scores at step 0 belong to the run that starts there, and it writes them itself.
    rows = [row for row in read_metrics(self.path) if row["step"] <= start] if start else []
    self._columns = list(rows[0]) if rows else None
    temporary = self.path.with_suffix(".csv.tmp")
    with temporary.open("w", newline="") as file:
      if self._columns:
        writer = csv.DictWriter(file, self._columns)
        writer.writeheader()
        writer.writerows({key: _number(value) for key, value in row.items()} for row in rows)
    temporary.replace(self.path)
    self._file = self.path.open("a", newline="")
    self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, max_queue=100)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics after `step` updates; every row of a log has the same columns."""
    row = {"step": step, **metrics}
    if self._columns is None:
      self._columns = list(row)
      csv.DictWriter(self._file, self._columns).writeheader()
    values = {key: _number(value) for key, value in row.items()}
    csv.DictWriter(self._file, self._columns).writerow(values)
    self._file.flush()
    for key, value in metrics.items():
      self._board.add_scalar(f"{self._name}/{key}", value, step)

  def close(self) -> None:
    """Flushes and closes both files."""
    self._file.close()
    self._board.close()


def _number(value: float) -> str:
  return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.9g}"


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
  """The rows of a metrics file; a last line that a kill or a full disk cut short is left out."""
  if not path.exists():
    return []
  whole, _, _ = path.read_text().rpartition("\n")
  rows = list(csv.reader(whole.splitlines()))
  if not rows:
    return []
  columns = rows[0]
  return [
    {key: float(value) for key, value in zip(columns, row)}
    for row in rows[1:]
    if len(row) == len(columns)
  ]


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
  """Draws every metric of FOLDER/NAME.csv over the steps into FOLDER/curves.png."""
  from matplotlib.figure import Figure  # imported here: slow, and only needed at the end

  series = {}
  for name in names:
    for row in read_metrics(folder / f"{name}.csv"):
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
