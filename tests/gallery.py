r"""Makes the gallery of the README: scenes generated from held-out first frames and photographs.

  python tests/gallery.py
  python tests/gallery.py --checkpoint=runs/joint-tiny --photographs=photos --output=gallery

For 12 held-out scenes and four photographs that come with scikit-image (or those of a folder), one
animation of five pictures side by side: the input; the generated scene along its path, in time; one
moment of it from a spiral of views; depth; and motion as colour (grey is none; red right, green
down, blue away, half a metre is full; black where nothing is drawn). Nothing is chosen: held-out
scenes are numbers 0 to 11 of those in which something moves; the prompt of a photograph of a folder
is the name of its file, and photographs are seen along a spiral. preview.png is not generated: it
shows what is reconstructed from the true videos of the first two scenes.
"""

import argparse
import dataclasses
import pathlib
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
import skimage.data
from PIL import Image

from d4s_jax.data.source import open_source
from d4s_jax.formats import images
from d4s_jax.formats.video import colorize_depth
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import harmonics
from d4s_jax.geometry.trajectories import trajectory
from d4s_jax.models.system import System
from d4s_jax.pipeline import Pipeline, progress, shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.training import inference, report, validation
from d4s_jax.training.stages import STAGES
from d4s_jax.types import Cameras, DynamicGaussians

# Prompts of the photographs of scikit-image's package.
PHOTOGRAPHS = {
  "a cat": "chelsea.png",
  "a cup of coffee": "coffee.png",
  "a motorcycle": "motorcycle_left.png",
  "an astronaut": "astronaut.png",
}
SCENES, FRAMES, FPS = 12, 17, 8
# Drawn at the size that was trained on: larger, gaps open between splats. Then enlarged.
SIDE, ENLARGED = 64, 2
_HIGHEST_MOTION = 0.5


def motion_as_color(dynamic: DynamicGaussians) -> DynamicGaussians:
  """The scene, each Gaussian in the colour of how far it goes from the first to the last time."""
  moved = dynamic.deformation[-1, :, :3] - dynamic.deformation[0, :, :3]
  rgb = 0.5 + 0.5 * np.clip(moved / _HIGHEST_MOTION, -1, 1)
  flat = np.zeros_like(dynamic.harmonics)
  flat[:, :1] = harmonics.from_rgb(rgb)
  return dataclasses.replace(dynamic, harmonics=flat)


def animation(dynamic: DynamicGaussians, image: np.ndarray, cameras: Cameras) -> np.ndarray:
  """Frames [f h w 3] of the five pictures."""
  times = np.linspace(0, 1, FRAMES, dtype=np.float32)
  large = pinhole.resize(cameras, SIDE, SIDE)
  along = large[np.linspace(0, len(cameras.world_from_camera) - 1, FRAMES).round().astype(int)]
  path = draw(dynamic, along, times, "draw the path")
  depth = np.asarray(path.depth)
  pivot = float(np.median(depth[depth > 0])) if (depth > 0).any() else 2.0
  spiral = trajectory("spiral", FRAMES, distance=0.15 * pivot, pivot=pivot)
  round_it = dataclasses.replace(
    shot.repeated(large, 0, FRAMES), world_from_camera=jnp.asarray(spiral, jnp.float32)
  )
  orbit = draw(dynamic, round_it, np.full(FRAMES, 0.5, np.float32), "draw the orbit")
  moves = draw(motion_as_color(dynamic), along, times, "draw motion")
  shown = np.repeat(images.fit(image, SIDE, SIDE)[None], FRAMES, axis=0)
  return np.concatenate(
    [shown, path.image, orbit.image, colorize_depth(depth), moves.image], axis=2
  )


def write(path: pathlib.Path, frames: np.ndarray) -> None:
  """Writes an animated WebP that repeats for ever."""
  pictures = [Image.fromarray(x) for x in images.to_bytes(frames)]
  size = pictures[0].width * ENLARGED, pictures[0].height * ENLARGED
  pictures = [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]
  pictures[0].save(
    path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0, quality=70
  )


def photographs(folder: pathlib.Path | None) -> dict[str, pathlib.Path]:
  """Files by prompt: those of a folder, or those of scikit-image."""
  if folder:
    return {file.stem.replace("_", " "): file for file in sorted(folder.iterdir())}
  installed = pathlib.Path(skimage.data.__file__).parent
  return {prompt: installed / name for prompt, name in PHOTOGRAPHS.items()}


def write_preview(path: pathlib.Path, system: System, params, heldout) -> None:
  """The first two scenes reconstructed from their true videos, as a run shows them at its end."""
  clips = validation.HeldOut(heldout, system.backbone.tokenizer, 2, 1)
  with tempfile.TemporaryDirectory() as folder:
    made = pathlib.Path(folder)
    report.write_samples(made, system, STAGES["dynamic"], params, clips)
    shutil.copy(made / "samples.png", path)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", default="shipped", help="of the shipped kind or a run")
  parser.add_argument("--photographs", type=pathlib.Path, help="a folder of other pictures")
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(".github/gallery"))
  options = parser.parse_args()
  options.output.mkdir(parents=True, exist_ok=True)

  trained = inference.open_checkpoint(options.checkpoint, progress.timed)
  parts = dict(trained.parts)
  pipeline = Pipeline(trained.system, parts, **trained.config["sampling"])
  size = {name: trained.config["clip"][name] for name in ("frames", "height", "width")}
  heldout = open_source("synthetic", split="heldout", kind="dynamic", views=1, **size)
  write_preview(options.output / "preview.png", trained.system, parts, heldout)
  for number in range(SCENES):
    clip = heldout.read(number)
    image = np.asarray(clip.source.images[0])
    dynamic = pipeline(image, clip.source.cameras, clip.text)
    print(f"scene {number:02}: {clip.text}", flush=True)
    write(
      options.output / f"scene_{number:02}.webp", animation(dynamic, image, clip.source.cameras)
    )
  for prompt, file in photographs(options.photographs).items():
    path = shot.camera_path("spiral", size["frames"])
    image, cameras = shot.photograph(images.read_image(file), path, size["height"], size["width"])
    dynamic = pipeline(image, cameras, prompt)
    write(options.output / f"{prompt.replace(' ', '_')}.webp", animation(dynamic, image, cameras))


if __name__ == "__main__":
  main()
