"""Improves a scene by fitting it to a video along its own camera path.

Example:
  python -m d4s_jax.refine --scene=scenes/first --video=first.mp4 --output=scenes/better

The video has a frame for each camera of the scene, of the same aspect and at most 270 million
pixels in all: the true one, or what the video model made (d4s_jax.generate --result=video).
Positions, shapes, colours and motion of the Gaussians are optimised (L1 + SSIM; what is transparent
moves to where it is needed); their number stays. The fifth frame and every eighth after it are not
fitted but looked at: if the result is worse there than the scene was, a warning says so.
"""

import pathlib

import numpy as np
from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import scene
from d4s_jax.formats.video import read_video
from d4s_jax.pipeline import marking, preview, progress
from d4s_jax.training import compilation, fitting
from d4s_jax.types import DynamicGaussians, Views

_SCENE = flags.DEFINE_string("scene", None, "Folder, or .safetensors of export.", required=True)
_VIDEO = flags.DEFINE_string("video", None, "What it is to look like.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the new scene.", required=True)
_STEPS = flags.DEFINE_integer("steps", 2000, "Of the optimisation.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the frames drawn for each step.")
_WATERMARK = flags.DEFINE_boolean("watermark", True, "Mark scene and video invisibly as generated.")

_FPS = 8.0


def main(argv: list[str]) -> None:
  """Refines one scene."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    output = pathlib.Path(_OUTPUT.value)
    key = marking.key(_WATERMARK.value)
    scene.check_output(output)
    if output.resolve() == pathlib.Path(_SCENE.value).resolve():
      raise ValueError(f"--output={output} is the scene itself; name another folder.")
    dynamic, metadata = scene.read_scene(_SCENE.value)
    views = fitting.video_views(read_video(_VIDEO.value), metadata)
    compilation.cache()
    fitted_views, held = fitting.hold_out(views)
    with progress.bar("refine", _STEPS.value, "step") as bar:
      told = _STEPS.value, _SEED.value, lambda: bar.update(1)
      fitted = fitting.fit(dynamic, fitted_views, *told)
    _compare(dynamic, fitted, fitted_views, held)
    told = fitting.refined(metadata, _STEPS.value)
    # Fitting wears away the mark that the scene had.
    fitted = marking.scene(fitted, key)
    with scene.replacing(output, fitted, told) as staged:
      photo = np.asarray(views.images[0])
      preview.write_views(staged, photo, fitted, told, _FPS, key)
    print(f"Scene: {output}   Look at: {output / 'preview.png'}, {output / 'video.mp4'}")


def _compare(before: DynamicGaussians, after: DynamicGaussians, views: Views, held: Views | None):
  """Prints what fitting did to the frames that it saw and to those that it didn't."""
  for what, each in {"fitted": views, "held out": held}.items():
    if each is None:
      progress.say(
        "note: a video of fewer than five frames; none was held out to check the result."
      )
      continue
    old, new = (fitting.psnr(scene, each) for scene in (before, after))
    print(f"PSNR to the frames {what}: {old:.2f} dB before, {new:.2f} dB after")
    if each is held and new < old:
      progress.say(
        f"warning: the result is worse than its start on frames that were not fitted, {new:.2f} for"
        f" {old:.2f} dB: it has learned the video by heart. Give fewer --steps, or keep the start."
      )


if __name__ == "__main__":
  errors.run(main)
