r"""Per-scene optimisation from a prediction, from random points and from points of SIFT, over time.

  python tests/benchmarks/refine.py --scenes=2 --seconds=60 --figure=.github/refine.png

The scenes are the first held-out ones in which nothing moves and SIFT finds points. Each start is
fitted to the true video (9 frames of 64 x 64) with the same number of Gaussians and the same
recipe; quality is the mean PSNR of eight views and times that were not input. The prediction is the
shipped reconstruction model's, whose time (a fraction of a second) is not counted. Compilation
isn't either.
"""

import argparse
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from matplotlib.figure import Figure  # noqa: E402

from d4s_jax.data.source import open_source  # noqa: E402
from d4s_jax.evaluation import starts  # noqa: E402
from d4s_jax.pipeline import Pipeline, progress  # noqa: E402
from d4s_jax.training import fitting, inference, refinement  # noqa: E402

STEPS = 1000
# Moments, seconds, at which quality is looked at.
MOMENTS = (0, 2, 5, 10, 20, 30, 45, 60, 90, 120)


def curve(start, clip, seconds: float) -> list[tuple[float, int, float]]:
  """(seconds, steps, PSNR of other views) at some moments of an optimisation."""
  found = [(0.0, 0, fitting.psnr(start, clip.target))]
  states = refinement.refining(
    *(start, clip.source),
    extent=fitting.extent(start, clip.source),
    key=jax.random.key(0),
    steps=STEPS,
  )
  scene = next(states)  # compiles
  spent, number = 0.0, 1
  for moment in (m for m in MOMENTS[1:] if m <= seconds):
    begin = time.perf_counter()
    while spent + time.perf_counter() - begin < moment:
      scene = next(states)
      number += 1
    spent += time.perf_counter() - begin
    found.append((spent, number, fitting.psnr(scene(), clip.target)))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--scenes", type=int, default=2)
  parser.add_argument("--seconds", type=float, default=60)
  parser.add_argument("--figure", type=pathlib.Path)
  options = parser.parse_args()
  trained = inference.open_checkpoint("shipped", progress.timed)
  params = dict(trained.parts)
  pipeline = Pipeline(trained.system, params, **trained.config["sampling"])
  encode = jax.jit(trained.system.backbone.encode)
  source = open_source("synthetic", split="heldout", kind="static", views=8)
  curves: dict[str, list] = {}
  number = used = 0
  while used < options.scenes:
    clip = source.read(number)
    number += 1
    video = np.asarray(clip.source.images)
    latents = encode({"autoencoder": params["autoencoder"]}, video[None])[0]
    predicted = pipeline.reconstruct(latents, clip.source.cameras)
    count = len(predicted.means)
    try:
      points, found = starts.of_sift(clip.source, count)
    except ValueError as error:
      print(f"scene {number - 1} is left out: {error}")
      continue
    used += 1
    depth = fitting.extent(predicted, clip.source)
    begins = {
      "our prediction": predicted,
      "SIFT points at the true cameras": points,
      "random points": starts.of_random(clip.source, count, depth),
    }
    for name, start in begins.items():
      told = curve(start, clip, options.seconds)
      curves.setdefault(name, []).append([(t, p) for t, _, p in told])
      text = ", ".join(f"{t:.0f} s {p:.2f}" for t, _, p in told)
      print(f"scene {number - 1} ({found} SIFT points), {name}: {text} dB; {told[-1][1]} steps")
  print(f"mean of {used} scenes:")
  means = {name: np.mean(np.asarray(x), axis=0) for name, x in curves.items()}
  for name, mean in means.items():
    print(f"  {name:34} " + "  ".join(f"{t:.0f} s {p:.2f}" for t, p in mean) + " dB")
  if options.figure:
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, mean in means.items():
      axes.plot(mean[:, 0], mean[:, 1], marker="o", label=name)
    axes.set(xlabel="seconds of optimisation, two cores", ylabel="PSNR of other views, dB")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(options.figure, dpi=130)


if __name__ == "__main__":
  main()
