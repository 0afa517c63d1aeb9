r"""Scores a reconstruction model on 64 held-out scenes, beside the baselines it has to beat.

  python tests/benchmarks/heldout.py
  python tests/benchmarks/heldout.py --run=runs/dynamic-tiny

The scenes are numbers 0 to 63 of the held-out split. Each has eight views at times and cameras that
were not input, half of them off the camera's path. Every model sees the nine frames of the source
video; ours sees them through the autoencoder. The baselines are: repeating the input frame nearest
in time or in camera; one Gaussian for each 2x2 input pixels, of its colour, all at one depth, at
the mean depth of that pixel of that frame over training scenes, or at its true depth; and our own
with its deformation off. Lifted pixels lie before the mean colour of the input. Means and standard
deviations over scenes.

  python tests/benchmarks/heldout.py --optimised=8

adds the two-stage baseline on the first so many scenes: the video through the autoencoder, pixels
lifted at the mean depth, and then their Gaussians fitted to the video for --seconds each.
"""

import argparse
import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from d4s_jax.config import base
from d4s_jax.data.source import open_source
from d4s_jax.geometry.deformation import at, identity
from d4s_jax.models import gaussian_head, shipped
from d4s_jax.models.system import System
from d4s_jax.render import render
from d4s_jax.training import checkpoint, run_folder, validation
from d4s_jax.training.motion_queries import MOVING, motion_queries
from d4s_jax.training.refinement import refine
from d4s_jax.types import Clip, DynamicGaussians

SCENES, BATCH, VIEWS = 64, 4, 8
# Training scenes over which the mean depth is taken.
_LAYOUTS = 64
# Bounds of depth of lifted pixels, as those of `tiny`.
SCENE_SCALE = base("tiny").model.ldrm.scene_scale
# Pixels of a lifted Gaussian along each side and its opacity.
_CELL, _OPACITY = 2, 0.2


