"""Turns a photograph, a camera path and a prompt into a dynamic scene.

Example:
  python -m d4s_jax.generate --image=photo.jpg --trajectory=spiral --output=scenes/first \
      --prompt="a cat on a wall turns its head"

--trajectory: spiral:distance=0.5,pivot=2,turns=1 forward:distance=0.5 (and backward up down)
orbit:degrees=360,radius=2, metres, all parameters optional; or a file of cameras.

Leaves a folder: scene.safetensors and scene.json (the scene), video.mp4, depth.mp4, preview.png.

Without --checkpoint the small weights that come with the package serve. It may be a training run,
or a published pipeline that d4s_jax.convert made ours. The latter, and a run of the diffusion
stage, are video models alone: video.mp4, preview.png, video.json (--result=video for any of them).
"""

import pathlib

from absl import flags, logging

from d4s_jax import captioning, errors
from d4s_jax.pipeline import PROMPT, Pipeline, marking, orders, progress, results
from d4s_jax.training import compilation, inference

_IMAGE = flags.DEFINE_string("image", None, "Photograph of any size.", required=True)
_TRAJECTORY = flags.DEFINE_string(
  "trajectory", None, "A name, with parameters or without, or a file of cameras.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder; a new one for a video.", required=True)
_PROMPT = flags.DEFINE_string("prompt", PROMPT, "What is seen, and what happens; auto asks.")
_NEGATIVE = flags.DEFINE_string("negative_prompt", None, "What to avoid; else the checkpoint's.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "shipped", "A run or converted weights.")
_RESULT = flags.DEFINE_enum("result", None, results.RESULTS, "Else what the checkpoint can make.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
_FRAMES = flags.DEFINE_integer("frames", None, "Of the video; else the checkpoint's.")
_HEIGHT = flags.DEFINE_integer("height", None, "Pixels; else the checkpoint's.")
_WIDTH = flags.DEFINE_integer("width", None, "Pixels; else the checkpoint's.")
_FOV = flags.DEFINE_float(
  "fov", None, "Horizontal degrees that the photograph sees; 60, or what the camera file says."
)
_STEPS = flags.DEFINE_integer("steps", None, "Denoising steps; else the checkpoint's.")
_GUIDANCE = flags.DEFINE_string("guidance", None, "cosine or constant; else the checkpoint's.")
_SCALE = flags.DEFINE_float("scale", None, "Guidance scale; else the checkpoint's.")
_SOLVER = flags.DEFINE_string("solver", None, "ddim, unipc or dpm; else the checkpoint's.")
_REUSE = flags.DEFINE_list("reuse", None, "Steps that reuse features; else the checkpoint's.")
_WATERMARK = flags.DEFINE_boolean("watermark", True, "Mark the result invisibly as generated.")


def main(argv: list[str]) -> None:
  """Generates one scene, or one video."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    output = pathlib.Path(_OUTPUT.value)
    trained = inference.open_checkpoint(_CHECKPOINT.value, progress.timed)
    kind = results.kind(_RESULT.value, trained.reconstructs)
    results.check_output(output, kind)
    frames, height, width = (
      trained.config["clip"][flag.name] if flag.value is None else flag.value
      for flag in (_FRAMES, _HEIGHT, _WIDTH)
    )
    trained.system.check_size(frames, height, width)
    key = marking.key(_WATERMARK.value)
    words = captioning.prompt(_PROMPT.value, _IMAGE.value)
    order = orders.take(
      *(_IMAGE.value, _TRAJECTORY.value, words, _SEED.value, (frames, height, width)),
      _FOV.value,
    )
    flagged = (_STEPS, _GUIDANCE, _SCALE, _SOLVER, _NEGATIVE, _REUSE)
    chosen = {flag.name: flag.value for flag in flagged}
    sampling, dropped = inference.sampling(trained.config, chosen)
    for note in (compilation.cache(), trained.note, dropped):
      progress.say(note) if note else None
    pipeline = Pipeline(trained.system, trained.parts, **sampling)
    about = (trained.config, trained.name, trained.digest(progress.timed), trained.fps)
    orders.Workshop(pipeline, kind, *about, key).make(order, output)


if __name__ == "__main__":
  errors.run(main)
