"""A training run, read from top to bottom."""

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from d4s_jax.data.loader import make_loader
from d4s_jax.data.source import SOURCES
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, objectives, sharding, state, validation
from d4s_jax.training.interrupt import StopRequest
from d4s_jax.training.log import MetricLog, Progress
from d4s_jax.training.optimizer import check_groups, make_optimizer
from d4s_jax.training.report import write_report
from d4s_jax.training.stages import stage
from d4s_jax.training.step import make_step


class TrainingDiverged(ValueError):
  """A loss or gradient is no longer finite."""


def run(config: ConfigDict, folder: pathlib.Path) -> None:
  """Trains until `config.steps`, from the newest checkpoint in `folder` if there is one.

  Args:
    config: a configuration, see `d4s_jax.config`.
    folder: takes everything the run leaves behind.

  Raises:
    ValueError: the configuration can't be run, or the loss is no longer finite.
  """
  chosen = stage(config.stage)
  system = System.build(config.model.to_dict())
  system.check_size(config.clip.frames, config.clip.height, config.clip.width)
  mesh = sharding.make_mesh(config.mesh.fsdp)
  if config.batch_size % (jax.device_count() * config.accumulate):
    raise ValueError(
      f"batch_size is {config.batch_size}; expected a multiple of the {jax.device_count()} devices"
      f" times accumulate={config.accumulate}."
    )
  checkpoint.write_config(folder, config.to_dict())

  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    # State: new, or where the folder's newest checkpoint left off.
    patterns = tuple(config.trainable) or chosen.trainable
    optimizer = make_optimizer(steps=config.steps, **config.optimizer.to_dict())
    now = initialize.create_state(system, config, patterns, optimizer, mesh)
    check_groups(sorted(now.trainable), config.optimizer.groups)
    saved = checkpoint.Checkpoints(folder, config.checkpoint.keep)
    if saved.latest is not None:
      now = saved.restore(now)
    start = int(now.step)

    # Data: a pure function of seed and step, so there is no other state to resume.
    source = functools.partial(
      SOURCES[config.data.source],
      kind=chosen.kind,
      frames=config.clip.frames,
      height=config.clip.height,
      width=config.clip.width,
      views=config.clip.targets,
    )
    heldout = validation.load_clips(
      source(split="heldout"), system.backbone.tokenizer, config.batch_size, config.heldout.batches
    )
    batches = make_loader(
      source(split="train"),
      system.backbone.tokenizer,
      batch_size=config.batch_size // jax.process_count(),
      seed=config.seed,
      workers=config.data.workers,
      start=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

    # What is compiled.
    step = make_step(
      objectives.make_objective(system, chosen, objectives.Settings(**config.loss.to_dict())),
      optimizer,
      seed=config.seed,
      average_decay=config.average_decay,
      accumulate=config.accumulate,
    )
    step = jax.jit(step, donate_argnums=0, out_shardings=(sharding.of(now), None))
    validate = validation.make_validation(system, chosen)

    # The loop. Metrics are read one step late, so the device never waits for the host.
    record = _Record(folder, start, config.steps, saved)
    with record, batches, StopRequest() as stop:
      record.say(_summary(config, now, folder))
      if start == 0:
        record.heldout(0, validate(state.averaged_params(now), heldout))
      for number in range(start + 1, config.steps + 1):
        now, metrics = step(now, sharding.to_device(next(batches), mesh))
        record.train(number, metrics)
        last = number == config.steps
        if number % config.heldout.every == 0 or last:
          record.heldout(number, validate(state.averaged_params(now), heldout))
        if number % config.checkpoint.every == 0 or last or stop.requested:
          record.flush()
          saved.save(now)
        if stop.requested:
          break
      saved.wait()
    saved.close()

    reached = int(now.step)
    if reached < config.steps:
      print(f"Stopped by a signal at step {reached}; the same command goes on from there.")
    else:
      write_report(folder, system, chosen, state.averaged_params(now), heldout)


class _Record:
  """The logs of a run and its progress line; stops the run when a number is not finite."""

  def __init__(
    self, folder: pathlib.Path, start: int, steps: int, saved: checkpoint.Checkpoints
  ):
    self._logs = {name: MetricLog(folder, name, start) for name in ("train", "heldout")}
    self._progress = Progress(start, steps)
    self._saved = saved
    self._pending: tuple[int, Any] | None = None

  def __enter__(self) -> "_Record":
    return self

  def __exit__(self, *exception: object) -> None:
    self._progress.close()
    for log in self._logs.values():
      log.close()

  def say(self, text: str) -> None:
    self._progress.say(text)

  def train(self, number: int, metrics: Any) -> None:
    """Takes the metrics of a step and writes those of the step before."""
    self.flush()
    self._pending = number, metrics

  def flush(self) -> None:
    """Writes what is pending."""
    if self._pending is None:
      return
    number, metrics = self._pending
    self._pending = None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not values.pop("finite"):
      self._diverged(number, values)
    self._logs["train"].write(number, values)
    self._progress.update({name: values[name] for name in ("loss", "psnr") if name in values})

  def heldout(self, number: int, values: dict[str, float]) -> None:
    """Writes and shows the scores on held-out clips after `number` steps."""
    self.flush()
    self._logs["heldout"].write(number, values)
    text = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
    self.say(f"held out after {number} steps: {text}")

  def _diverged(self, number: int, values: dict[str, float]) -> None:
    self._saved.wait()
    wrong = sorted(name for name, value in values.items() if not np.isfinite(value))
    good = self._saved.latest
    where = f"the checkpoint of step {good} is good" if good else "no checkpoint was written yet"
    raise TrainingDiverged(
      f"Step {number}: {', '.join(wrong)} not finite. The update was not applied and {where}."
      " Resume with a lower --config.optimizer.peak or a smaller --config.optimizer.clip in another"
      " --workdir, with --config.init naming this one."
    )


def _summary(config: ConfigDict, now: state.TrainState, folder: pathlib.Path) -> str:
  trained, frozen = (
    sum(x.size for x in part.values()) / 1e6 for part in (now.trainable, now.frozen)
  )
  origin = f"resumed at step {int(now.step)}" if int(now.step) else "new run"
  return (
    f"{config.stage} stage, preset {config.preset}: {trained:.2f} M parameters trained,"
    f" {frozen:.2f} M frozen; {config.steps} steps of {config.batch_size} clips"
    f" {config.clip.frames}x{config.clip.height}x{config.clip.width} on {jax.device_count()}"
    f" {jax.default_backend()} device(s); {origin}; folder {folder}"
  )
