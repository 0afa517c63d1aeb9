r"""What per-scene optimisation makes of a video in so many seconds, beside a model's one pass.

  python tests/benchmarks/fitted.py
  python tests/benchmarks/fitted.py --checkpoint=runs/joint-tiny --scenes=64 --seconds=10

Of the first held-out scenes, both see the video as the autoencoder gives it back, and are scored at
eight views and times each that were not input. The fit has as many Gaussians as the model makes,
from points of SIFT matches at the true cameras, or, without four of these, random ones.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.data.source import open_source  # noqa: E402
from d4s_jax.evaluation.maker import Maker  # noqa: E402
from d4s_jax.pipeline import progress  # noqa: E402
from d4s_jax.training import fitting, inference, refinement  # noqa: E402
from d4s_jax.types import DynamicGaussians, Views  # noqa: E402

VIEWS = 8


def fit(start: DynamicGaussians, views: Views, seconds: float, seed: int):
  """The scene after so many seconds, and after how many steps."""
  begun, steps = time.monotonic(), []

  def proceed(number: int) -> bool:
    steps.append(number)
    return time.monotonic() < begun + seconds

  extent, key = fitting.extent(start, views), jax.random.key(seed)
  return refinement.refine(start, views, extent=extent, key=key, proceed=proceed), steps[-1]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="shipped")
  parser.add_argument("--scenes", type=int, default=8)
  parser.add_argument("--seconds", type=float, default=60.0, help="of each fit")
  options = parser.parse_args()
  maker = Maker(inference.open_checkpoint(options.checkpoint, progress.timed))
  source = open_source("synthetic", split="heldout", views=VIEWS)
  found = []
  for index in range(options.scenes):
    clip = source.read(index)
    latents = maker.encode(clip)
    views = dataclasses.replace(clip.source, images=np.asarray(maker.pipeline.video(latents)))
    try:
      start, kind = maker.from_points(views), "SIFT"
    except ValueError:
      start, kind = maker.from_random(views), "random"
    if not found:
      fit(start, views, 0.1, index)  # Compiles.
    scene, steps = fit(start, views, options.seconds, index)
    ours = maker.pipeline.reconstruct(latents, views.cameras)
    found.append([fitting.psnr(x, clip.target) for x in (scene, ours)])
    fitted, own = found[-1]
    print(f"  scene {index}, {kind}, {steps} steps: {fitted:.2f}; ours {own:.2f}", flush=True)
  print(f"PSNR in dB, {VIEWS} views each, of {options.seconds:g} s of fitting to each scene")
  for name, values in zip(("fitted", "ours"), np.transpose(found)):
    print(f"  {name:8} {values.mean():7.3f} +- {values.std():.3f} (n {len(values)})")


if __name__ == "__main__":
  main()
