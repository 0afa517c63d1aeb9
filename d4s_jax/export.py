"""Turns a scene into files of other programs.

Examples:
  python -m d4s_jax.export --scene=scenes/first --output=first.html
  python -m d4s_jax.export --scene=scenes/first --output=first.ply --time=0.5
  python -m d4s_jax.export --scene=scenes/first --output=frames/first.ply --frames=25
  python -m d4s_jax.export --scene=scenes/first --output=first.glb --format=mesh

The suffix chooses the format; --format does where several have the same.

  the whole clip   .html (viewer with the scene in it), .safetensors (canonical Gaussians and
                   deformation), .rrd (Rerun), .npz (point tracks), .mp4 .gif .webp (videos)
  one moment       .ply (3DGS), .compressed.ply, .splat, .spz, .sog, .glb (Gaussians in glTF)
  --format=mesh    .obj .ply .glb (coloured surface)
  --format=depth   .exr (metres), .png (16 bits, millimetres) as the path's camera sees it
  --format=image   .jpg .png .webp, likewise
  its cameras      --format=cameras|transforms|camera-path (.json), realestate10k|tum|kitti (.txt),
                   colmap|colmap-binary (a new folder)

A moment is that of --time, from 0 to 1 over the clip. With --frames it is that many numbered files
in a new folder, evenly spaced over the clip: SuperSplat and the splat add-ons of Blender play
numbered .ply. What a format doesn't hold is said. Pictures (those beside tracks, too) and videos
are marked invisibly as generated, and those that a page saves, unless --nowatermark; Gaussians are
as the scene is.
"""

import pathlib

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import scene
from d4s_jax.pipeline.exports import FORMATS, Export

_SCENE = flags.DEFINE_string(
  "scene", None, "Folder that generate wrote, or .safetensors of export.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "File to write; see above.", required=True)
_TIME = flags.DEFINE_float("time", None, "Clip time in [0, 1]; 0 unless --frames.")
_FRAMES = flags.DEFINE_integer("frames", None, "So many numbered files, or frames of a clip.")
_FORMAT = flags.DEFINE_enum("format", None, [*FORMATS], "Where the suffix leaves it open.")

_WATERMARK = flags.DEFINE_boolean("watermark", True, "Mark pictures and videos invisibly.")


def main(argv: list[str]) -> None:
  """Exports one scene."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    scene.check_export(_SCENE.value, _OUTPUT.value)
    options = _TIME.value, _FRAMES.value, _FORMAT.value, _WATERMARK.value
    export = Export(pathlib.Path(_OUTPUT.value), *options)
    print(f"Exported: {export.write(*scene.read_scene(_SCENE.value))}")


if __name__ == "__main__":
  errors.run(main)
