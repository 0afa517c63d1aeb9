"""What a finished run leaves for people to look at: curves, a table of both ends, samples."""

import functools
import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from d4s_jax.formats.images import contact_sheet
from d4s_jax.formats.video import colorize_depth, write_video
from d4s_jax.models.system import System
from d4s_jax.training import clock, processes, sharding, validation
from d4s_jax.training.log import draw_curves, ends, read_metrics
from d4s_jax.training.motion_queries import ask
from d4s_jax.training.stages import Stage
from d4s_jax.types import Clip

# Small videos are enlarged to about this height, so that players show them.
_HEIGHT = 256
# Held-out clips that become videos, and that are on the contact sheet.
_VIDEOS, _SHOWN = 4, 2


def write_report(
  folder: pathlib.Path, system: System, stage: Stage, params: Any, batches: Iterable[Clip]
) -> None:
  """Writes curves.png, summary.json, samples.png, samples/; prints the table of both ends.

  summary.json has the table; under "watch" where the time of the whole run went, as
  `clock.summary` says, and the most memory; under "counts" how many updates were skipped, in how
  many the renderer left something out, and how many clips the first process could not read.
  """
  write_samples(folder, system, stage, params, batches)
  if not processes.writes():
    return
  rows = {name: read_metrics(folder, name) for name in ("train", "heldout", "watch")}
  table = {
    "train": ends(rows["train"]),
    "heldout": {
      name: (rows["heldout"][0][name], rows["heldout"][-1][name])
      for name in rows["heldout"][0]
      if name != "step"
    },
  }
  counts = {
    f"{name}_updates": sum(row.get(key, 0) > 0 for row in rows["train"])
    for name, key in (("skipped", "skipped"), ("overflowing", "overflow"))
  }
  counts["corrupt_clips"] = int(sum(row.get("corrupt", 0) for row in rows["watch"]))
  summary = table | {"watch": clock.summary(rows["watch"]), "counts": counts}
  (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  draw_curves(folder)
  print(_table(table))
  print(f"Look at {folder / 'samples.png'}, {folder / 'samples'} and {folder / 'curves.png'}.")


def write_samples(
  folder: pathlib.Path, system: System, stage: Stage, params: Any, batches: Iterable[Clip]
) -> None:
  """Shows held-out clips beside what the model makes of them.

  Writes samples/heldout_N.mp4, each with its panels side by side, and the first two as a contact
  sheet, samples.png.
  """
  # What the last of the stage's objectives makes.
  names, draw = _PANELS[stage.objectives[-1]]
  draw = jax.jit(functools.partial(draw, system), out_shardings=sharding.whole())
  # The panels of each clip, without a batch axis.
  each = (
    [np.asarray(panel[index]) for panel in batch]
    for batch in (draw(params, clip) for clip in batches)
    for index in range(len(batch[0]))
  )
  shown = list(itertools.islice(each, _VIDEOS))
  shown = [
    [colorize_depth(panel) if panel.ndim == 3 else np.clip(panel, 0, 1) for panel in panels]
    for panels in shown
  ]
  if not processes.writes():
    return
  (folder / "samples").mkdir(parents=True, exist_ok=True)
  for number, panels in enumerate(shown):
    frames = _enlarge(np.concatenate(panels, axis=2))
    write_video(folder / "samples" / f"heldout_{number}.mp4", frames, fps=8)
  rows = {
    f"held-out clip {number}: {name}": frames
    for number, panels in enumerate(shown[:_SHOWN])
    for name, frames in zip(names, panels)
  }
  contact_sheet(folder / "samples.png", rows)


def _decoded(system: System, params: Any, clip: Clip) -> tuple[Array, ...]:
  latents = system.backbone.encode(params, clip.source.images)
  return clip.source.images, system.backbone.decode(params, latents)


def _denoised(system: System, params: Any, clip: Clip) -> tuple[Array, ...]:
  latents = system.backbone.encode(params, clip.source.images)
  estimate, _ = validation.denoised(system, params, clip, latents)
  return tuple(system.backbone.decode(params, x) for x in (latents, estimate))


def _mapped(system: System, params: Any, clip: Clip) -> tuple[Array, ...]:
  """The depth of the Gaussians' map."""
  latents = system.backbone.encode(params, clip.source.images)
  depth, _, _ = ask(system, params, clip, latents, jax.random.key(0), 1)
  rows, columns = (x // y for x, y in zip(clip.source.depth.shape[2:], depth.shape[2:]))
  depth = depth.repeat(rows, axis=2).repeat(columns, axis=3)
  return clip.source.images, clip.source.depth, depth


def _redrawn(system: System, params: Any, clip: Clip) -> tuple[Array, ...]:
  """The source path, drawn from the reconstructed scene at its own times."""
  latents = system.backbone.encode(params, clip.source.images)
  dynamic, _ = system.reconstruct(params, latents, clip.source.cameras, clip.source.times)
  rendering = validation.draw(dynamic, clip.source.cameras)
  return clip.source.images, rendering.image, clip.source.depth, rendering.depth


# Names of the panels, from the left, and what makes them, by objective.
_PANELS = {
  "distillation": (("input", "true depth", "predicted depth"), _mapped),
  "autoencoding": (("input", "decoded"), _decoded),
  "diffusion": (
    ("decoded input", f"decoded one-step estimate from noise level {validation.LEVEL}"),
    _denoised,
  ),
  "reconstruction": (
    ("input", "rendering of the reconstructed scene", "true depth", "rendered depth"),
    _redrawn,
  ),
}


def _enlarge(frames: Float[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "F H W 3"]:
  factor = max(1, round(_HEIGHT / frames.shape[1]))
  return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _table(summary: dict[str, dict[str, tuple[float, float]]]) -> str:
  ends_of = {f"{log} {name}": x for log, metrics in summary.items() for name, x in metrics.items()}
  width = max(map(len, ends_of))
  lines = [f"{'':{width}}{'start':>11}{'end':>11}"]
  lines += [f"{name:{width}}{start:>11.4g}{end:>11.4g}" for name, (start, end) in ends_of.items()]
  return "\n".join(lines)
