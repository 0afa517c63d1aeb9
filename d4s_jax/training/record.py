"""What a run writes down while it goes: metrics, held-out scores, why it ended if it diverged."""

import pathlib
from typing import Any

import jax
import numpy as np

from d4s_jax.training import processes
from d4s_jax.training.checkpoint import Checkpoints
from d4s_jax.training.log import MetricLog, Progress

# Share of transparent Gaussians from which on something is wrong.
_MANY_DEAD = 0.5


class TrainingDiverged(ValueError):
  """A loss or gradient is no longer finite."""


class Record:
  """The logs of a run and its progress line; a context that closes them.

  Metrics of a step are read when the next one has been started, so that the device never waits for
  the host.
  """

  def __init__(self, folder: pathlib.Path, start: int, steps: int, saved: Checkpoints):
    """Opens the logs.

    Args:
      folder: of the run.
      start: updates made so far.
      steps: updates in all.
      saved: the run's checkpoints, to name the last good one.
    """
    self._writes = processes.writes()
    names = ("train", "heldout") if self._writes else ()
    self._logs = {name: MetricLog(folder, name, start) for name in names}
    self._progress = Progress(start, steps, shown=self._writes)
    self._saved = saved
    self._pending: tuple[int, Any] | None = None
    self._warned_of_dead = False

  def __enter__(self) -> "Record":
    return self

  def __exit__(self, *exception: object) -> None:
    self._progress.close()
    for log in self._logs.values():
      log.close()

  def say(self, text: str) -> None:
    """Prints a line above the progress line, once for all processes."""
    if self._writes:
      self._progress.say(text)

  def train(self, number: int, metrics: Any) -> None:
    """Takes the metrics of update `number`, still on the device, and writes those before."""
    self.flush()
    self._pending = number, metrics

  def flush(self) -> None:
    """Writes what is pending.

    Raises:
      TrainingDiverged: the pending update was not finite.
    """
    if self._pending is None:
      return
    number, metrics = self._pending
    self._pending = None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not values.pop("finite"):
      self._diverged(number, values)
    self._watch(number, values)
    self._write("train", number, values)
    self._progress.update({name: values[name] for name in ("loss", "psnr") if name in values})

  def heldout(self, number: int, scores: dict[str, float]) -> None:
    """Writes and shows the scores on held-out clips after `number` updates."""
    self.flush()
    self._write("heldout", number, scores)
    text = "  ".join(f"{name} {value:.3g}" for name, value in scores.items())
    self.say(f"held out after {number} steps: {text}")

  def _write(self, name: str, number: int, values: dict[str, float]) -> None:
    if self._writes:
      self._logs[name].write(number, values)

  def _watch(self, number: int, values: dict[str, float]) -> None:
    """Explains what is wrong but doesn't end the run."""
    if values["skipped"]:
      self.say(
        f"step {number}: gradient norm {values['gradient_norm']:.3g}, many times the usual one; the"
        " update was skipped (config.spike). Now and then that is a rare batch; often, lower"
        " --config.optimizer.peak."
      )
    if values.get("dead", 0) > _MANY_DEAD and not self._warned_of_dead:
      self._warned_of_dead = True
      self.say(
        f"step {number}: {values['dead']:.0%} of the Gaussians are transparent and learn nothing;"
        " those drawn at random come back. If the share stays, lower --config.optimizer.peak or"
        " raise --config.model.ldrm.opacity_bias."
      )

  def _diverged(self, number: int, values: dict[str, float]) -> None:
    self._saved.wait()
    wrong = sorted(name for name, value in values.items() if not np.isfinite(value))
    good = self._saved.latest
    where = "no checkpoint was written yet" if good is None else f"checkpoint {good} is good"
    raise TrainingDiverged(
      f"Step {number}: {', '.join(wrong)} not finite. The update was not applied; {where}."
      " Go on from it in another --workdir, its parts named by --config.init.PART, with a lower"
      " --config.optimizer.peak or --config.optimizer.clip."
    )
