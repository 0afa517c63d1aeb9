"""What a run writes down while it goes: metrics, held-out scores, time, why it ended if so."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from d4s_jax.training import clock, processes
from d4s_jax.training.checkpoint import Checkpoints
from d4s_jax.training.log import MetricLog, Progress, read_metrics

# Share of transparent Gaussians from which on something is wrong.
_MANY_DEAD = 0.5
# Updates between two accounts of time and memory, at the most.
_OFTEN = 50


class TrainingDiverged(ValueError):
  """A loss or gradient is no longer finite."""


class Record:
  """The logs of a run and its progress line; a context that closes them.

  Metrics of a step are read when the next one has been started, so that the device never waits for
  the host.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    start: int,
    steps: int,
    saved: Checkpoints,
    time: clock.Clock,
    diagnose: Callable[[Any], str],
    corrupt: Callable[[], int],
  ):
    """Opens the logs.

    Args:
      folder: of the run.
      start: updates made so far.
      steps: updates in all.
      saved: the run's checkpoints, to name the last good one.
      time: of this process; closed with the logs.
      diagnose: says of a batch whose update was not finite where that came from.
      corrupt: how many clips this process could not read so far.
    """
    self.time = time
    self._folder, self._latest, self._accounted = folder, start, start
    self._log = MetricLog(folder, start) if processes.writes() else None
    self._progress = Progress(start, steps, shown=processes.writes())
    self._saved, self._diagnose = saved, diagnose
    self._corrupt, self._missed = corrupt, 0
    self._pending: tuple[int, Any, Any] | None = None
    self._told: set[str] = set()
    if self._log:
      self._write("watch", start, clock.carried(self._log.found, start) | time.take())

  def __enter__(self) -> "Record":
    return self

  def __exit__(self, *exception: object) -> None:
    self.time.close()
    self._progress.close()
    if self._log:
      self._log.close()

  def say(self, text: str) -> None:
    """Prints a line above the progress line, once for all processes."""
    if processes.writes():
      self._progress.say(text)

  def train(self, number: int, metrics: Any, batch: Any) -> None:
    """Takes the metrics of update `number`, still on the device, and writes those before.

    Args:
      number: of the update.
      metrics: what the step returned.
      batch: what it was given, on the host; for a diagnosis.

    Raises:
      TrainingDiverged: the update before was not finite.
    """
    self.time.started(metrics)
    self.flush()
    self._pending, self._latest = (number, metrics, batch), number

  def flush(self) -> None:
    """Writes what is pending.

    Raises:
      TrainingDiverged: the pending update was not finite.
    """
    if self._pending is None:
      return
    number, metrics, batch = self._pending
    self._pending = None
    # While this waits for the device, time is the step's.
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    with self.time.part("logging"):
      if not values.pop("finite"):
        self._diverged(number, batch)
      self._watch(number, values)
      self._write("train", number, values)
      self._progress.update({name: values[name] for name in ("loss", "psnr") if name in values})
      if number - self._accounted >= _OFTEN:
        self._account(number)

  def heldout(self, number: int, scores: dict[str, float]) -> None:
    """Writes and shows the scores on held-out clips after `number` updates."""
    self.flush()
    self._write("heldout", number, scores)
    text = "  ".join(f"{name} {value:.3g}" for name, value in scores.items())
    self.say(f"held out after {number} steps: {text}")
    self._told.clear()

  def has_heldout(self, number: int) -> bool:
    """Whether the scores after `number` updates were written before; False where nothing is."""
    found = self._log.found if self._log else []
    return number > 0 and any(x["log"] == "heldout" and x["step"] == number for x in found)

  def settle(self) -> None:
    """Like `flush`, with an account of time: before a checkpoint, which goes on from this line."""
    self.flush()
    if self._latest > self._accounted:
      self._account(self._latest)

  def _account(self, number: int) -> None:
    """Writes where time went since the last account, clips that could not be read, and memory."""
    corrupt = self._corrupt()
    updates = {"updates": number - self._accounted, "corrupt": corrupt - self._missed}
    self._accounted, self._missed = number, corrupt
    self._write("watch", number, updates | self.time.take() | clock.memory())

  def finish(self, number: int) -> None:
    """Writes the last account, and prints that of the whole run in one line."""
    self.flush()
    self._account(number)
    if self._log:
      self.say(clock.sentence(clock.summary(read_metrics(self._folder, "watch"))))

  def _write(self, log: str, number: int, values: dict[str, float]) -> None:
    if self._log:
      self._log.write(log, number, values)

  def _watch(self, number: int, values: dict[str, float]) -> None:
    """Explains what is wrong but doesn't end the run."""
    if values["skipped"]:
      self.say(
        f"step {number}: gradient norm {values['gradient_norm']:.3g}, many times the usual one; the"
        " update was skipped (config.spike). Now and then that is a rare batch; often, lower"
        " --config.optimizer.peak."
      )
    if values.get("dead", 0) > _MANY_DEAD:
      self._say_once(
        "dead",
        f"step {number}: {values['dead']:.0%} of the Gaussians are transparent and learn nothing;"
        " those drawn at random come back. If the share stays, lower --config.optimizer.peak or"
        " raise --config.model.ldrm.opacity_bias.",
      )
    if values.get("overflow", 0):
      self._say_once(
        "overflow",
        f"step {number}: the renderer had no room for {values['overflow']:.0f} meetings of"
        " Gaussians with tiles, and left those of the farthest out: Gaussians have become wide. If"
        " it goes on, lower --config.optimizer.peak.",
      )

  def _say_once(self, kind: str, text: str) -> None:
    """Says it the first time after each look at held-out clips."""
    if kind not in self._told:
      self._told.add(kind)
      self.say(text)

  def _diverged(self, number: int, batch: Any) -> None:
    self._saved.wait()
    good = self._saved.latest
    where = "no checkpoint was written yet" if good is None else f"checkpoint {good} is good"
    raise TrainingDiverged(
      f"Step {number} is not finite: {self._diagnose(batch)} The update was not applied; {where}."
      " Go on from it in another --workdir, its parts named by --config.init.PART, with a lower"
      " --config.optimizer.peak or --config.optimizer.clip."
    )
