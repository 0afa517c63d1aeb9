r"""Scores what is generated from one image, a camera path and a caption, on held-out scenes.

  python tests/benchmarks/generation.py
  python tests/benchmarks/generation.py --checkpoint=runs/joint-tiny --scenes=8

The scenes are the first held-out ones in which something moves. All but the words is measured by
`d4s_jax.evaluate`, as its report says: videos against the true ones, all 9 frames of 64 x 64, of
the drawn scene, of the video model's own latents decoded to pixels, of the true video through the
autoencoder, which is the floor, and of the picture repeated; and the camera path that structure
from motion finds in drawn scenes, and in the true videos drawn as large. Views are drawn at the
cameras asked for, so this measures whether the scene holds together in 3D.

Words steer if the thing that moves goes where the caption says: each scene whose caption says
"left" or "right" is generated from its caption and from the one with the other word, and the sign
of the mean horizontal displacement, weighted by how far each Gaussian goes, is compared. Chance is
half; intervals are of 95%, by bootstrap over scenes. Of a caption with several such words the first
is exchanged, and all that moves in the scene is measured.
"""

import argparse
import json
import pathlib
import re
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.data.source import open_source  # noqa: E402
from d4s_jax.evaluation import benchmark, report, runner  # noqa: E402
from d4s_jax.evaluation.maker import Maker  # noqa: E402
from d4s_jax.evaluation.sample_sets import SOURCE  # noqa: E402
from d4s_jax.evaluation.settings import Settings  # noqa: E402
from d4s_jax.evaluation.summary import bootstrap  # noqa: E402
from d4s_jax.pipeline import Pipeline, progress  # noqa: E402
from d4s_jax.training import inference  # noqa: E402
from d4s_jax.types import DynamicGaussians  # noqa: E402

_OTHER = {"left": "right", "right": "left"}
_VIDEOS = "fvd,kvd,psnr,lpips,later_psnr,later_lpips"
_PATHS = "pose_success,rpe_translation,rpe_rotation"


def sideways(dynamic: DynamicGaussians) -> float:
  """Mean displacement to the right over the clip, metres, far goers counting more."""
  moved = dynamic.deformation[-1, :, :3] - dynamic.deformation[0, :, :3]
  weights = dynamic.opacities * np.linalg.norm(moved, axis=-1)
  return float(np.sum(weights * moved[:, 0]) / max(np.sum(weights), 1e-9))


def steering(pipeline: Pipeline, clips) -> tuple[list[float], list[float]]:
  """How right each scene that has such a word is, from 0 to 1.

  That is the share of its two words whose way it goes, and whether with "right" it goes further to
  the right than with "left".
  """
  right, ordered = [], []
  for clip in clips:
    found = re.search(r"\b(left|right)\b", clip.text)
    if not found:
      continue
    word = found.group()
    other = clip.text[: found.start()] + _OTHER[word] + clip.text[found.end() :]
    signs = {"left": -1, "right": 1}
    image = np.asarray(clip.source.images[0])
    went = {
      name: sideways(pipeline(image, clip.source.cameras, text))
      for name, text in ((word, clip.text), (_OTHER[word], other))
    }
    right.append(float(np.mean([signs[name] * value > 0 for name, value in went.items()])))
    ordered.append(float(went["right"] > went["left"]))
  return right, ordered


def share(values: list[float]) -> str:
  """Mean over scenes, with its interval."""
  low, high = bootstrap(np.asarray(values)) or (np.nan, np.nan)
  return f"{np.mean(values):.0%} [{low:.0%}, {high:.0%}]"


def write_videos(output: pathlib.Path, maker: Maker, clips) -> None:
  """Sets of what the video model makes, decoded, and of true videos through the autoencoder."""
  backbone = maker.trained.system.backbone
  through = jax.jit(
    lambda video: backbone.decode(maker.params, backbone.encode(maker.params, video))
  )
  for name in ("decoded", "autoencoder"):
    (output / name).mkdir(parents=True, exist_ok=True)
  for number, clip in enumerate(clips):
    video, cameras = np.asarray(clip.source.images), clip.source.cameras
    latents = maker.pipeline.sample(video[0], cameras, clip.text, maker.seed)
    made = {"decoded": maker.pipeline.video(latents), "autoencoder": through(video[None])[0]}
    for name, frames in made.items():
      np.save(output / name / f"clip{number:03d}.npy", np.clip(np.asarray(frames), 0, 1))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="shipped")
  parser.add_argument("--scenes", type=int, default=64)
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/generation"))
  options = parser.parse_args()
  maker = Maker(inference.open_checkpoint(options.checkpoint, progress.timed))
  output = options.output
  benchmark.embedded(output, maker, options.scenes, ("generated",))
  told = json.loads((output / "true" / SOURCE).read_text())
  source = open_source(told["source"], **told["options"])
  clips = [source.read(number) for number in range(options.scenes)]
  write_videos(output, maker, clips)
  settings = Settings(output=str(output / "report"), frames=maker.frames)
  large = output / "true_large"
  large.mkdir(exist_ok=True)
  told["options"] |= {"height": settings.pose_side, "width": settings.pose_side}
  (large / SOURCE).write_text(json.dumps(told))
  videos = ",".join(str(output / x) for x in ("generated", "decoded", "autoencoder", "still"))
  asked = {"samples": videos, "reference": str(output / "true"), "metrics": _VIDEOS}
  paths = {"samples": f"{output / 'generated'},{large}", "metrics": _PATHS}
  for each in (asked, paths):
    print(report.text(runner.evaluate(Settings(**vars(settings) | each))), flush=True)
  right, ordered = steering(maker.pipeline, clips)
  print(
    f"words of {len(right)} scenes: {share(right)} go where the caption says (chance 50%); with"
    f" the other word {share(ordered)} go further that way"
  )


if __name__ == "__main__":
  main()
