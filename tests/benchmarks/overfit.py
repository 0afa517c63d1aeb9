"""Overfits the LDRM on one dynamic clip and prints PSNR at seen and unseen views and times.

Shows that latents, rays, Gaussians, deformation, renderer and losses can together represent a
moving scene. Of 48 views at random times, two in three are trained on ("seen", with the nine source
frames), the rest only scored ("unseen").

  python tests/benchmarks/overfit.py --minutes=10 --output=runs/overfit
"""

import argparse
import dataclasses
import pathlib
import time

import jax
import numpy as np

from d4s_jax.config import base
from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.formats.video import colorize_depth, write_video
from d4s_jax.models import shipped
from d4s_jax.models.system import System
from d4s_jax.training import objectives, state, validation
from d4s_jax.training.optimizer import make_optimizer
from d4s_jax.training.stages import Stage
from d4s_jax.training.step import make_step
from d4s_jax.types import Clip, Views

VIEWS = 48
VIEWS_A_STEP = 8
STAGE = Stage(("reconstruction",), ("^ldrm/",), "dynamic")


def pick(views: Views, index: np.ndarray) -> Views:
  """Some of the views of one clip without a batch axis."""
  return Views(
    images=views.images[index],
    depth=views.depth[index],
    cameras=views.cameras[index],
    times=views.times[index],
  )


def join(first: Views, second: Views) -> Views:
  return jax.tree.map(lambda *x: np.concatenate(x), first, second)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--minutes", type=float, default=10.0)
  parser.add_argument("--clip", type=int, default=0, help="number of the held-out clip")
  parser.add_argument("--gaussians", type=int, default=8192)
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/overfit"))
  options = parser.parse_args()
  begin = time.perf_counter()

  config = base("tiny")
  config.model.ldrm.update({"gaussians": options.gaussians, "pixels_per_cell": 1})
  system = System.build(config.model.to_dict())
  source = SOURCES["synthetic"](split="heldout", kind="dynamic", views=VIEWS)
  clip = with_tokens(source.read(options.clip), system.backbone.tokenizer)
  unseen = np.arange(VIEWS) % 3 == 2
  seen_views = join(clip.source, pick(clip.target, np.flatnonzero(~unseen)))
  unseen_views = pick(clip.target, np.flatnonzero(unseen))

  params = system.init(jax.random.key(0, impl="unsafe_rbg"))
  params["autoencoder"] = shipped.load("tiny", "autoencoder", params["autoencoder"])
  steps = int(options.minutes * 60 / 0.25)
  optimizer = make_optimizer(
    peak=1e-3, warmup=20, steps=steps, betas=(0.9, 0.95), weight_decay=0.0, clip=1.0
  )
  now = state.create(params, STAGE.trainable, optimizer)
  settings = objectives.Settings(**config.loss.to_dict() | {"motion_form": "huber"})
  step = make_step(
    objectives.make_objective(system, STAGE, settings), optimizer, seed=0, average_decay=0.99
  )
  step = jax.jit(step, donate_argnums=0)

  def with_targets(views: Views) -> Clip:
    return jax.tree.map(lambda x: x[None], dataclasses.replace(clip, target=views))

  @jax.jit
  def score(params, clip: Clip):
    latents = system.backbone.encode(params, clip.source.images)
    dynamic = system.reconstruct(params, latents, clip.source.cameras, clip.target.times)
    rendering = validation.draw(dynamic, clip.target.cameras)
    return validation.psnr(rendering.image, clip.target.images)[0], rendering.image, rendering.depth

  def report(number: int) -> None:
    params = state.averaged_params(now)
    minutes = (time.perf_counter() - begin) / 60
    values = [np.asarray(score(params, with_targets(v))[0]) for v in (seen_views, unseen_views)]
    print(
      f"{minutes:5.1f} min  step {number:5d}  PSNR seen {values[0].mean():5.2f} dB"
      f"  unseen {values[1].mean():5.2f} dB",
      flush=True,
    )

  rng = np.random.default_rng(0)
  report(0)
  for number in range(1, steps + 1):
    index = rng.choice(len(seen_views.times), VIEWS_A_STEP, replace=False)
    now, _ = step(now, with_targets(pick(seen_views, index)))
    if number % 200 == 0:
      report(number)
    if time.perf_counter() - begin > 60 * options.minutes:
      break
  report(number)
  options.output.mkdir(parents=True, exist_ok=True)
  everything = join(seen_views, unseen_views)
  order = np.argsort(everything.times)
  _, image, depth = score(state.averaged_params(now), with_targets(pick(everything, order)))
  shown = [everything.images[order], np.clip(image[0], 0, 1), colorize_depth(np.asarray(depth[0]))]
  write_video(options.output / "overfit.mp4", np.concatenate(shown, 2).repeat(4, 1).repeat(4, 2), 8)
  print(f"Truth, rendering and depth of all views: {options.output / 'overfit.mp4'}")


if __name__ == "__main__":
  main()
