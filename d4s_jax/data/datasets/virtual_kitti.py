"""Virtual KITTI 2: five drives through synthetic streets, in ten weathers and headings, stereo.

Camera files state world-to-camera matrices of OpenCV axes for both cameras in turn, and principal
points that count pixel centres as whole numbers: half a pixel is added. Depth is in centimetres.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import numpy as np

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble, gather
from d4s_jax.data.datasets.scene import Dataset, Scene, View, invert, known
from d4s_jax.formats.rasters import read_levels

_FPS = 10
# 655.35 m: sky, or too far.
_BEYOND = 65535
_HELD_OUT = "Scene20"


class VirtualKitti(Dataset):
  """`Scene01/clone/frames/rgb/Camera_0/`, each archive in a folder of its own, or all in one."""

  def _find(self) -> Iterable[str]:
    # Some keep one folder for each archive, and the camera files are in an archive of their own.
    self._bases = list(files.folders(self.root, 1, self.problems))
    found: dict[str, set[str]] = {
      "frames/rgb": set(),
      "extrinsic.txt": set(),
      "intrinsic.txt": set(),
    }
    for base in self._bases:
      for folder in files.folders(base, 2, self.problems):
        for part, names in found.items():
          if folder.relative_to(base).match("Scene*/*") and (folder / part).exists():
            names.add(folder.relative_to(base).as_posix())
    pictures, *stated = found.values()
    whole = pictures.intersection(*stated)
    if not whole:
      raise ValueError(
        f"{self.root} holds no Scene01/clone with frames/rgb, extrinsic.txt and intrinsic.txt (of"
        " the archives rgb and textgt); expected Virtual KITTI 2."
      )
    for name in sorted(pictures - whole):
      self.problems.append(f"{name} has no camera files; unpack the archive textgt.")
    return whole

  def group(self, name: str) -> str:
    """The street, in all its weathers."""
    return name.partition("/")[0]

  def official(self, name: str) -> str | None:
    """The last street is held out, as by others; the dataset itself has no splits."""
    return "heldout" if self.group(name) == _HELD_OUT else "train"

  def open(self, name: str) -> Scene:
    """A drive."""
    problems = Problems()
    cameras = [functools.partial(self._view, name, number, problems) for number in (0, 1)]
    return gather(name, cameras, problems)

  def _place(self, name: str) -> pathlib.Path:
    """A file or folder, in whichever of the bases it is."""
    places = [base / name for base in self._bases]
    return next((place for place in places if place.exists()), places[0])

  def _view(self, name: str, camera: int, problems: Problems) -> View:
    frames = f"{name}/frames"
    folder = self._place(f"{frames}/rgb/Camera_{camera}")
    pictures = files.numbered(folder, r"rgb_(\d+)\.(?:jpg|png)")
    stated = self._place(f"{name}/intrinsic.txt")
    lenses = {
      int(row[0]): np.array([[row[2], 0, row[4] + 0.5], [0, row[3], row[5] + 0.5], [0, 0, 1]])
      for _, row in files.table(stated, 6, 1, problems, whole=2)
      if row[1] == camera
    }
    shots = []
    stated = self._place(f"{name}/extrinsic.txt")
    for line, row in files.table(stated, 18, 1, problems, whole=2):
      if row[1] != camera:
        continue
      number = int(row[0])
      shots.append(
        Shot(
          number=number,
          time=number / _FPS,
          world_from_camera=invert(row[2:].reshape(4, 4)),
          intrinsics=lenses.get(number, np.full((3, 3), np.nan)),
          image=pictures.get(number, folder / f"rgb_{number:05d}.jpg"),
          where=f"{stated}, line {line}",
        )
      )
    height, width = files.picture_size(list(pictures.values()), folder, problems)
    view = assemble(f"Camera_{camera}", shots, height, width, problems)
    depths = self._place(f"{frames}/depth/Camera_{camera}")
    things = self._place(f"{frames}/instanceSegmentation/Camera_{camera}")
    return dataclasses.replace(
      view,
      depth=files.maps(
        view, files.numbered(depths, r"depth_(\d+)\.png"), _depth, "depth", problems
      ),
      # A pixel is the number of a track plus one, 0 none: cars, whether they move or not.
      instances=files.maps(
        view,
        files.numbered(things, r"instancegt_(\d+)\.png"),
        lambda _, path: read_levels(path).astype(np.int32),
        "instances",
        problems,
      ),
    )


def _depth(_: int, path: pathlib.Path) -> np.ndarray:
  levels = read_levels(path)
  if levels.dtype != np.uint16:
    raise ValueError(f"{path} has 8 bits; expected depth of 16 bits. Fetch it again.")
  return known(np.where(levels < _BEYOND, levels / np.float32(100), 0))
