"""The camera conventions, with numbers worked out by hand."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import poses, rotations
from d4s_jax.types import Cameras

HEIGHT, WIDTH = 6, 8


def random_cameras(seed: int, *shape: int) -> Cameras:
  rng = np.random.default_rng(seed)
  turn = rotations.normalize(rng.normal(size=(*shape, 4)))
  position = rng.normal(size=(*shape, 3))
  intrinsics = np.zeros((*shape, 3, 3))
  intrinsics[..., 0, 0] = rng.uniform(5, 20, shape)
  intrinsics[..., 1, 1] = rng.uniform(5, 20, shape)
  intrinsics[..., 0, 2] = rng.uniform(2, 6, shape)
  intrinsics[..., 1, 2] = rng.uniform(2, 4, shape)
  intrinsics[..., 2, 2] = 1
  return Cameras(
    world_from_camera=poses.assemble(rotations.to_matrix(turn), position).astype(np.float32),
    intrinsics=intrinsics.astype(np.float32),
    height=HEIGHT,
    width=WIDTH,
  )


def by_hand(xp) -> Cameras:
  """At (10, 0, 0) metres, looking along world x; focal lengths 100 and 50, centre (4, 3)."""
  pose = [[0, 0, 1, 10], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]]
  return Cameras(
    world_from_camera=xp.asarray(pose, dtype=xp.float32),
    intrinsics=xp.asarray([[100, 0, 4], [0, 50, 3], [0, 0, 1]], dtype=xp.float32),
    height=HEIGHT,
    width=WIDTH,
  )


def test_pixel_centres_are_at_one_half(xp):
  grid = pinhole.pixel_grid(2, 3, xp)
  assert grid.shape == (2, 3, 2) and grid.dtype == np.float32
  np.testing.assert_array_equal(grid[1, 2], [2.5, 1.5])


def test_project_by_hand(xp):
  # Ahead of the camera is world x, its right is -z, its down is y.
  points = xp.asarray([[12.0, 0, 0], [12, 0, -0.1], [12, 0.1, 0], [9, 0, 0]])
  pixels, depth = pinhole.project(points, by_hand(xp))
  np.testing.assert_allclose(depth, [2, 2, 2, -1], atol=1e-6)
  np.testing.assert_allclose(pixels[:3], [[4, 3], [9, 3], [4, 5.5]], atol=1e-5)
  assert np.isfinite(pixels).all()


def test_unproject_by_hand(xp):
  points = pinhole.unproject(xp.full((HEIGHT, WIDTH), 2.0, dtype=xp.float32), by_hand(xp))
  # Pixel (0, 0): x = (0.5 - 4) / 100 * 2 to the right, y = (0.5 - 3) / 50 * 2 down.
  np.testing.assert_allclose(points[0, 0], [12, -0.1, 0.07], atol=1e-6)


def test_rays_start_at_the_camera_and_have_unit_length(xp):
  origins, directions = pinhole.rays(by_hand(xp))
  np.testing.assert_array_equal(origins[5, 7], [10, 0, 0])
  np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-6)
  slope = np.array([1, -2.5 / 50, 3.5 / 100])
  np.testing.assert_allclose(directions[0, 0], slope / np.linalg.norm(slope), atol=1e-6)


def test_orthographic_by_hand(xp):
  cameras = dataclasses.replace(by_hand(xp), model="orthographic")
  pixels, depth = pinhole.project(xp.asarray([[12.0, 0, -0.02], [13, 0.04, 0]]), cameras)
  np.testing.assert_allclose(depth, [2, 3], atol=1e-6)
  np.testing.assert_allclose(pixels, [[6, 3], [4, 5]], atol=1e-5)
  origins, directions = pinhole.rays(cameras)
  # Pixel (0, 0): -3.5 pixels of 1/100 m to the right, -2.5 of 1/50 m down.
  np.testing.assert_allclose(origins[0, 0], [10, -0.05, 0.035], atol=1e-6)
  np.testing.assert_allclose(directions[0, 0], [1, 0, 0], atol=1e-6)


def test_unknown_camera_model_is_refused():
  cameras = dataclasses.replace(by_hand(np), model="fisheye")
  with pytest.raises(ValueError, match="'fisheye'.*pinhole.*orthographic"):
    pinhole.rays(cameras)


@hypothesis.given(
  st.integers(0, 2**16),
  st.sampled_from([(), (2,), (2, 3)]),
  st.sampled_from(pinhole.MODELS),
)
def test_project_inverts_unproject(seed, shape, model):
  cameras = dataclasses.replace(random_cameras(seed, *shape), model=model)
  depth = np.random.default_rng(seed).uniform(0.5, 5, (*shape, HEIGHT, WIDTH)).astype(np.float32)
  points = pinhole.unproject(depth, cameras)
  pixels, seen = pinhole.project(points.reshape(*shape, -1, 3), cameras)
  grid = np.broadcast_to(pinhole.pixel_grid(HEIGHT, WIDTH).reshape(-1, 2), pixels.shape)
  # A focal length of 20 px amplifies float32 rounding of metres.
  np.testing.assert_allclose(pixels, grid, atol=5e-4)
  np.testing.assert_allclose(seen, depth.reshape(*shape, -1), atol=1e-5)


def test_unprojected_points_lie_on_the_rays():
  cameras = random_cameras(0, 2)
  origins, directions = pinhole.rays(cameras)
  points = pinhole.unproject(np.full((2, HEIGHT, WIDTH), 3, np.float32), cameras)
  along = np.sum((points - origins) * directions, axis=-1, keepdims=True)
  np.testing.assert_allclose(origins + along * directions, points, atol=1e-5)


def test_resize_keeps_the_edges_of_the_image_plane(xp):
  cameras = by_hand(xp)
  points = xp.asarray([[12.0, -0.1, 0.05]])
  pixels, _ = pinhole.project(points, cameras)
  resized = pinhole.resize(cameras, 3 * HEIGHT, WIDTH // 2)
  assert (resized.height, resized.width) == (18, 4)
  np.testing.assert_allclose(
    pinhole.project(points, resized)[0], np.asarray(pixels) * [0.5, 3], atol=1e-5
  )
  assert resized.intrinsics[2, 2] == 1


def test_crop_moves_the_principal_point(xp):
  cropped = pinhole.crop(by_hand(xp), top=1, left=2, height=4, width=5)
  np.testing.assert_array_equal(cropped.intrinsics, [[100, 0, 2], [0, 50, 2], [0, 0, 1]])
  assert (cropped.height, cropped.width) == (4, 5)


def test_fov_of_ninety_degrees_has_half_the_width_as_focal_length():
  intrinsics = pinhole.intrinsics_from_fov(90, 48, 64)
  np.testing.assert_allclose(intrinsics, [[32, 0, 32], [0, 32, 24], [0, 0, 1]], atol=1e-5)
  np.testing.assert_allclose(pinhole.fov_from_intrinsics(intrinsics, 64), 90, atol=1e-4)


@pytest.mark.parametrize("fov", [0, 1e-9, 0.9, 179.1, 180, -5, float("nan")])
def test_impossible_fov_is_refused(fov):
  with pytest.raises(ValueError, match="expected 1 to 179"):
    pinhole.intrinsics_from_fov(fov, 48, 64)


def test_a_point_in_the_camera_plane_has_finite_gradients():
  cameras = by_hand(jnp)
  gradient = jax.grad(lambda p: pinhole.project(p, cameras)[0].sum())(jnp.array([[10.0, 1, 1]]))
  assert np.isfinite(gradient).all()


def test_traced_equals_numpy():
  cameras = random_cameras(1, 2)
  depth = np.full((2, HEIGHT, WIDTH), 2, np.float32)
  traced = jax.tree.map(jnp.asarray, cameras)
  for function, arguments in (
    (pinhole.rays, ()),
    (pinhole.project, (np.ones((2, 4, 3), np.float32),)),
    (pinhole.unproject, (depth,)),
  ):
    expected = function(*arguments, cameras)
    for ours, theirs in zip(
      jax.tree.leaves(jax.jit(function)(*arguments, traced)), jax.tree.leaves(expected), strict=True
    ):
      assert isinstance(theirs, np.ndarray) and theirs.dtype == np.float32
      # Fused multiply-adds round once less.
      np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)


def test_vmap_equals_batch():
  cameras = jax.tree.map(jnp.asarray, random_cameras(2, 3))
  for batched, mapped in zip(pinhole.rays(cameras), jax.vmap(pinhole.rays)(cameras), strict=True):
    np.testing.assert_allclose(batched, mapped, atol=1e-6)


def test_numpy_poses_meet_traced_intrinsics():
  cameras = random_cameras(3, 2)

  def total(intrinsics):
    mixed = dataclasses.replace(cameras, intrinsics=intrinsics)
    origins, directions = pinhole.rays(mixed)
    pixels, _ = pinhole.project(np.ones((2, 4, 3), np.float32), mixed)
    return origins.sum() + directions.sum() + pixels.sum()

  assert np.isfinite(jax.jit(jax.grad(total))(cameras.intrinsics)).all()
