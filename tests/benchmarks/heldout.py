r"""Scores a reconstruction model on 64 held-out scenes, beside the baselines it has to beat.

  python tests/benchmarks/heldout.py
  python tests/benchmarks/heldout.py --run=runs/dynamic-tiny
  python tests/benchmarks/heldout.py --film=bbb.mp4

The scenes are numbers 0 to 63 of the held-out split. Each has eight views at times and cameras that
were not input, half of them off the camera's path. Every model sees the nine frames of the source
video; ours sees them through the autoencoder. The baselines are: repeating the input frame nearest
in time or in camera; one Gaussian for each 2x2 input pixels, of its colour, all at one depth, at
the mean depth of that pixel of that frame over training scenes, or at its true depth; and our own
with its deformation off. Lifted pixels lie before the mean colour of the input. Means and standard
deviations over scenes; beside each baseline how far ours is above it, scene by scene, with the
interval of 95% of that mean by bootstrap over scenes. The autoencoder's own score is of the source
videos, and with --film of 64 held-out clips of a film as well.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.config import base  # noqa: E402
from d4s_jax.data.source import open_source  # noqa: E402
from d4s_jax.evaluation import families, geometry  # noqa: E402
from d4s_jax.evaluation.summary import bootstrap  # noqa: E402
from d4s_jax.geometry.deformation import identity  # noqa: E402
from d4s_jax.models import gaussian_head, shipped  # noqa: E402
from d4s_jax.models.system import System  # noqa: E402
from d4s_jax.training import checkpoint, run_folder, validation  # noqa: E402
from d4s_jax.types import Clip, DynamicGaussians  # noqa: E402

SCENES, BATCH, VIEWS = 64, 4, 8
# Training scenes over which the mean depth is taken.
_LAYOUTS = 64
# Bounds of depth of lifted pixels, as those of `tiny`.
SCENE_SCALE = base("tiny").model.ldrm.scene_scale
# Pixels of a lifted Gaussian along each side and its opacity.
_CELL, _OPACITY = 2, 0.2
# Names of scores: our views, and the source video decoded again.
_OURS, _DECODED = "ours", "the autoencoder, source video"


def clips(split: str, count: int, tokenize, views: int = VIEWS) -> list[Clip]:
  """The first clips of a split in batches."""
  source = open_source("synthetic", split=split, views=views)
  return list(validation.HeldOut(source, tokenize, BATCH, count // BATCH))


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


def masked_psnr(image, target, mask) -> float:
  """PSNR over the masked pixels of all views [v h w 3] of a scene; NaN without any."""
  chosen = np.square(np.asarray(image, np.float64) - target)[mask]
  return float(-10 * np.log10(chosen.mean())) if chosen.size else float("nan")


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


def make_views(system: System, params, constant, layout):
  """The function from a batch to pictures by method and what else is scored.

  That is our depth, its correlation, our scene at source times, and the source video decoded.
  """

  @jax.jit
  def views(clip: Clip):
    target = clip.target
    latents = system.backbone.encode(params, clip.source.images)
    times = jnp.concatenate([target.times, clip.source.times], axis=1)
    dynamic, _ = system.reconstruct(params, latents, clip.source.cameras, times)
    count = target.times.shape[1]
    ours = _at(dynamic, slice(0, count))
    drawn = validation.draw(ours, target.cameras)
    images = {
      _OURS: drawn.image,
      "ours, deformation off": validation.draw(
        validation.without_motion(ours), target.cameras
      ).image,
      "frame nearest in time": validation.nearest_time(clip),
      "frame nearest in camera": validation.nearest_camera(clip),
      "pixels at one depth": drawn_lifted(clip, constant * jnp.ones_like(clip.source.depth)),
      "pixels at the mean depth": drawn_lifted(clip, layout * jnp.ones_like(clip.source.depth)),
      "pixels at their true depth": drawn_lifted(clip, clip.source.depth),
    }
    depth = jnp.where(drawn.alpha > 0.5, drawn.depth, 0)
    correlation = jnp.mean(validation.correlation(drawn.depth, target.depth), axis=1)
    decoded = system.backbone.decode(params, latents)
    return images, depth, correlation, _at(dynamic, slice(count, None)), decoded

  return views


def scores(views, clip: Clip, moving: np.ndarray) -> list[dict[str, float]]:
  """Of each scene of a batch, as `d4s_jax.evaluate` measures them."""
  images, depth, correlation, dynamic, decoded = jax.device_get(views(clip))
  found = []
  for index, mask in enumerate(moving):
    one = jax.tree.map(lambda x, i=index: np.asarray(x)[i], clip)
    told = {}
    for name, pictures in images.items():
      told[name] = float(np.mean(families.psnr(pictures[index], one.target.images)))
      told[f"{name}, moving"] = masked_psnr(pictures[index], one.target.images, mask)
    told[_DECODED] = float(np.mean(families.psnr(decoded[index], one.source.images)))
    depths = geometry.depth_scores(depth[index], one.target.depth)
    motion = geometry.motion_scores(jax.tree.map(lambda x, i=index: x[i], dynamic), one)
    told |= {
      "depth correlation": float(correlation[index]),
      "depth, AbsRel": depths["absolute_relative"],
      "error of the scale (1 is none)": float(np.exp(np.abs(np.log(depths["scale"])))),
      "moving points: error over no motion": motion["over_none"],
      "moving points: error in metres": motion["end_point"],
      "still points: drift in metres": motion["drift"],
    }
    found.append(told)
  return found


def of_film(system: System, params, file: pathlib.Path) -> list[float]:
  """PSNR of held-out clips of a film after the autoencoder, clip by clip."""
  source = open_source(f"film:{file}", posed=False, split="heldout")

  @jax.jit
  def score(images):
    decoded = system.backbone.decode(params, system.backbone.encode(params, images))
    return validation.psnr(decoded, images).mean(axis=1)

  batches = validation.HeldOut(source, system.backbone.tokenizer, BATCH, SCENES // BATCH)
  return [float(x) for batch in batches for x in score(batch.source.images)]


def _at(dynamic: DynamicGaussians, times: slice) -> DynamicGaussians:
  return dataclasses.replace(
    dynamic, times=dynamic.times[:, times], deformation=dynamic.deformation[:, times]
  )


def summary(values) -> str:
  """Mean and deviation over the scenes in which a score exists."""
  values = np.asarray(values)
  values = values[np.isfinite(values)]
  return f"{values.mean():7.3f} +- {values.std():.3f} (n {len(values)})"


def above(ours, theirs) -> str:
  """Mean of the differences over the scenes that have both, with its interval of 95%."""
  differences = np.subtract(ours, theirs)
  differences = differences[np.isfinite(differences)]
  low, high = bootstrap(differences) or (np.nan, np.nan)
  return f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", type=pathlib.Path, help="a run; the shipped weights without")
  parser.add_argument("--film", type=pathlib.Path, help="score the autoencoder on its clips too")
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
  views = make_views(system, params, constant, layout)
  masks = moving_masks(SCENES)
  found = []
  for number, clip in enumerate(clips("heldout", SCENES, tokenize)):
    found += scores(views, clip, masks[number * BATCH : (number + 1) * BATCH])
  values = {name: [each[name] for each in found] for name in found[0]}
  if options.film:
    values["the autoencoder, film"] = of_film(system, params, options.film)
  print(
    f"PSNR in dB over {SCENES} scenes, {VIEWS} views each: all pixels; moving solids; ours above it"
  )
  for name in values:
    moving = f"{name}, moving"
    if moving in values:
      ours = above(values[_OURS], values[name]), above(values[f"{_OURS}, moving"], values[moving])
      print(f"  {name:28} {summary(values[name])}; {summary(values[moving])}; {ours[0]}; {ours[1]}")
    elif not name.endswith(", moving"):
      print(f"  {name:40} {summary(values[name])}")


if __name__ == "__main__":
  main()
