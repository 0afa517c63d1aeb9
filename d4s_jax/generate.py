"""Turns a photograph, a camera path and a prompt into a dynamic scene.

Example:
  python -m d4s_jax.generate --image=photo.jpg --trajectory=spiral --output=scenes/first \
      --prompt="a cat on a wall turns its head"

Leaves a folder: scene.safetensors and scene.json (the scene), video.mp4, depth.mp4, preview.png.
"""

import hashlib
import json
import pathlib

import jax.numpy as jnp
from absl import flags, logging

import d4s_jax
from d4s_jax import errors
from d4s_jax.formats import images, scene
from d4s_jax.pipeline import PROMPT, Pipeline, preview, progress, shot
from d4s_jax.training import checkpoint

_IMAGE = flags.DEFINE_string("image", None, "Photograph of any size.", required=True)
_TRAJECTORY = flags.DEFINE_string(
  "trajectory", None, "spiral, forward, backward, up, down, orbit, or a camera file.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the scene.", required=True)
_PROMPT = flags.DEFINE_string("prompt", PROMPT, "What is seen, and what happens.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "runs/joint-tiny", "Folder of a training run.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
_FOV = flags.DEFINE_float(
  "fov", None, "Horizontal degrees that the photograph sees; 60, or what the camera file says."
)
_DISTANCE = flags.DEFINE_float("distance", None, "Metres that a named path moves; 0.5.")
_PIVOT = flags.DEFINE_float("pivot", None, "Metres to what spiral and orbit look at; 2.")
_STEPS = flags.DEFINE_integer("steps", None, "Denoising steps; else the checkpoint's.")
_GUIDANCE = flags.DEFINE_string("guidance", None, "cosine or constant; else the checkpoint's.")
_SCALE = flags.DEFINE_float("scale", None, "Guidance scale; else the checkpoint's.")


def main(argv: list[str]) -> None:
  """Generates one scene."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    output, run = pathlib.Path(_OUTPUT.value), pathlib.Path(_CHECKPOINT.value)
    scene.check_output(output)
    config, system = checkpoint.read_system(run)
    clip = config["clip"]
    path = shot.camera_path(
      _TRAJECTORY.value, clip["frames"], distance=_DISTANCE.value, pivot=_PIVOT.value
    )
    photo = images.read_image(_IMAGE.value)
    image, cameras = shot.photograph(photo, path, clip["height"], clip["width"], _FOV.value)
    chosen = {"steps": _STEPS.value, "guidance": _GUIDANCE.value, "scale": _SCALE.value}
    sampling = config["sampling"] | {k: x for k, x in chosen.items() if x is not None}
    with progress.timed(f"load {run}"):
      params, step = checkpoint.read_model(run, system.abstract())
    dynamic = Pipeline(system, params, **sampling)(image, cameras, _PROMPT.value, _SEED.value)
    metadata = scene.SceneMetadata(
      cameras=cameras,
      times=jnp.asarray(path.times),
      prompt=_PROMPT.value,
      package_version=d4s_jax.__version__,
      seed=_SEED.value,
      checkpoint=f"{run.resolve().name}, step {step}",
      config_hash=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
    )
    with scene.replacing(output, dynamic, metadata) as staged:
      preview.write_views(staged, image, dynamic, cameras, path.times)
    print(f"Scene: {output}   Look at: {output / 'preview.png'}, {output / 'video.mp4'}")


if __name__ == "__main__":
  errors.run(main)
