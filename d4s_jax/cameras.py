"""Looks at files of cameras, and turns them into other formats.

Examples:
  python -m d4s_jax.cameras check path.txt
  python -m d4s_jax.cameras convert path.txt transforms.json --format=transforms

Read are RealEstate10K, TUM and KITTI text, nerfstudio's transforms.json and camera_path.json,
cameras.json of 3DGS, COLMAP models (a folder), and our JSON, which the viewer saves; they are told
apart by their contents. `generate` and `render_scene` take any of them as --trajectory.

check says what was found (format and convention, scale, frame rate, jumps, and what looks wrong)
and draws the path (FILE.cameras.png). convert writes, by --format: cameras transforms camera-path
(.json), realestate10k tum kitti (.txt), colmap colmap-binary (a new folder).
"""

import pathlib

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats.trajectories import WRITERS
from d4s_jax.pipeline import camera_files

_PICTURE = flags.DEFINE_string("picture", None, "Of the path; else FILE.cameras.png where you are.")
_FORMAT = flags.DEFINE_enum("format", None, [*WRITERS], "Of what convert writes.")
_FOV = flags.DEFINE_float("fov", None, "Horizontal degrees, of a file without intrinsics.")
_HEIGHT = flags.DEFINE_integer("height", None, "Pixels, of a file without the pictures' size.")
_WORDS = {"check": 2, "convert": 3}


def main(argv: list[str]) -> None:
  """Checks or converts one file."""
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    what, *paths = argv[1:] or [""]
    if what not in _WORDS or len(argv) != 1 + _WORDS[what]:
      raise ValueError(f"{' '.join(argv[1:])!r:.80}; expected check FILE, or convert FILE OUTPUT.")
    path = pathlib.Path(paths[0])
    if what == "check":
      picture = pathlib.Path(_PICTURE.value or f"{path.resolve().stem}.cameras.png")
      print(camera_files.check(path, picture))
    else:
      options = _FORMAT.value, _FOV.value, _HEIGHT.value
      print(f"Converted: {camera_files.convert(path, pathlib.Path(paths[1]), *options)}")


if __name__ == "__main__":
  errors.run(main, words=3)
