"""PointOdyssey 1.2: long synthetic scenes in which people and things move, with point tracks.

Matrices are world-to-camera of OpenCV axes, in metres; depth is in 1000/65535 m. What is stored may
be of half precision. Versions before 1.1 have other axes: a scene whose tracks don't project onto
themselves is refused. Masks are colours of instances that don't tell the background from things, so
they aren't read.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble
from d4s_jax.data.datasets.scene import Dataset, Scene, invert, known, make_tracks, middle
from d4s_jax.formats.arrays import ArrayArchive
from d4s_jax.formats.rasters import read_levels
from d4s_jax.types import Tracks

_FPS = 30
# Half precision moves a point by half a pixel at most where pictures are 960 wide.
_AGREES = 3.0
_SPLITS = {"train": "train", "sample": "train", "val": "heldout", "test": "heldout"}


class PointOdyssey(Dataset):
  """`train|val|test|sample/NAME` with `anno.npz`, `rgbs/rgb_00000.jpg`, `depths/...png`."""

  def _find(self) -> Iterable[str]:
    found = []
    for folder in files.folders_with(self.root, "rgbs", 3, self.problems):
      if (problem := _lacks(folder / "anno.npz")) is None:
        found.append(folder.relative_to(self.root).as_posix())
      else:
        self.problems.append(f"{problem} The scene is left out.")
    if not found:
      reason = f" {self.problems[0]}" if self.problems else ""
      raise ValueError(
        f"{self.root} holds no train/NAME with anno.npz and rgbs; expected PointOdyssey.{reason}"
      )
    return found

  def official(self, name: str) -> str | None:
    """By the folder."""
    folders = pathlib.PurePosixPath(name).parts[:-1]
    return next((_SPLITS[part] for part in reversed(folders) if part in _SPLITS), None)

  def open(self, name: str) -> Scene:
    """A scene."""
    folder, problems = self.root / name, Problems()
    archive = ArrayArchive(folder / "anno.npz")
    lenses = archive.read("intrinsics").astype(np.float64)
    matrices = archive.read("extrinsics").astype(np.float64)
    pictures = files.numbered(folder / "rgbs", r"rgb_(\d+)\.(?:jpg|png)")
    if len(pictures) != len(lenses):
      problems.add(
        "counts that differ",
        f"{folder} has {len(pictures)} pictures and {len(lenses)} cameras; fetch it again.",
      )
    height, width = files.picture_size(list(pictures.values()), folder / "rgbs", problems)
    shots = [
      Shot(
        number=number,
        time=number / _FPS,
        world_from_camera=invert(matrix),
        intrinsics=middle(lens, height, width),
        image=pictures.get(number, folder / "rgbs" / f"rgb_{number:05d}.jpg"),
        where=f"{archive.path}, frame {number}",
      )
      for number, (lens, matrix) in enumerate(zip(lenses, matrices))
    ]
    view = assemble("camera", shots, height, width, problems)
    depths = files.numbered(folder / "depths", r"depth_(\d+)\.png")
    if "trajs_3d" in archive and archive.spec("trajs_3d").shape[1:2] > (0,):
      frames = len(lenses)
      points = archive.spec("trajs_3d", (frames, None, 3)).shape[1]
      for key in ("visibs", "valids"):
        archive.spec(key, (frames, points))
      _check_axes(archive, lenses, matrices)
      numbers = view.numbers
      view = dataclasses.replace(
        view, tracks=lambda index: _tracks(archive, numbers[index].tolist())
      )
    depth = files.maps(view, depths, _depth, "depth", problems)
    return Scene(
      name=name,
      views=(dataclasses.replace(view, depth=depth),),
      metric=True,
      dynamic=True,
      timed=True,
      problems=problems.all(),
    )


def _lacks(path: pathlib.Path) -> str | None:
  """Why a scene has no cameras, if it has none."""
  try:
    archive = ArrayArchive(path)
    frames = archive.spec("intrinsics", (None, 3, 3)).shape[0]
    archive.spec("extrinsics", (frames, 4, 4))
  except (OSError, ValueError) as error:
    return str(error)
  return None if frames else f"{path} has no cameras."


def _check_axes(archive: ArrayArchive, lenses: np.ndarray, matrices: np.ndarray) -> None:
  """Refuses a scene whose first 3D points don't project to where its first 2D points are."""
  if "trajs_2d" not in archive:
    return
  shape = archive.spec("trajs_3d").shape
  archive.spec("trajs_2d", (*shape[:2], 2))
  points, seen, flags, valid = (
    archive.read(key, [0])[0] for key in ("trajs_3d", "trajs_2d", "visibs", "valids")
  )
  local = points.astype(np.float64) @ matrices[0, :3, :3].T + matrices[0, :3, 3]
  pixels = local @ lenses[0].T
  with np.errstate(divide="ignore", invalid="ignore"):
    away = np.linalg.norm(pixels[:, :2] / pixels[:, 2:] - seen, axis=-1)
  away = away[(flags > 0.5) & (valid > 0.5) & np.isfinite(away)]
  if len(away) and np.median(away) > _AGREES:
    raise ValueError(
      f"{archive.path}: its 3D tracks project {np.median(away):.0f} pixels away from its 2D tracks."
      " Version 1.0 of PointOdyssey has other axes; fetch version 1.2."
    )


def _tracks(archive: ArrayArchive, rows: Sequence[int]) -> Tracks:
  points = np.moveaxis(archive.read("trajs_3d", rows).astype(np.float32), 0, 1)
  valid = archive.read("valids", rows).T > 0.5
  valid &= np.isfinite(points).all(-1)
  visible = (archive.read("visibs", rows).T > 0.5) & valid
  return make_tracks(points, visible, valid)


def _depth(_: int, path: pathlib.Path) -> np.ndarray:
  levels = read_levels(path)
  if levels.dtype != np.uint16:
    raise ValueError(f"{path} has 8 bits; expected depth of 16 bits. Fetch it again.")
  return known(np.where(levels < 65535, levels * np.float32(1000 / 65535), 0))
