"""Anchors of each kind, on synthetic scenes and on the Middlebury motorcycle pair."""

import pathlib

import numpy as np
import pytest

from d4s_jax.curation import anchors, scale
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras

# SIFT matches of the pair, unverified (6% are wrong by over two pixels), and its true disparity at
# each; pycolmap's extractor and matcher on the pictures of Debian's python3-skimage.
PAIR = np.load(pathlib.Path(__file__).parent / "golden" / "motorcycle.npz")
FOCAL, OFFSET, BASELINE = 994.978, 31.086, 0.193001
TRUE_DEPTH = FOCAL * BASELINE / (PAIR["disparity"] + OFFSET)
KNOWN = np.isfinite(TRUE_DEPTH)


def walk(count, height=1.6, unit=1.0):
  """Cameras that go forward at a height over the ground y = 0, down is y; in units of `unit` m."""
  poses = np.tile(np.eye(4), (count, 1, 1))
  poses[:, 1, 3], poses[:, 2, 3] = -height / unit, np.linspace(0, 3, count) / unit
  lens = camera_geometry.intrinsics_from_fov(60, 48, 64).astype(np.float64)
  return Cameras(
    world_from_camera=poses, intrinsics=np.tile(lens, (count, 1, 1)), height=48, width=64
  )


def street(rng, unit):
  """Points of a rough ground and of clutter above it."""
  ground = rng.uniform([-4, 0, 2], [4, 0, 12], (300, 3)) + rng.normal(0, 0.01, (300, 3))
  clutter = rng.uniform([-4, -3, 2], [4, -0.2, 12], (200, 3))
  return np.concatenate([ground, clutter]) / unit


@pytest.mark.parametrize("unit", [0.07, 5.0])
def test_camera_height_scales_a_walk(unit):
  cameras = walk(9, unit=unit)
  found = anchors.from_camera_height(street(np.random.default_rng(0), unit), cameras, 1.6)
  result = found.estimate()
  assert abs(result.scale / unit - 1) < 0.02
  assert result.consistent


def test_a_camera_that_rises_is_inconsistent():
  cameras = walk(9)
  cameras.world_from_camera[:, 1, 3] -= np.linspace(0, 0.4, 9)
  found = anchors.from_camera_height(street(np.random.default_rng(0), 1), cameras, 1.6)
  try:
    assert not found.estimate().consistent
  except scale.Refused:
    pass


def test_without_a_ground_height_is_refused():
  rng = np.random.default_rng(0)
  with pytest.raises(scale.Refused, match="points below the cameras"):
    anchors.from_camera_height(rng.uniform(-9, -5, (100, 3)), walk(3), 1.6)
  # A cloud in which no plane stands out gives one at random, which frames don't agree about less:
  # so few of its points are near any plane that it is refused.
  with pytest.raises(scale.Refused):
    anchors.from_camera_height(rng.uniform([-4, 0, 2], [4, 60, 60], (100, 3)), walk(3), 1.6)


def test_depth_maps_scale_the_points_that_they_see():
  """A wall and a box before it: outlines are left out, hidden points are outliers."""
  rng, unit = np.random.default_rng(0), 0.3
  cameras = walk(5)
  depth = np.full((5, 48, 64), 8.0) - np.linspace(0, 3, 5)[:, None, None]
  depth[:, 20:30, 20:40] -= 3
  depth[:, :4] = 0
  world = camera_geometry.unproject(depth[0], cameras[0])[6:-2:3, 2:-2:3].reshape(-1, 3)
  points = np.concatenate([world, rng.uniform([-2, -3, 3], [2, 0, 9], (30, 3))])
  visible = np.zeros((len(points), 5), bool)
  visible[:, 0] = True
  relative = Cameras(
    world_from_camera=np.concatenate(
      [
        cameras.world_from_camera[:, :, :3],
        cameras.world_from_camera[:, :, 3:] / np.array([unit, unit, unit, 1])[:, None],
      ],
      axis=2,
    ),
    intrinsics=cameras.intrinsics,
    height=48,
    width=64,
  )
  found = anchors.from_depth_maps(points / unit, visible, relative, depth)
  assert np.all(found.groups == 0) and len(found.metric) < len(points)
  assert np.all(np.isin(np.round(found.metric, 6), [8.0, 5.0]))
  assert abs(found.estimate().scale / unit - 1) < 0.02
  with pytest.raises(ValueError, match="Depth maps of 32 x 48 pixels for cameras of 64 x 48"):
    anchors.from_depth_maps(points, visible, relative, depth[:, :, :32])


def test_objects_of_known_size():
  rng, unit = np.random.default_rng(0), 0.4
  lengths = rng.uniform(0.3, 2, 60)
  start = rng.normal(size=(60, 3))
  along = rng.normal(size=(60, 3))
  along /= np.linalg.norm(along, axis=1, keepdims=True)
  ends = np.stack([start, start + along * lengths[:, None]], 1) / unit
  ends += rng.normal(0, 0.01, ends.shape)
  found = anchors.from_lengths(ends, lengths, np.arange(60) // 6)
  assert abs(found.estimate().scale / unit - 1) < 0.02


def test_the_motorcycle_pair_scales_relative_depth():
  """Real matches with real mistakes; the relative depth is the true one in an unknown unit."""
  rng = np.random.default_rng(0)
  unit = 0.37
  relative = TRUE_DEPTH / unit * np.exp(rng.normal(0, 0.03, len(TRUE_DEPTH)))
  pair = dict(focal=FOCAL, offset=OFFSET, baseline=BASELINE)
  found = anchors.from_stereo(PAIR["left"], PAIR["right"], relative, **pair).estimate()
  assert abs(found.scale / unit - 1) < 0.01
  assert found.consistent and 0.85 < found.inliers < 0.99


def test_the_motorcycle_pair_scales_relative_disparity():
  relative = (PAIR["disparity"] - 20) / 60
  pair = dict(focal=FOCAL, offset=OFFSET, baseline=BASELINE)
  found = anchors.from_stereo(PAIR["left"], PAIR["right"], relative, **pair).estimate(shift=True)
  depth = scale.to_depth(found, relative[KNOWN].astype(np.float64))
  np.testing.assert_allclose(depth, TRUE_DEPTH[KNOWN], rtol=0.01)
  assert found.consistent


def test_the_baseline_of_the_motorcycle_pair_is_found_from_metric_depth():
  """Structure of a unit baseline, triangulated from the matches, against the metric depth map."""
  disparity = (PAIR["left"] - PAIR["right"])[:, 0] + OFFSET
  good = np.abs((PAIR["left"] - PAIR["right"])[:, 1]) < 1
  found = scale.estimate((FOCAL / disparity)[good & KNOWN], TRUE_DEPTH[good & KNOWN])
  assert abs(found.scale / BASELINE - 1) < 0.01
  assert found.consistent and found.confidence > 0.95
