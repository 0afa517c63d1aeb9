"""Rows of clips on their way through curation, as workers pass them on."""

import pathlib
import tempfile

import numpy as np

from d4s_jax.curation import estimates, work
from d4s_jax.curation.guard import Guard
from d4s_jax.curation.recording import cameras_of
from d4s_jax.curation.units import Span, Unit
from d4s_jax.data import record as records
from d4s_jax.geometry import cameras as camera_geometry
from tests.data.records import FRAMES


def row(record, name="a.mp4"):
  span = Span(Unit("videos", "/films", name), 3, 3 + FRAMES - 1)
  return {
    **{"span": span, "record": records.encode(record), "failed": ""},
    **{"group": "videos/a.mp4", "split": "", "known": True},
  }


def estimators(settings):
  """The plug-ins of settings."""
  with tempfile.TemporaryDirectory() as folder:
    return estimates.Estimators(settings, Guard(pathlib.Path(folder), 60))


def assess(one, settings):
  """The decision about a row."""
  with tempfile.TemporaryDirectory() as folder:
    return work.assess(one, settings, Guard(pathlib.Path(folder), 60))


def tracked(record, count=300):
  """Pixels of points on the first frame's surface, as a tracker would see them."""
  cameras = cameras_of(record, slice(None))
  size = (record.height, record.width)
  depth = np.stack([records.read_depth(one, size) for one in record.depth])
  rng = np.random.default_rng(0)
  world = camera_geometry.unproject(depth[0], cameras[0]).reshape(-1, 3)
  world = world[rng.permutation(len(world))[:count]]
  over = np.broadcast_to(world, (len(depth), *world.shape))
  pixels, z = camera_geometry.project(over, cameras)
  column, row = np.floor(pixels).astype(int).transpose(2, 0, 1)
  inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0]) & (z > 0)
  frame = np.arange(len(depth))[:, None]
  there = depth[frame, np.clip(row, 0, size[0] - 1), np.clip(column, 0, size[1] - 1)]
  return pixels, inside & (np.abs(there / np.maximum(z, 1e-6) - 1) < 0.02), depth
