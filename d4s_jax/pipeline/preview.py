"""What a generated scene leaves for people to look at: video, depth and a contact sheet."""

import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import provenance
from d4s_jax.formats.images import contact_sheet
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.formats.video import colorize_depth
from d4s_jax.pipeline import marking, progress, shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.types import DynamicGaussians, Rendering

# Pictures in a row of the contact sheet.
_COLUMNS = 6
# Where the other views stand, in axes of the camera they surround, as shares of the distance to
# what it sees: 11 degrees to the sides, which shows parallax, and a step ahead and back.
_SIDES = {
  "left": (-0.2, 0, 0),
  "right": (0.2, 0, 0),
  "above": (0, -0.2, 0),
  "below": (0, 0.2, 0),
  "nearer": (0, 0, 0.2),
  "farther": (0, 0, -0.2),
}
# Metres to the middle of a scene that is empty where the camera looks.
_NOWHERE = 2.0


def write_views(
  folder: pathlib.Path,
  photo: Float[np.ndarray, "h w 3"],
  dynamic: DynamicGaussians,
  metadata: SceneMetadata,
  fps: float,
  key: str | None,
) -> None:
  """Writes video.mp4, depth.mp4 and preview.png of a scene.

  The videos have a frame for each camera of the path. The preview shows the photograph, the path in
  colour and depth, one moment from other views, and the first view at several times.

  Args:
    folder: of the scene.
    photo: the photograph as the models took it.
    dynamic: the scene.
    metadata: the path it was made for, and where it comes from.
    fps: frames a second.
    key: of the watermark of the videos; None for none.
  """
  cameras, times = shot.enlarged(metadata.cameras), np.asarray(metadata.times)
  path = draw(dynamic, cameras, times, "draw the video", metadata.cameras)
  images, depth = np.asarray(path.image), colorize_depth(np.asarray(path.depth))
  marking.write_video(folder / "video.mp4", images, fps, metadata, key)
  marking.write_video(folder / "depth.mp4", depth, fps, metadata, key)

  middle = len(times) // 2
  sides = shot.around(cameras, middle, _distance(path, middle), np.array([*_SIDES.values()]))
  frozen = draw(
    *(dynamic, sides, np.full(len(_SIDES), times[middle]), "draw other views", metadata.cameras)
  )
  chosen = np.unique(np.linspace(0, len(times) - 1, _COLUMNS).round().astype(int))
  first = shot.repeated(cameras, 0, len(chosen))
  still = draw(dynamic, first, times[chosen], "draw one view", metadata.cameras)
  moments = ", ".join(f"{time:.2f}" for time in times[chosen])
  rows = {
    f"photograph as the models see it, {photo.shape[1]} x {photo.shape[0]} pixels": photo[None],
    f"along the path, times {moments}": images[chosen],
    "depth along the path, near is bright": depth[chosen],
    f"time {times[middle]:.2f} from {', '.join(_SIDES)}": np.asarray(frozen.image),
    f"from the first camera, times {moments}": np.asarray(still.image),
  }
  _write_sheet(folder, rows, metadata)
  covered = float(np.mean(path.alpha))
  progress.say(f"{covered:.0%} of the video is covered by the scene; the rest is black.")


def write_clip(
  folder: pathlib.Path,
  photo: Float[np.ndarray, "h w 3"],
  video: Float[np.ndarray, "f h w 3"],
  metadata: SceneMetadata,
  fps: float,
  key: str | None,
) -> None:
  """Writes video.mp4 and preview.png of a video that is no scene.

  Args:
    folder: of the two files.
    photo: the photograph as the models took it.
    video: the frames, in [0, 1].
    metadata: where it comes from.
    fps: frames a second.
    key: of the watermark; None for none.
  """
  marking.write_video(folder / "video.mp4", video, fps, metadata, key)
  chosen = np.unique(np.linspace(0, len(video) - 1, 2 * _COLUMNS).round().astype(int))
  rows = {
    f"photograph as the models see it, {photo.shape[1]} x {photo.shape[0]} pixels": photo[None],
  }
  for row in np.split(chosen, range(_COLUMNS, len(chosen), _COLUMNS)):
    rows[f"frames {', '.join(map(str, row))} of {len(video)}"] = video[row]
  _write_sheet(folder, rows, metadata)


def _write_sheet(
  folder: pathlib.Path,
  rows: Mapping[str, Float[np.ndarray, "n h w 3"]],
  metadata: SceneMetadata,
) -> None:
  path = folder / "preview.png"
  contact_sheet(path, rows, columns=_COLUMNS)
  provenance.stamp(path, provenance.facts(metadata))


def _distance(path: Rendering, index: int) -> float:
  """Median depth of what a view sees, metres."""
  depth = np.asarray(path.depth[index])
  return float(np.median(depth[depth > 0])) if (depth > 0).any() else _NOWHERE
