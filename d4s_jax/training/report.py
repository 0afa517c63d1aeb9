"""What a finished run leaves for people to look at: curves, a table of both ends, videos."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from d4s_jax.formats.video import colorize_depth, write_video
from d4s_jax.models.system import System
from d4s_jax.training import validation
from d4s_jax.training.log import draw_curves, ends, read_metrics
from d4s_jax.training.stages import Stage
from d4s_jax.types import Clip

# Small videos are enlarged to about this height, so that players show them.
_HEIGHT = 256
_VIDEOS = 4


def write_report(
  folder: pathlib.Path, system: System, stage: Stage, params: Any, clips: list[Clip]
) -> None:
  """Writes curves.png, summary.json and samples/*.mp4, and prints the table of both ends."""
  rows = {name: read_metrics(folder / f"{name}.csv") for name in ("train", "heldout")}
  summary = {
    "train": ends(rows["train"]),
    "heldout": {
      name: (rows["heldout"][0][name], rows["heldout"][-1][name])
      for name in rows["heldout"][0]
      if name != "step"
    },
  }
  (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
  draw_curves(folder)
  videos = write_samples(folder / "samples", system, stage, params, clips)
  print(_table(summary))
  print(f"Curves: {folder / 'curves.png'}   Videos: {videos[0].parent}   ({len(videos)} files)")


def write_samples(
  folder: pathlib.Path, system: System, stage: Stage, params: Any, clips: list[Clip]
) -> list[pathlib.Path]:
  """Writes held-out clips beside what the model makes of them: truth, rendering, depth."""
  folder.mkdir(parents=True, exist_ok=True)
  if "autoencoding" in stage.objectives:
    draw = jax.jit(lambda params, clip: _decoded(system, params, clip))
  else:
    draw = jax.jit(lambda params, clip: _redrawn(system, params, clip))
  paths = []
  for clip in clips:
    panels = [np.asarray(panel) for panel in draw(params, clip)]
    for index in range(len(panels[0])):
      if len(paths) == _VIDEOS:
        return paths
      shown = [panel[index] for panel in panels]
      shown = [colorize_depth(x) if x.ndim == 3 else np.clip(x, 0, 1) for x in shown]
      path = folder / f"heldout_{len(paths)}.mp4"
      write_video(path, _enlarge(np.concatenate(shown, axis=2)), fps=8)
      paths.append(path)
  return paths


def _decoded(system: System, params: Any, clip: Clip) -> tuple[Array, ...]:
  latents = system.backbone.encode(params, clip.source.images)
  return clip.source.images, system.backbone.decode(params, latents)


def _redrawn(system: System, params: Any, clip: Clip) -> tuple[Array, ...]:
  """The source path, drawn from the reconstructed scene at its own times."""
  latents = system.backbone.encode(params, clip.source.images)
  dynamic = system.reconstruct(params, latents, clip.source.cameras, clip.source.times)
  rendering = validation.draw(dynamic, clip.source.cameras)
  return clip.source.images, rendering.image, clip.source.depth, rendering.depth


def _enlarge(frames: Float[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "F H W 3"]:
  factor = max(1, round(_HEIGHT / frames.shape[1]))
  return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _table(summary: dict[str, dict[str, tuple[float, float]]]) -> str:
  lines = [f"{'':28}{'start':>10}{'end':>10}"]
  for log, metrics in summary.items():
    lines += [
      f"{log + ' ' + name:28}{start:>10.4g}{end:>10.4g}" for name, (start, end) in metrics.items()
    ]
  return "\n".join(lines)
