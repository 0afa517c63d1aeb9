"""MultiCamVideo: synthetic scenes with people, filmed by ten synchronised moving cameras.

A JSON file has a text for each frame and camera: a matrix of Unreal Engine, whose rows are forward,
right, up and position, in centimetres and left-handed axes. Focal lengths are in the name of a
folder, `f24_aperture5`, in millimetres before a sensor 23.76 mm wide.
"""

import functools
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from d4s_jax.data.datasets import files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble, gather
from d4s_jax.data.datasets.scene import Dataset, Scene, View
from d4s_jax.formats import checked
from d4s_jax.formats.footage import Footage

_SENSOR = 23.76
_STATED = "cameras/camera_extrinsics.json"
# Right, down, forward of OpenCV from forward, right, up.
_AXES = np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])


class MultiCamVideo(Dataset):
  """`train/f24_aperture5/scene1` with `videos/cam01.mp4` and `cameras/camera_extrinsics.json`."""

  def _find(self) -> Iterable[str]:
    found = []
    for folder in files.folders_with(self.root, _STATED, 4, self.problems):
      if _focal(folder) is not None:
        found.append(folder.relative_to(self.root).as_posix())
      else:
        self.problems.append(
          f"{folder} is left out: its focal length is unknown; expected a folder above it such as"
          " f24_aperture5 (those of val don't tell)."
        )
    if not found:
      raise ValueError(
        f"{self.root} holds no f24_aperture5/scene1/{_STATED}; expected MultiCamVideo, unpacked"
        " with tar -xf."
      )
    return found

  def open(self, name: str) -> Scene:
    """A scene with all its cameras."""
    folder, problems = self.root / name, Problems()
    stated = folder / _STATED
    frames = checked.parse(
      checked.read_bytes(stated, files.MOST_TEXT, "cameras"), str(stated), nan=True
    )
    if not isinstance(frames, dict):
      raise ValueError(f"{stated}: expected an object with frame0, frame1, ...; fetch it again.")
    focal = _focal(folder)
    assert focal is not None
    videos = files.numbered(folder / "videos", r"cam(\d+)\.mp4")
    if not videos:
      raise ValueError(f"{folder / 'videos'} has no cam01.mp4. Fetch it again.")
    named = {
      camera for cameras in frames.values() if isinstance(cameras, dict) for camera in cameras
    }
    for camera in sorted(named - {f"cam{number:02d}" for number in videos}):
      problems.add(
        "videos that are missing",
        f"{folder / 'videos'} has no {camera:.20}.mp4; the camera is left out. Fetch it again.",
      )
    cameras = [
      functools.partial(_view, video, f"cam{number:02d}", focal, frames, stated, problems)
      for number, video in videos.items()
    ]
    return gather(name, cameras, problems)


def _focal(folder: pathlib.Path) -> float | None:
  """Focal length in millimetres, from the folders above a scene."""
  for part in reversed(folder.parts):
    if match := re.fullmatch(r"f(\d+(?:\.\d+)?)_aperture[\d.]+", part):
      return float(match.group(1))
  return None


def _view(
  video: pathlib.Path,
  camera: str,
  focal: float,
  frames: dict[str, Any],
  stated: pathlib.Path,
  problems: Problems,
) -> View:
  footage = Footage(video)
  if footage.height != footage.width:
    raise ValueError(
      f"{video} has frames of {footage.width} x {footage.height} pixels; expected square ones,"
      " whose focal length is known. The camera is left out; fetch it as it was published."
    )
  pixels, half = focal / _SENSOR * footage.width, footage.width / 2
  lens = np.array([[pixels, 0, half], [0, pixels, half], [0, 0, 1]])
  shots = []
  for key, cameras in frames.items():
    match = re.fullmatch(r"frame(\d{1,6})", key)
    text = cameras.get(camera) if isinstance(cameras, dict) else None
    if match is None or text is None:
      problems.add("cameras not stated", f"{stated}: {key!r:.40} has no {camera}; it is left out.")
      continue
    number = int(match.group(1))
    if number >= footage.frames:
      problems.add(
        "frames beyond a video", f"{video} has {footage.frames} frames and no frame {number}; it"
        " is left out. Fetch the video again.",
      )  # fmt: skip
      continue
    shots.append(
      Shot(
        number=number,
        time=number / (footage.fps or math.nan),
        world_from_camera=_pose(text),
        intrinsics=lens,
        image=None,
        where=f"{stated}, {key}, {camera}",
      )
    )
  return assemble(camera, shots, footage.height, footage.width, problems, footage.read)


def _pose(text: Any) -> np.ndarray:
  """The pose that "[1 0 0 0] [0 1 0 0] [0 0 1 0] [3390 1380 240 1] " states; else NaN."""
  rows = re.findall(r"\[([^\[\]]{1,200})\]", text) if isinstance(text, str) else []
  try:
    numbers = np.array([[float(word) for word in row.split()[:3]] for row in rows])
  except ValueError:
    numbers = np.empty(0)
  if numbers.shape != (4, 3):
    return np.full((4, 4), np.nan)
  pose = np.eye(4)
  pose[:3, :3] = _AXES @ numbers[:3].T @ _AXES.T
  pose[:3, 3] = _AXES @ numbers[3] / 100
  return pose
