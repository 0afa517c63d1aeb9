"""Exports that hold a whole clip: point tracks, videos along the scene's path, recordings."""

import dataclasses
import io
import pathlib

import jax
import numpy as np

from d4s_jax.formats import images, provenance, recording
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.formats.visible import write_bytes
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import harmonics, poses
from d4s_jax.geometry.deformation import at
from d4s_jax.pipeline import marking, shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.types import DynamicGaussians, Gaussians

# Frames a second at which the viewer plays a scene too.
FPS = 8.0
# A Gaussian that is fainter has no place that one could follow.
_SOLID = 0.5
# What lies further behind what is seen, as a share of the depth, is hidden.
_HIDDEN = 0.05
# Of the pictures beside tracks.
_QUALITY = 95


def moments(dynamic: DynamicGaussians, times: np.ndarray):
  """The Gaussians [n] at each time, one after another, in NumPy."""
  for time in times:
    yield moment(dynamic, float(time))


def moment(dynamic: DynamicGaussians, time: float) -> Gaussians:
  """The Gaussians [n] of one scene at one clip time, in NumPy."""
  return jax.tree.map(lambda x: np.asarray(x)[0], at(dynamic, np.array([time], np.float32)))


def write_film(
  path: pathlib.Path,
  dynamic: DynamicGaussians,
  metadata: SceneMetadata,
  times: np.ndarray,
  *,
  key: str | None,
) -> None:
  """A video along the path that the scene was made for, marked with the key unless it is None."""
  cameras = shot.along(shot.enlarged(metadata.cameras), metadata.times, times)
  shot.check_pixels(len(times), cameras.height, cameras.width)
  drawn = draw(dynamic, cameras, times, "draw the video", metadata.cameras)
  own = np.diff(np.asarray(metadata.times)).mean() if len(metadata.times) > 1 else 1.0
  step = np.diff(times).mean() if len(times) > 1 else own
  # As long as the scene's own frames take.
  fps = float(np.clip(FPS * own / step, 0.1, 120))
  marking.write_video(path, np.asarray(drawn.image), fps, metadata, key)


def write_tracks(
  path: pathlib.Path,
  dynamic: DynamicGaussians,
  metadata: SceneMetadata,
  times: np.ndarray,
  *,
  key: str | None,
) -> None:
  """Where the centres of opaque Gaussians go that the path sees, as a file of TAPVid-3D.

  Its arrays: `images_jpeg_bytes` [t], marked with the key unless it is None; `fx_fy_cx_cy` [4], the
  lens of all pictures, which is that of the first; `extrinsics_w2c` [t 4 4]; `tracks_XYZ` [t n 3]
  in the axes of the camera of that time (x right, y down, z forward, metres); `visibility` [t n];
  `queries_xyt` [n 3], pixel and frame where each is first seen. And ours: `tracks_xy` [t n 2] in
  pixels, `times` [t], `colors` [n 3] (bytes).

  Raises:
    ValueError: no Gaussian is opaque, none of them is ever seen, or the video is too large.
  """
  solid = np.asarray(dynamic.opacities) > _SOLID
  if not solid.any():
    raise ValueError(f"No Gaussian has an opacity above {_SOLID}; there is nothing to track.")
  cameras = shot.along(shot.enlarged(metadata.cameras), metadata.times, times)
  shot.check_pixels(len(times), cameras.height, cameras.width)
  lens = cameras.intrinsics[:1]
  cameras = dataclasses.replace(cameras, intrinsics=np.repeat(lens, len(times), axis=0))
  drawn = draw(dynamic, cameras, times, "draw what is visible", metadata.cameras)
  height, width = cameras.height, cameras.width
  tracks, places, visible = [], [], []
  inverse = np.asarray(poses.invert(np.asarray(cameras.world_from_camera)))
  for index, gaussians in enumerate(moments(dynamic, times)):
    centres = gaussians.means[solid]
    pixels, z = pinhole.project(centres, cameras[index])
    row, column = np.clip(np.floor(pixels[:, ::-1]), -1, 2**30).astype(np.int64).T
    inside = (z > 0) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    front = np.asarray(drawn.depth[index])[
      np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    ]
    visible.append(inside & (z < front * (1 + _HIDDEN)))
    places.append(pixels)
    tracks.append(centres @ inverse[index, :3, :3].T + inverse[index, :3, 3])
  ever = np.any(visible, axis=0)
  if not ever.any():
    raise ValueError("No opaque Gaussian is seen along the path; there is nothing to track.")
  places, visible = np.stack(places)[:, ever], np.stack(visible)[:, ever]
  first = visible.argmax(axis=0)
  queries = np.column_stack([places[first, np.arange(len(first))], first])
  colours = np.clip(0.5 + harmonics.C0 * np.asarray(dynamic.harmonics)[solid, 0], 0, 1)
  pictures = marking.pictures(np.asarray(drawn.image), key)
  arrays = {
    "images_jpeg_bytes": np.array([images.jpeg(x, _QUALITY) for x in images.to_bytes(pictures)]),
    "fx_fy_cx_cy": lens[0, [0, 1, 0, 1], [0, 1, 2, 2]].astype(np.float32),
    "extrinsics_w2c": inverse.astype(np.float32),
    "tracks_XYZ": np.stack(tracks)[:, ever].astype(np.float32),
    "visibility": visible,
    "queries_xyt": queries.astype(np.float32),
    "tracks_xy": places.astype(np.float32),
    "times": np.asarray(times, np.float32),
    "colors": (255 * colours[ever] + 0.5).astype(np.uint8),
  }
  contents = io.BytesIO()
  np.savez(contents, allow_pickle=False, **arrays)
  write_bytes(path, contents.getvalue())


def write_recording(
  path: pathlib.Path, dynamic: DynamicGaussians, metadata: SceneMetadata, times: np.ndarray
) -> None:
  """A recording for the Rerun viewer; see `formats.recording`."""
  cameras = shot.along(metadata.cameras, metadata.times, times)
  said = provenance.text(provenance.facts(metadata))
  recording.write(path, zip(times, moments(dynamic, times)), cameras, metadata.prompt, said)
