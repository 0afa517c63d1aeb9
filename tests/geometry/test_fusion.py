import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree

from d4s_jax.geometry import fusion, poses
from d4s_jax.geometry.cameras import intrinsics_from_fov
from d4s_jax.types import Cameras

SIDE = 64
CENTRE, RADIUS = np.array([0.1, -0.2, 3.0]), 0.7


def cameras():
  """Four around a ball."""
  angle = np.arange(4) * np.pi / 2
  eyes = CENTRE + 3 * np.stack([np.sin(angle), 0.2 * np.cos(2 * angle), -np.cos(angle)], axis=-1)
  up = np.broadcast_to([0.0, -1.0, 0.0], eyes.shape)
  pose = poses.look_at(eyes, np.broadcast_to(CENTRE, eyes.shape), up)
  lens = np.tile(intrinsics_from_fov(50, SIDE, SIDE), (4, 1, 1))
  return Cameras(
    world_from_camera=pose.astype("f4"), intrinsics=lens.astype("f4"), height=SIDE, width=SIDE
  )


def ball(views):
  """Exact z-depth of the ball, infinite beside it."""
  found = []
  for pose, lens in zip(views.world_from_camera, views.intrinsics):
    grid = np.stack(np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5), axis=-1)
    ray = np.concatenate([(grid - lens[:2, 2]) / lens[0, 0], np.ones((SIDE, SIDE, 1))], axis=-1)
    middle = (CENTRE - pose[:3, 3]) @ pose[:3, :3]
    a, b, c = (ray**2).sum(-1), ray @ middle, middle @ middle - RADIUS**2
    root = b**2 - a * c
    found.append(np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf))
  return np.stack(found).astype("f4")


def test_points_lie_on_the_ball():
  views = cameras()
  found = fusion.points(ball(views), views)
  np.testing.assert_allclose(np.linalg.norm(found - CENTRE, axis=1), RADIUS, atol=1e-3)


def test_the_field_changes_sign_at_the_ball():
  views = cameras()
  depth = ball(views)
  low, voxel, shape = fusion.bounds(fusion.points(depth, views), 40, 0.0)
  field = fusion.fuse(depth, views, low, voxel, shape)
  cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
  outside = np.linalg.norm(low + voxel * cells - CENTRE, axis=-1) - RADIUS
  # Distances along rays are longer than those to the surface; the sign is what both share.
  told = field.seen & (np.abs(outside) > voxel) & (outside > -4 * voxel)
  assert told.sum() > 1000
  # No hole: near a point it is what it is with all blocks.
  everywhere = (low + voxel * cells).reshape(-1, 3).astype("f4")
  whole = fusion.fuse(depth, views, low, voxel, shape, found=everywhere)
  near = cKDTree(fusion.points(depth, views)).query(everywhere)[0] < voxel
  near = whole.seen & near.reshape(shape)
  assert near.sum() > 1000 and field.seen[near].all()
  np.testing.assert_array_equal(field.distance[near], whole.distance[near])
  assert (np.sign(field.distance[told]) == np.sign(outside[told])).mean() > 0.99


def test_a_point_has_the_colours_of_the_pictures_that_see_it():
  views = cameras()
  depth = ball(views)
  images = np.zeros((*depth.shape, 3), np.float32)
  images[0], images[2] = [0.2, 0.4, 0.8], [1, 1, 1]
  towards = CENTRE - views.world_from_camera[:, :3, 3]
  front = CENTRE - RADIUS * towards / np.linalg.norm(towards, axis=1, keepdims=True)
  away = CENTRE + np.float32([[0, 3, 0]])
  found = fusion.paint(np.concatenate([front, away]), depth, images, views, 0.1)
  # What faces a camera is seen by it alone; beside the ball there is nothing.
  np.testing.assert_allclose(
    found[[0, 1, 2, 4]],
    [[0.2, 0.4, 0.8], *np.zeros((1, 3)), [1, 1, 1], *np.zeros((1, 3))],
    atol=1e-6,
  )


def test_what_no_camera_sees_stays_unknown():
  views = cameras()
  front = dataclasses.replace(
    views, world_from_camera=views.world_from_camera[:1], intrinsics=views.intrinsics[:1]
  )
  depth = ball(views)[:1]
  grid = fusion.bounds(fusion.points(ball(views), views), 40, 0.0)
  field = fusion.fuse(depth, front, *grid)
  behind = np.round((CENTRE + [0, 0, RADIUS - 0.02] - grid[0]) / grid[1]).astype(int)
  assert not field.seen[tuple(behind)]


@pytest.mark.parametrize("axis", [1, 2])
def test_both_sides_of_a_step_go(axis):
  depth = np.ones((1, 6, 6), np.float32)
  depth[(slice(None),) * axis + (slice(3, None),)] = 2
  kept = np.moveaxis(fusion.without_edges(depth, 0.05), axis, -1)
  np.testing.assert_array_equal((kept > 0).all(axis=(0, 1)), [1, 1, 0, 0, 1, 1])