def clips(split: str, count: int, tokenize, views: int = VIEWS) -> list[Clip]:
  """The first clips of a split in batches."""
  source = open_source("synthetic", split=split, views=views)
  return validation.load_clips(source, tokenize, BATCH, count // BATCH)


def layouts(batches: list[Clip]) -> tuple[jax.Array, jax.Array]:
  """Geometric means of the depth of all source pixels, and of each [f h w], over scenes."""
  logs = [np.log(np.maximum(batch.source.depth, 0.1)) for batch in batches]
  logs = np.concatenate(logs)
  return jnp.exp(jnp.mean(logs)), jnp.exp(jnp.mean(logs, axis=0))


def lifted(clip: Clip, depth: jax.Array) -> DynamicGaussians:
  """The source pixels as Gaussians that don't move, at depths [f h w] or one for all."""
  images = clip.source.images
  batch, frames, height, width, _ = images.shape
  cells = height // _CELL, width // _CELL
  colour = images.reshape(batch, frames, cells[0], _CELL, cells[1], _CELL, 3).mean((3, 5))
  depth = jnp.broadcast_to(depth, (batch, frames, height, width))
  depth = depth.reshape(batch, frames, cells[0], _CELL, cells[1], _CELL).mean((3, 5))
  raw = jnp.zeros((batch, frames, *cells, gaussian_head.CHANNELS))
  raw = raw.at[..., 0].set(jnp.log(depth))
  raw = raw.at[..., 1:4].set(jnp.arctanh(jnp.clip(2 * colour - 1, -0.999, 0.999)))
  found = gaussian_head.activate(
    raw,
    clip.source.cameras,
    scene_scale=SCENE_SCALE,
    initial_depth=1.0,
    opacity_bias=float(np.log(_OPACITY / (1 - _OPACITY))),
  )
  flat = jax.tree.map(lambda x: jax.lax.collapse(x, 1, 4), found)
  times = clip.target.times
  return DynamicGaussians(
    means=flat.means,
    quaternions=flat.quaternions,
    raw_scales=flat.raw_scales,
    footprints=flat.footprints,
    opacities=flat.opacities,
    harmonics=flat.harmonics,
    times=times,
    deformation=identity(*times.shape, flat.means.shape[1]),
  )


def drawn_lifted(clip: Clip, depth: jax.Array) -> jax.Array:
  """The views of `lifted`, over the mean colour of the input.

  Black beside what no input frame shows would make a weak baseline, and so would a depth of 0.
  """
  depth = jnp.where(depth > 0, depth, jnp.max(depth, axis=(-2, -1), keepdims=True))
  rendering = validation.draw(lifted(clip, depth), clip.target.cameras)
  mean = jnp.mean(clip.source.images, axis=(1, 2, 3))[:, None, None, None]
  return rendering.image + (1 - rendering.alpha[..., None]) * mean


def masked_psnr(image, target, mask):
  """PSNR over the masked pixels of all views of a scene; NaN without any."""
  square = jnp.where(mask[..., None], jnp.square(image - target), 0.0)
  count = 3 * jnp.sum(mask, axis=(1, 2, 3))
  return -10 * jnp.log10(jnp.sum(square, axis=(1, 2, 3, 4)) / jnp.where(count > 0, count, jnp.nan))


def optimised(clip: Clip, video, layout, seconds: float) -> jax.Array:
  """The views [v h w 3] of one scene whose lifted pixels were fitted to its video [f h w 3]."""
  seen = dataclasses.replace(clip.source, images=jnp.clip(video, 0, 1)[None])
  start = lifted(dataclasses.replace(clip, source=seen), layout * jnp.ones_like(seen.depth))
  times = clip.source.times
  shape = (*times.shape, start.means.shape[1])
  start = dataclasses.replace(start, times=times, deformation=identity(*shape))
  start, views = jax.tree.map(lambda x: x[0], (start, seen))
  begin: list[float] = []

  def proceed(number: int) -> bool:
    # The first step compiles, outside of what is timed.
    if number == 1:
      begin.append(time.perf_counter())
    return number < 2 or time.perf_counter() - begin[0] < seconds

  extent = float(jnp.median(layout))
  fitted = refine(start, views, extent=extent, key=jax.random.key(0), proceed=proceed)
  cameras = jax.tree.map(lambda x: x[0], clip.target.cameras)
  drawn = render(at(fitted, clip.target.times[0]), cameras)
  mean = jnp.mean(video, axis=(0, 1, 2))[None, None, None]
  return drawn.image + (1 - drawn.alpha[..., None]) * mean


def moving_masks(count: int) -> np.ndarray:
  """The pixels of each target view that show a moving solid, [scenes v h w]."""
  source = open_source("synthetic", split="heldout", views=VIEWS)
  masks = []
  for index in range(count):
    clip, scene = source.read(index), source.setting(index).scene
    _, _, instances = scene.render(clip.target.cameras, clip.target.times)
    movers = [number + 1 for number, body in enumerate(scene.bodies) if body.motion.moves]
    masks.append(np.isin(instances, movers))
  return np.stack(masks)


def make_scores(system: System, params, constant, layout):
  """The function from a batch to scores of each scene: PSNR by method, geometry, motion."""

  @jax.jit
  def scores(clip: Clip, moving_pixels):
    target = clip.target
    latents = system.backbone.encode(params, clip.source.images)
    points, frames, (true, valid) = motion_queries(
      clip, jax.random.key(0), clip.source.times.shape[1]
    )
    times = jnp.concatenate([target.times, clip.source.times[:, frames]], axis=1)
    dynamic, auxiliary = system.reconstruct(
      params, latents, clip.source.cameras, times, points=points
    )
    views = target.times.shape[1]
    ours = _at(dynamic, slice(0, views))
    drawn = validation.draw(ours, target.cameras)
    images = {
      "ours": drawn.image,
      "ours, deformation off": validation.draw(
        validation.without_motion(ours), target.cameras
      ).image,
      "frame nearest in time": validation.nearest_time(clip),
      "frame nearest in camera": validation.nearest_camera(clip),
      "pixels at one depth": drawn_lifted(clip, constant * jnp.ones_like(clip.source.depth)),
      "pixels at the mean depth": drawn_lifted(clip, layout * jnp.ones_like(clip.source.depth)),
      "pixels at their true depth": drawn_lifted(clip, clip.source.depth),
    }
    psnr = {
      name: (
        jnp.mean(validation.psnr(x, target.images), axis=1),
        masked_psnr(x, target.images, moving_pixels),
      )
      for name, x in images.items()
    }

    known = target.depth > 0
    depth = jnp.where(drawn.alpha > 0.5, drawn.depth, 0)
    both = known & (depth > 0)
    ratio = jnp.where(both, jnp.log(jnp.maximum(depth, 1e-3) / jnp.maximum(target.depth, 1e-3)), 0)
    count = jnp.sum(both, axis=(1, 2, 3))
    shift = jnp.sum(ratio, axis=(1, 2, 3)) / count
    aligned = depth * jnp.exp(-shift)[:, None, None, None]
    relative = jnp.where(both, jnp.abs(aligned - target.depth) / jnp.maximum(target.depth, 1e-3), 0)

    displacement = auxiliary.displacement[:, views:]
    length = jnp.linalg.norm(true, axis=-1)
    moving = valid & (length > MOVING)
    error = jnp.sum(jnp.linalg.norm(displacement - true, axis=-1) * moving, axis=(1, 2))
    none = jnp.sum(length * moving, axis=(1, 2))
    still = valid & (length < 1e-3)
    drift = jnp.sum(jnp.linalg.norm(displacement, axis=-1) * still, axis=(1, 2))
    return psnr, {
      "depth correlation": jnp.mean(validation.correlation(drawn.depth, target.depth), axis=1),
      "relative depth error, scale aligned": jnp.sum(relative, axis=(1, 2, 3)) / count,
      "scale error (1 is none)": jnp.exp(jnp.abs(shift)),
      "moving points: error over no motion": jnp.where(none > 0, error / none, jnp.nan),
      "moving points: error in metres": jnp.where(
        none > 0, error / jnp.sum(moving, (1, 2)), jnp.nan
      ),
      "still points: drift in metres": drift / jnp.maximum(jnp.sum(still, axis=(1, 2)), 1),
    }

  return scores


def _at(dynamic: DynamicGaussians, times: slice) -> DynamicGaussians:
  return dataclasses.replace(
    dynamic, times=dynamic.times[:, times], deformation=dynamic.deformation[:, times]
  )


def summary(values) -> str:
  """Mean and deviation over the scenes in which a score exists."""
  values = np.asarray(values)
  values = values[np.isfinite(values)]
  return f"{values.mean():7.3f} +- {values.std():.3f} (n {len(values)})"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", type=pathlib.Path, help="a run; the shipped weights without")
  parser.add_argument("--optimised", type=int, default=0, help="scenes of the two-stage baseline")
  parser.add_argument("--seconds", type=float, default=60, help="of it for each scene")
  options = parser.parse_args()

  if options.run:
    _, system = run_folder.read_system(options.run)
    params, step = checkpoint.read_model(options.run, system.abstract())
    print(f"{options.run} at step {step}")
  else:
    system = System.build(base("tiny").model.to_dict())
    abstract = system.abstract()
    params = {part: shipped.load("tiny", part, abstract[part]) for part in ("autoencoder", "ldrm")}
  tokenize = system.backbone.tokenizer
  constant, layout = layouts(clips("train", _LAYOUTS, tokenize, views=0))
  score = make_scores(system, params, constant, layout)
  masks = moving_masks(SCENES)
  found = []
  for number, clip in enumerate(clips("heldout", SCENES, tokenize)):
    found.append(jax.device_get(score(clip, masks[number * BATCH : (number + 1) * BATCH])))
  psnr, others = jax.tree.map(lambda *x: np.concatenate(x), *found)
  print(f"PSNR in dB over {SCENES} scenes, {VIEWS} views each: all pixels; moving solids")
  for name, (whole, moving) in psnr.items():
    print(f"  {name:28} {summary(whole)}; {summary(moving)}")
  for name, values in others.items():
    print(f"  {name:40} {summary(values)}")
  if options.optimised:
    two_stage(system, params, layout, masks, psnr["ours"], options)


def two_stage(system, params, layout, masks, ours, options) -> None:
  """Prints the two-stage baseline beside ours on the same scenes."""
  through = jax.jit(
    lambda images: system.backbone.decode(params, system.backbone.encode(params, images))
  )
  source = open_source("synthetic", split="heldout", views=VIEWS)
  clips = validation.load_clips(source, system.backbone.tokenizer, 1, options.optimised)
  found = []
  for number, clip in enumerate(clips):
    video = through(clip.source.images)[0]
    image = optimised(clip, video, layout, options.seconds)[None]
    whole = jnp.mean(validation.psnr(image, clip.target.images), axis=1)
    moving = masked_psnr(image, clip.target.images, masks[number : number + 1])
    found.append((whole[0], moving[0]))
  print(f"the first {options.optimised} scenes, {options.seconds:g} s each:")
  count = options.optimised
  rows = {"two stages": np.transpose(found), "ours": [values[:count] for values in ours]}
  for name, (whole, moving) in rows.items():
    print(f"  {name:28} {summary(whole)}; {summary(moving)}")


if __name__ == "__main__":
  main()
