r"""Draws a scene along another camera path.

Examples:
  python -m d4s_jax.render_scene --scene=scenes/first --trajectory=orbit --output=orbit.mp4
  python -m d4s_jax.render_scene --scene=scenes/first --trajectory=orbit:degrees=40,radius=3 \
      --output=arc.gif

--trajectory: spiral:distance,pivot,turns forward:distance backward:distance up:distance
down:distance orbit:degrees,radius (lengths in metres, all optional), a path that the viewer
saved, or any file of cameras that `d4s_jax.cameras` reads.

Time runs over the whole clip while the camera moves. The picture can have any size up to
what fits in memory.
"""

import pathlib

import numpy as np
from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import scene
from d4s_jax.formats.video import colorize_depth
from d4s_jax.pipeline import drawing, marking, shot

_SCENE = flags.DEFINE_string(
  "scene", None, "Folder that generate wrote, or .safetensors of export.", required=True
)
_TRAJECTORY = flags.DEFINE_string(
  "trajectory", None, "A name, with parameters or without, or a file of cameras.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Video to write: .mp4, .gif or .webp.", required=True)
_DEPTH = flags.DEFINE_boolean("depth", False, "Show depth, near is bright, instead of colour.")
_FRAMES = flags.DEFINE_integer("frames", None, "How many; 49, or those of the camera file.")
_FPS = flags.DEFINE_float("fps", 24, "Frames per second.")
_HEIGHT = flags.DEFINE_integer("height", None, "Pixels; the scene's, times what makes it 256.")
_WIDTH = flags.DEFINE_integer("width", None, "Pixels; the height at the scene's aspect.")
_WATERMARK = flags.DEFINE_boolean("watermark", True, "Mark the video invisibly as generated.")


def main(argv: list[str]) -> None:
  """Draws one video."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    output = pathlib.Path(_OUTPUT.value)
    key = marking.key(_WATERMARK.value)
    drawing.check_video(output, _FPS.value)
    dynamic, metadata = scene.read_scene(_SCENE.value)
    path = shot.camera_path(_TRAJECTORY.value, _FRAMES.value, in_scene=True)
    cameras = shot.through_scene(path, metadata.cameras[0], _HEIGHT.value, _WIDTH.value)
    drawn = drawing.draw(dynamic, cameras, path.times, "draw", metadata.cameras)
    images, depth = np.asarray(drawn.image), np.asarray(drawn.depth)
    shown = colorize_depth(depth) if _DEPTH.value else images
    marking.write_video(output, shown, _FPS.value, metadata, key)
    print(f"Video: {output}   {len(path.times)} frames, {cameras.width} x {cameras.height} pixels")


if __name__ == "__main__":
  errors.run(main)
