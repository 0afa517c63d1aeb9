r"""What reuse of features costs and saves, on held-out scenes.

  python tests/benchmarks/sampling.py
  python tests/benchmarks/sampling.py --checkpoint=runs/joint-tiny --steps 30 --reuse 5 10 15

For each number of steps, runs on some held-out scenes are made in full and what reuse would change
is measured (`diffusion.reuse.calibrate`); the table of steps with the least sum of these errors,
averaged over the scenes, is then followed on other scenes. Printed for each number of reused steps:
the relative L2 error of the latents after the first, which is given, and the PSNR of the decoded
frames, both against no reuse from the same noise; passes through all of the transformer, and
seconds of sampling (the least over scenes, compilation left out; on a CPU of its cores, so that
other work there does not count), with their ratios to no reuse. For scale comes first what another
seed of the noise changes.

The table that suits goes into a configuration as `sampling.reuse`, or into
`python -m d4s_jax.generate --reuse=..`.
"""

import argparse
import time

import jax
import numpy as np

from d4s_jax.data.source import open_source
from d4s_jax.diffusion import reuse
from d4s_jax.diffusion.guidance import guidance
from d4s_jax.diffusion.sampler import unconditional_passes
from d4s_jax.pipeline import Pipeline, progress
from d4s_jax.training import inference, validation


def errors_of(pipeline: Pipeline, clips) -> np.ndarray:
  """Mean errors of reuse at each step."""
  return np.mean(
    [pipeline.calibrate(np.asarray(c.source.images[0]), c.source.cameras, c.text) for c in clips],
    axis=0,
  )


def follow(pipeline: Pipeline, clips, seed: int = 0) -> tuple[list, list, float]:
  """Latents and videos of the clips, and the least seconds that sampling took."""
  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  latents, videos, seconds = [], [], []
  for number, clip in enumerate(clips):
    inputs = np.asarray(clip.source.images[0]), clip.source.cameras, clip.text, seed
    if not number:
      pipeline.sample(*inputs)  # Compiles.
    start = clock()
    made = np.asarray(pipeline.sample(*inputs))
    seconds.append(clock() - start)
    latents.append(made)
    videos.append(np.asarray(pipeline.video(made)))
  return latents, videos, min(seconds)


def apart(made, full) -> tuple[float, float]:
  """Mean relative error of latents and mean PSNR of videos, without the first frame."""
  latents = [np.linalg.norm((a - b)[1:]) / np.linalg.norm(b[1:]) for a, b in zip(made[0], full[0])]
  videos = [np.mean(validation.psnr(a[1:], b[1:])) for a, b in zip(made[1], full[1])]
  return float(np.mean(latents)), float(np.mean(videos))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="shipped")
  parser.add_argument("--steps", type=int, nargs="+", default=[8, 30])
  parser.add_argument("--reuse", type=int, nargs="+", help="numbers of steps; an eighth to a half")
  parser.add_argument("--scenes", type=int, default=8, help="to measure on")
  parser.add_argument("--calibrate", type=int, default=8, help="scenes, other ones")
  options = parser.parse_args()
  trained = inference.open_checkpoint(options.checkpoint, progress.timed)
  params = dict(trained.parts)
  size = {name: trained.config["clip"][name] for name in ("frames", "height", "width")}
  source = open_source("synthetic", split="heldout", kind="dynamic", views=1, **size)
  clips = [source.read(number) for number in range(options.scenes + options.calibrate)]
  known, others = clips[: options.calibrate], clips[options.calibrate :]

  for steps in options.steps:
    settings = trained.config["sampling"] | {"steps": steps, "reuse": ()}
    weights = guidance(settings["guidance"], steps, settings["scale"])
    plain = Pipeline(trained.system, params, **settings)
    errors = errors_of(plain, known)
    full = follow(plain, others)
    passes = steps + unconditional_passes(weights)
    print(f"\n{steps} steps, {options.calibrate} scenes to calibrate, {options.scenes} to measure")
    print("  reused     latents, relative   video, dB   passes          seconds         steps")
    error, decibels = apart(follow(plain, others, seed=1), full)
    print(f"  other seed {error:17.4f} {decibels:11.1f}")
    print(f"  {0:10} {0:17.4f} {'same':>11} {passes:8}        {full[2]:7.2f}")
    for count in options.reuse or sorted({max(1, steps * part // 8) for part in (1, 2, 3, 4)}):
      table = reuse.choose(errors, count)
      made = follow(Pipeline(trained.system, params, **settings | {"reuse": table}), others)
      error, decibels = apart(made, full)
      left = steps - count + unconditional_passes(weights, table)
      print(
        f"  {count:10} {error:17.4f} {decibels:11.1f} {left:8} ({passes / left:.2f}x)"
        f" {made[2]:7.2f} ({full[2] / made[2]:.2f}x)  {','.join(map(str, table))}",
        flush=True,
      )


if __name__ == "__main__":
  main()
