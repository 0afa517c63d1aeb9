"""A training run, read from top to bottom."""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from d4s_jax.config import Config
from d4s_jax.data.loader import make_loader
from d4s_jax.data.sampling import Augmentation
from d4s_jax.data.source import Buckets, Source, open_buckets, open_source
from d4s_jax.data.transforms import parse_shape
from d4s_jax.losses.lpips import load_weights
from d4s_jax.models.system import System
from d4s_jax.training import (
  checkpoint,
  clock,
  diagnosis,
  initialize,
  objectives,
  places,
  processes,
  recovery,
  run_folder,
  sharding,
  state,
  text_cache,
  validation,
)
from d4s_jax.training.interrupt import StopRequest
from d4s_jax.training.optimizer import check_groups, make_optimizer
from d4s_jax.training.profile import Profile
from d4s_jax.training.record import Record
from d4s_jax.training.report import write_report
from d4s_jax.training.stages import Stage, stage, trained
from d4s_jax.training.update import make_update
from d4s_jax.types import Clip


def run(config: Config, place: places.Place, traced: tuple[int, int] | None = None) -> bool:
  """Trains until `config.steps`, from the newest checkpoint in `place` if there is one.

  Args:
    config: a configuration, see `d4s_jax.config`.
    place: takes everything the run leaves behind; see `training.places`.
    traced: the first and the last step of a profile; None for none.

  Returns:
    Whether all is done; False if a signal stopped it before, with the steps that were made saved.

  Raises:
    ValueError: the configuration can't be run, or the loss is no longer finite.
  """
  time = clock.Clock()
  mesh = sharding.make_mesh(**config.mesh)
  with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    # All of the run but its numbers: what does not fit together is refused before it writes.
    with _explained():
      _check(config, sharding.copies(mesh))
      initialize.check_tokenizer(config)
      chosen = stage(config.stage)
      tokenizer = run_folder.read_tokenizer(place, config.model.to_dict())
      system = System.build(config.model.to_dict(), tokenizer)
      system.check_size(config.clip.frames, config.clip.height, config.clip.width)
      if not checkpoint.whole_steps(place):
        # Before clips are made, which at large sizes takes minutes.
        initialize.check_weights(system, config)
      patterns = trained(
        tuple(config.trainable) or chosen.trainable, adapted=system.backbone.adapter.rank > 0
      )
      optimizer = make_optimizer(steps=config.steps, **config.optimizer.to_dict())
      like = initialize.abstract_state(system, patterns, optimizer, mesh, config.frozen_dtype)
      check_groups(sorted(like.trainable | like.frozen), config.optimizer.groups)
      cached = config.text_cache if "diffusion" in chosen.objectives else ""
      text_cache.check(cached, like.trainable)
      settings = objectives.Settings(**config.loss.to_dict())
      lpips = jax.device_put(load_weights(settings.lpips), sharding.whole())
      step = make_update(config, system, chosen, settings, optimizer, like)
      validate = validation.make_validation(system, chosen)
      tokenize = system.backbone.tokenizer
      # What a device takes at once.
      size = config.batch_size // config.accumulate
      heldout = validation.HeldOut(
        *(_heldout(config, chosen), tokenize, size, config.heldout.batches),
        rows=sharding.rows(mesh, size),
      )
      batches = make_loader(
        _training(config, chosen, system),
        tokenize,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.data.workers,
        rows=sharding.rows(mesh, config.batch_size),
        corrupt=config.data.corrupt,
      )
      # As the batches of the loop lie, so that the step is traced only once.
      cut = sharding.batch_sharding(mesh)
      batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype, sharding=cut),
        heldout.example(),
      )
      step.eval_shape(like, batch, lpips)
    if processes.writes():
      run_folder.write_config(place, config.to_dict(), batches.data)
      run_folder.write_tokenizer(place, tokenizer)
    processes.wait("config")
    # What another host calls by the same name may be something else.
    run_folder.check_data(place, batches.data)
    folder = places.on_host(place)

    # The state: where the newest checkpoint that can be read left off, or new. In this order: Orbax
    # tidies the folder in a thread, which must not outlive a refused start.
    copies = recovery.open_copies(place, config.checkpoint)
    found = recovery.newest(place, copies, like)
    now = found or initialize.create_state(system, config, patterns, optimizer, like)
    start = int(now.step)
    if start > config.steps:
      raise ValueError(
        f"steps is {config.steps}, but {place} is at step {start} already; give more steps, or"
        " another --workdir."
      )
    profile = Profile(folder, traced, start, config.steps)
    keep = config.checkpoint
    saved = checkpoint.Checkpoints(place, keep.keep, keep.keep_every, keep.keep_hours)
    # Batches are a pure function of data and step: there is nothing else to resume.
    batches.set_state({"data": batches.data, "batches": start})

    objective = objectives.make_objective(system, chosen, settings, lpips)
    explained = diagnosis.make(objective, seed=config.seed, accumulate=config.accumulate)

    def diagnose(batch: Clip) -> str:
      return explained(now, batch, sharding.to_device(batch, mesh, config.batch_size))

    # The loop.
    wish, computed = processes.Wish("stop"), itertools.count()
    publish = functools.partial(places.publish, folder, place) if processes.writes() else None
    saves = recovery.Saves(saved, copies, config.checkpoint, publish)
    record = Record(folder, start, config.steps, saved, time, diagnose, lambda: batches.skipped)
    with record, batches, profile, saves, StopRequest() as stop:
      record.say(_summary(config, now, place))
      embed = text_cache.make(cached, system.backbone, now.frozen, record.say)

      def look() -> Iterator[Clip]:
        """The held-out batches as the loop's own lie."""
        for batch in heldout:
          yield sharding.to_device(embed(batch, now.frozen), mesh, heldout.batch_size)

      stopping = False

      def ask() -> bool:
        """Whether all processes stop here; to be asked after each program that they share."""
        nonlocal stopping
        stopping = wish.due(stop.requested, next(computed))
        return stopping

      def score(number: int) -> None:
        """Records the scores after `number` steps, unless it stops before the last batch."""
        with time.part("heldout"):
          params, count = state.averaged_params(now), heldout.batches
          scores = validate(params, look(), lambda done: ask() and done < count)
          if scores:
            record.heldout(number, scores)

      # An earlier process may have been stopped while it made them.
      due = start % config.heldout.every == 0 or start == config.steps
      if processes.told([int(due and not record.has_heldout(start))])[0][0]:
        score(start)
      number = start
      while number < config.steps and not stopping:
        number += 1
        profile.begin(number)
        with time.part("data"):
          batch = embed(next(batches), now.frozen)
        now, metrics = step(now, sharding.to_device(batch, mesh, config.batch_size), lpips)
        record.train(number, metrics, batch)
        profile.end(number, metrics)
        last = number == config.steps
        ask()
        if not stopping and (number % config.heldout.every == 0 or last):
          score(number)
        with time.part("checkpoint"):
          saves.after(number, now, record.settle, must=last or stopping)
      with time.part("checkpoint"):
        saves.close()
      if batches.skipped:
        record.say(
          f"{batches.skipped} clips could not be read, and others took their place; {batches.read}"
          " were. The warnings above name them."
        )
      record.finish(int(now.step))
      if stopping:
        record.say(f"Stopped by a signal at step {now.step}; the same command goes on from there.")

    done = not stopping
    if done:
      write_report(folder, system, chosen, state.averaged_params(now), look())
      # A process that leaves early would be missed by the first one, which still draws.
      processes.wait("report")
    if publish:
      publish()
    # Who leaves first takes the others' coordinator along.
    processes.wait("end")
    return done


