"""TartanAir V1: flights through 18 synthetic places, stereo, with depth.

As its own tools read it (castacks/tartanair_tools). Poses are camera-to-world of NED axes (x
forward, y right, z down) in both the world and the camera, quaternions `xyzw`. Depth is planar.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import numpy as np

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble, gather
from d4s_jax.data.datasets.scene import Dataset, Scene, View, known
from d4s_jax.formats.rasters import read_npy
from d4s_jax.geometry import poses, rotations

_HEIGHT, _WIDTH = 480, 640
_INTRINSICS = np.array([[320.0, 0, 320], [0, 320, 240], [0, 0, 1]])
# From NED to OpenCV axes: y, z, x.
_AXES = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
# Archives unpack with the name of the place twice: place/place/Easy/P000.
_DEEPEST = 5


class TartanAir(Dataset):
  """`PLACE/Easy|Hard/P000` with `image_left`, `depth_left`, `pose_left.txt`, the same for right."""

  def _find(self) -> Iterable[str]:
    found = [
      folder.relative_to(self.root).as_posix()
      for folder in files.folders_with(self.root, "pose_left.txt", _DEEPEST, self.problems)
    ]
    if not found:
      for second in files.folders_with(self.root, "pose_lcam_front.txt", _DEEPEST, self.problems):
        raise ValueError(f"{second} is of TartanAir V2, another dataset; expected TartanAir V1.")
      raise ValueError(
        f"{self.root} holds no pose_left.txt; expected PLACE/Easy/P000/pose_left.txt of TartanAir."
      )
    return found

  def group(self, name: str) -> str:
    """The place."""
    parts = [part for part in pathlib.PurePosixPath(name).parts if part not in ("Easy", "Hard")]
    return parts[-2] if len(parts) > 1 else name

  def open(self, name: str) -> Scene:
    """A flight."""
    folder, problems = self.root / name, Problems()
    sides = ("left", "right") if (folder / "pose_right.txt").exists() else ("left",)
    cameras = [functools.partial(_view, folder, side, problems) for side in sides]
    return gather(name, cameras, problems, dynamic=False, timed=False, first=True)


def _view(folder: pathlib.Path, side: str, problems: Problems) -> View:
  pictures = files.numbered(folder / f"image_{side}", rf"(\d+)_{side}\.png")
  stated = folder / f"pose_{side}.txt"
  shots = []
  for line, row in files.table(stated, 7, 0, problems):
    number = line - 1
    length = np.linalg.norm(row[3:])
    # One that isn't of unit length means nothing; some are negated, which is the same rotation.
    quaternion = row[[6, 3, 4, 5]] / (length if 0.99 < length < 1.01 else np.nan)
    rotation = _AXES @ rotations.to_matrix(quaternion) @ _AXES.T
    shots.append(
      Shot(
        number=number,
        time=float(number),
        world_from_camera=poses.assemble(rotation, _AXES @ row[:3]),
        intrinsics=_INTRINSICS,
        image=pictures.get(number, folder / f"image_{side}" / f"{number:06d}_{side}.png"),
        where=f"{stated}, line {line}",
      )
    )
  for number in sorted(pictures.keys() - {shot.number for shot in shots}):
    problems.add("pictures without a pose", f"{pictures[number]} has no line in {stated}.")
  size = files.picture_size(list(pictures.values()), folder / f"image_{side}", problems)
  if size != (_HEIGHT, _WIDTH):
    raise ValueError(
      f"{folder} has pictures of {size[1]} x {size[0]} pixels; expected {_WIDTH} x {_HEIGHT} of"
      " TartanAir V1, whose intrinsics are those of that size."
    )
  view = assemble(side, shots, _HEIGHT, _WIDTH, problems)
  depths = files.numbered(folder / f"depth_{side}", rf"(\d+)_{side}_depth\.npy")
  depth = files.maps(view, depths, lambda _, path: known(read_npy(path)), "depth", problems)
  return dataclasses.replace(view, depth=depth)
