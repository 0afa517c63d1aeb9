"""Starts of per-scene optimisation: where the points are."""

import jax
import numpy as np
import pytest

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation import starts
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.types import Cameras


@pytest.fixture(scope="module")
def views():
  source = SyntheticScenes(split="heldout", kind="static", views=0, height=128, width=128)
  return source.read(0).source


def camera(x) -> Cameras:
  pose = np.eye(4, dtype=np.float32)
  pose[0, 3] = x
  lens = np.array([[100, 0, 64], [0, 100, 64], [0, 0, 1]], np.float32)
  return Cameras(world_from_camera=pose, intrinsics=lens, height=128, width=128)


def test_triangulation_finds_points_and_drops_what_cannot_be_one():
  points = np.random.default_rng(0).uniform((-1, -1, 3), (1, 1, 6), (20, 3)).astype(np.float32)
  first, second = camera(0.0), camera(0.4)
  seen = [np.asarray(pinhole.project(points, x)[0]) for x in (first, second)]
  matches = np.concatenate(seen, axis=1).astype(np.float64)
  found, kept = starts.triangulate(matches, first, second)
  assert kept.all()
  np.testing.assert_allclose(found, points, atol=1e-3)
  wrong = matches.copy()
  wrong[0, 3] += 10  # off its epipolar line
  wrong[1, 2] = wrong[1, 0] + 30  # behind the cameras
  wrong[2, 2:] = wrong[2, :2] - 0.05  # nearly parallel rays
  _, kept = starts.triangulate(wrong, first, second)
  assert not kept[:3].any() and kept[3:].all()


def test_points_of_sift_lie_on_the_scene(views):
  start, count = starts.of_sift(views, 500)
  assert 20 < count <= 500
  assert int((np.asarray(start.opacities) > 0).sum()) == count
  first = jax.tree.map(lambda x: np.asarray(x)[0], views.cameras)
  pixels, depth = pinhole.project(np.asarray(start.means[:count]), first)
  pixels = np.floor(np.asarray(pixels)).astype(int)
  inside = ((pixels >= 0) & (pixels < 128)).all(axis=1)
  true = np.asarray(views.depth)[0, pixels[inside, 1], pixels[inside, 0]]
  assert np.median(np.abs(np.asarray(depth)[inside] - true) / true) < 0.1


def test_random_points_are_seen_by_the_cameras(views):
  start = starts.of_random(views, 300, 4.0)
  depths = []
  for index in range(len(views.times)):
    one = views.cameras[index]
    depths.append(np.asarray(pinhole.project(np.asarray(start.means), one)[1]))
  assert (np.max(depths, axis=0) > 1.1).all() and np.min(depths) < 3
  again = starts.of_random(views, 300, 4.0)
  np.testing.assert_array_equal(start.means, again.means)
  assert not np.array_equal(start.means, starts.of_random(views, 300, 4.0, seed=1).means)


def test_videos_without_features_have_no_start(views):
  import dataclasses

  flat = dataclasses.replace(views, images=np.full_like(views.images, 0.5))
  with pytest.raises(ValueError, match="0 points were triangulated"):
    starts.of_sift(flat, 100)
