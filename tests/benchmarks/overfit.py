"""Overfits the LDRM on one dynamic clip and prints PSNR at unseen views, and how right motion is.

Shows that latents, rays, Gaussians, deformation, renderer and losses can together represent a
moving scene. Of 48 views at random times, half of them off the camera's path, two in three are
trained on ("seen", with the nine source frames), the rest only scored ("unseen"). The losses are
those of the joint stage, with the Huber form of the motion loss. Beside them stand PSNR with the
deformation off, and the end-point error of the moving points over that of predicting no motion:
before a long run, these tell whether motion can be learnt at all.

  python tests/benchmarks/overfit.py --output=runs/overfit
"""

import argparse
import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from d4s_jax import losses
from d4s_jax.config import base
from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.formats.video import colorize_depth, write_video
from d4s_jax.losses.lpips import load_weights
from d4s_jax.models import shipped
from d4s_jax.models.system import System
from d4s_jax.training import objectives, state, validation
from d4s_jax.training.motion_queries import ask, motion_error
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
  parser.add_argument("--steps", type=int, default=1000)
  parser.add_argument("--clip", type=int, default=0, help="number of the held-out clip")
  parser.add_argument("--gaussians", type=int, default=8192)
  parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
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

  params = jax.jit(system.init)(jax.random.key(0, impl="unsafe_rbg"))
  params["autoencoder"] = shipped.load("tiny", "autoencoder", params["autoencoder"])
  latents = jax.jit(system.backbone.encode)(params, jnp.asarray(clip.source.images)[None])
  optimizer = make_optimizer(
    peak=options.peak, warmup=20, steps=options.steps, betas=(0.9, 0.95), weight_decay=0.0, clip=1.0
  )
  parts = {name: params[name] for name in ("autoencoder", "ldrm")}
  now = state.create(parts, STAGE.trainable, optimizer)
  settings = objectives.Settings(**config.loss.to_dict() | {"motion_form": "huber"})
  lpips = load_weights(settings.lpips)

  def objective(params, clip: Clip, key):
    sigma = jnp.zeros(1)
    terms, numbers = objectives.reconstruction(
      system, STAGE, params, clip, latents, sigma, key, settings, lpips
    )
    return losses.total({name: settings.weights[name] for name in terms}, terms), terms | numbers

  step = jax.jit(make_step(objective, optimizer, seed=0, average_decay=0.99), donate_argnums=0)

  def with_targets(views: Views) -> Clip:
    return jax.tree.map(lambda x: x[None], dataclasses.replace(clip, target=views))

  @jax.jit
  def draw(params, clip: Clip):
    """Pictures, the same without deformation, and depth."""
    dynamic, _ = system.reconstruct(params, latents, clip.source.cameras, clip.target.times)
    rendering = validation.draw(dynamic, clip.target.cameras)
    still = validation.draw(validation.without_motion(dynamic), clip.target.cameras)
    return rendering.image[0], still.image[0], rendering.depth[0]

  @jax.jit
  def error_of_motion(params, clip: Clip):
    times = clip.source.times.shape[1]
    _, displacement, truth = ask(system, params, clip, latents, jax.random.key(0), times)
    return motion_error(displacement, *truth)

  def psnr(params, views: Views) -> tuple[float, float]:
    """With and without the deformation."""
    moving, still, _ = draw(params, with_targets(views))
    moving, still = (jnp.mean(validation.psnr(x, views.images)) for x in (moving, still))
    return float(moving), float(still)

  def report(number: int):
    params = state.averaged_params(now)
    (seen, _), (new, still) = (psnr(params, views) for views in (seen_views, unseen_views))
    error = float(error_of_motion(params, with_targets(unseen_views)))
    minutes = (time.perf_counter() - begin) / 60
    print(
      f"{minutes:5.1f} min  step {number:5d}  PSNR seen {seen:5.2f} dB  unseen {new:5.2f} dB,"
      f" deformation off {still:5.2f} dB  motion error over none {error:.3f}",
      flush=True,
    )

  rng = np.random.default_rng(0)
  report(0)
  for number in range(1, options.steps + 1):
    index = rng.choice(len(seen_views.times), VIEWS_A_STEP, replace=False)
    now, _ = step(now, with_targets(pick(seen_views, np.sort(index))))
    if number % 200 == 0 or number == options.steps:
      report(number)

  options.output.mkdir(parents=True, exist_ok=True)
  everything = join(seen_views, unseen_views)
  everything = pick(everything, np.argsort(everything.times))
  image, _, depth = draw(state.averaged_params(now), with_targets(everything))
  panels = [everything.images, np.clip(image, 0, 1), colorize_depth(np.asarray(depth))]
  write_video(
    options.output / "overfit.mp4", np.concatenate(panels, 2).repeat(4, 1).repeat(4, 2), 8
  )
  print(f"Truth, rendering and depth of all views: {options.output / 'overfit.mp4'}")


if __name__ == "__main__":
  main()
