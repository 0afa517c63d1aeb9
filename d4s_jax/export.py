"""Turns a scene into files of other programs.

Examples:
  python -m d4s_jax.export --scene=scenes/first --output=first.html
  python -m d4s_jax.export --scene=scenes/first --output=first.ply --time=0.5
  python -m d4s_jax.export --scene=scenes/first --output=frames/first.ply --frames=25

The suffix chooses the format. .html is a viewer with the moving scene in it, one file that any
browser opens. .ply (3DGS), .splat, .spz and .glb (glTF with KHR_gaussian_splatting) know no motion:
a file holds the scene at one --time, from 0 to 1 over the clip. With --frames it is that many
numbered files in a new folder, evenly spaced over the clip: SuperSplat and the splat add-ons of
Blender play numbered .ply. The scene's own folder holds canonical Gaussians and deformation
(safetensors); the other formats can't.
"""

import pathlib

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import scene
from d4s_jax.pipeline.exports import Export

_SCENE = flags.DEFINE_string("scene", None, "Folder that generate wrote.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File to write; see above.", required=True)
_TIME = flags.DEFINE_float("time", None, "Clip time in [0, 1]; 0 unless --frames.")
_FRAMES = flags.DEFINE_integer("frames", None, "Write so many numbered files instead of one.")


def main(argv: list[str]) -> None:
  """Exports one scene."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    export = Export(pathlib.Path(_OUTPUT.value), _TIME.value, _FRAMES.value)
    print(f"Exported: {export.write(*scene.read_scene(_SCENE.value))}")


if __name__ == "__main__":
  errors.run(main)
