"""Spring: scenes of an animated film, stereo, with disparity at twice the picture's resolution.

Rows of the camera files are frames 1, 2, ...: focal lengths that change (zoom), and world-to-camera
matrices of OpenCV axes of the left camera, in metres; nothing official says which way the matrices
go, but all public users invert them. The right camera is 65 mm further right. Disparity counts
pixels of 1920 columns.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble, gather
from d4s_jax.data.datasets.scene import Dataset, Scene, View, invert, known, middle
from d4s_jax.formats.rasters import read_hdf5, read_levels

_FPS = 24
_BASELINE = 0.065
# That intrinsics and disparities refer to.
_HEIGHT, _WIDTH = 1080, 1920
# Disparity files have this many rows and columns a pixel.
_FINER = 2


class Spring(Dataset):
  """`train/0001` with `frame_left/frame_left_0001.png`, `disp1_left/...dsp5`, `cam_data/*.txt`."""

  def _find(self) -> Iterable[str]:
    folders = list(files.folders_with(self.root, "cam_data", 3, self.problems))
    found = [path for path in folders if (path / "cam_data" / "extrinsics.txt").exists()]
    if not found:
      raise ValueError(
        f"{self.root} holds no train/0001/cam_data/extrinsics.txt; expected the training part of"
        " Spring (its test part has no poses)."
      )
    lacking = sorted(set(folders) - set(found))
    if lacking:
      self.problems.append(
        f"{len(lacking)} scenes, such as {lacking[0]}, have no cam_data/extrinsics.txt and are left"
        " out; so it is in the test part."
      )
    return [path.relative_to(self.root).as_posix() for path in found]

  def open(self, name: str) -> Scene:
    """A scene."""
    problems = Problems()
    folder = self.root / name
    sides = ("left", "right") if (folder / "frame_right").is_dir() else ("left",)
    cameras = [functools.partial(_view, folder, side, problems) for side in sides]
    return gather(name, cameras, problems, first=True)


def _view(folder: pathlib.Path, side: str, problems: Problems) -> View:
  pictures = files.numbered(folder / f"frame_{side}", rf"frame_{side}_(\d+)\.png")
  height, width = files.picture_size(list(pictures.values()), folder / f"frame_{side}", problems)
  if height * _WIDTH != width * _HEIGHT:
    problems.add(
      "aspect",
      f"{folder / f'frame_{side}'} has pictures of {width} x {height}; expected the aspect of"
      f" {_WIDTH} x {_HEIGHT}, which the intrinsics are of. Fetch them again.",
    )
  stated = folder / "cam_data"
  lenses = {
    line: _lens(row, width) for line, row in files.table(stated / "intrinsics.txt", 4, 0, problems)
  }
  shots = []
  for number, row in files.table(stated / "extrinsics.txt", 16, 0, problems):
    camera_from_world = row.reshape(4, 4)
    if side == "right":
      camera_from_world[0, 3] -= _BASELINE
    shots.append(
      Shot(
        number=number,
        time=number / _FPS,
        world_from_camera=invert(camera_from_world),
        intrinsics=lenses.get(number, np.full((3, 3), np.nan)),
        image=pictures.get(number, folder / f"frame_{side}" / f"frame_{side}_{number:04d}.png"),
        where=f"{stated / 'extrinsics.txt'}, line {number}",
      )
    )
  view = assemble(side, shots, height, width, problems)
  skies = files.numbered(folder / "maps" / f"skymap_{side}", rf"skymap_{side}_(\d+)\.png")

  def depth(index: int, path: pathlib.Path) -> np.ndarray:
    disparity = read_hdf5(path, "disparity", step=_FINER)
    # Disparities are those of 1920 columns, whatever the pictures' size.
    focal = view.cameras.intrinsics[index, 0, 0] * _WIDTH / width
    with np.errstate(divide="ignore", invalid="ignore"):
      metres = known(np.where(disparity > 0, focal * _BASELINE / disparity, 0))
    sky = skies.get(int(view.numbers[index]))
    return (
      metres
      if sky is None
      else np.where(_sky(sky, metres.shape[0], metres.shape[1]), np.float32(0), metres)
    )

  disparities = files.numbered(folder / f"disp1_{side}", rf"disp1_{side}_(\d+)\.dsp5")
  return dataclasses.replace(view, depth=files.maps(view, disparities, depth, "depth", problems))


def _lens(row: np.ndarray, width: int) -> np.ndarray:
  """Intrinsics in pixels of the pictures."""
  fx, fy, cx, cy = row
  lens = middle(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), _HEIGHT, _WIDTH)
  return np.array([[width / _WIDTH], [width / _WIDTH], [1]]) * lens


def _sky(path: pathlib.Path, height: int, width: int) -> np.ndarray:
  """Where a map of any size says sky."""
  sky = Image.fromarray((read_levels(path) > 0).astype(np.uint8))
  return np.asarray(sky.resize((width, height), Image.Resampling.NEAREST)) > 0