# The smallest value of keys that count something.
_LEAST = {
  "steps": 1,
  "seed": 0,
  "batch_size": 1,
  "accumulate": 1,
  # At the usual norm itself half of all updates would be skipped.
  "spike": 2,
  "clip.targets": 1,
  "heldout.batches": 1,
  "heldout.every": 1,
  # Orbax takes 0 at its word and deletes every checkpoint.
  "checkpoint.keep": 1,
  "checkpoint.every": 1,
  "checkpoint.minutes": 0,
  "checkpoint.keep_every": 0,
  "checkpoint.keep_hours": 0,
  "checkpoint.local_every": 1,
  "data.clips": 1,
  "data.workers": 0,
  "data.distance": 0,
  "data.augment.stride": 0,
  "model.ldrm.gaussians": 1,
}


def _check(config: Config, copies: int) -> None:
  """Refuses counts that can't be run."""
  for key, least in _LEAST.items():
    value = functools.reduce(getattr, key.split("."), config)
    if value < least:
      raise ValueError(f"{key} is {value}; expected at least {least}.")
  parts = config.accumulate
  if config.batch_size % (copies * parts):
    raise ValueError(
      f"batch_size is {config.batch_size}; expected a multiple of {copies} devices that don't share"
      f" samples x accumulate {parts}."
    )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
  """Reports any error of building and tracing a run as one of its configuration.

  A value that nothing checks by name, say a width that the heads don't divide, fails somewhere in
  JAX or Flax, with an error of any class.
  """
  try:
    yield
  except (ValueError, OSError):
    raise
  except Exception as error:
    raise ValueError(
      f"This configuration can't be run ({type(error).__name__}: {str(error).strip()[:300]})."
    ) from error


def _heldout(config: Config, chosen: Stage) -> Source:
  """Held-out clips of the stage, of the shape `clip`, without augmentation."""
  size = {name: config.clip[name] for name in ("frames", "height", "width")}
  cutting = {"distance": config.data.distance}
  return open_source(**_options(config, chosen), split="heldout", cutting=cutting, **size)


def _training(config: Config, chosen: Stage, system: System) -> Buckets:
  """Clips of the stage in all shapes that it is trained on."""
  shapes = [parse_shape(text) for text in config.data.buckets]
  shapes = shapes or [(config.clip.frames, config.clip.height, config.clip.width)]
  for shape in shapes:
    system.check_size(*shape)
  augment = Augmentation(**config.data.augment)
  cutting = {"distance": config.data.distance, "augment": augment}
  weights = config.data.weights
  options = _options(config, chosen)
  return open_buckets(shapes=shapes, weights=weights, cutting=cutting, split="train", **options)


def _options(config: Config, chosen: Stage) -> dict[str, Any]:
  return {
    "names": config.data.source,
    "posed": chosen.objectives != ("autoencoding",),
    "cache": config.data.cache,
    "kind": chosen.kind,
    "views": config.clip.targets,
    "length": config.data.clips,
  }


def _summary(config: Config, now: state.TrainState, place: places.Place) -> str:
  trained, frozen = (
    sum(x.size for x in part.values()) / 1e6 for part in (now.trainable, now.frozen)
  )
  origin = f"resumed at step {now.step}" if now.step else "new run"
  return (
    f"{config.stage} stage, preset {config.preset}: {trained:.2f} M parameters trained,"
    f" {frozen:.2f} M frozen; {config.steps} steps of {config.batch_size} clips"
    f" {config.clip.frames}x{config.clip.height}x{config.clip.width} on {jax.device_count()}"
    f" {jax.default_backend()} device(s); {origin}; folder {place}"
  )
