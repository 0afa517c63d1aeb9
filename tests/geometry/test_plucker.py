import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import plucker, trajectories
from d4s_jax.types import Cameras


def orbit_cameras(frames: int = 3) -> Cameras:
  intrinsics = pinhole.intrinsics_from_fov(60, 6, 8)
  return Cameras(
    world_from_camera=trajectories.trajectory("orbit", frames),
    intrinsics=np.tile(intrinsics, (frames, 1, 1)),
    height=6,
    width=8,
  )


def test_moment_first_by_hand(xp):
  # One pixel on the axis, at (2, 0, 0), looking along z: (2, 0, 0) x (0, 0, 1) = (0, -2, 0).
  pose = np.eye(4, dtype=np.float32)
  pose[0, 3] = 2
  intrinsics = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], np.float32)
  cameras = Cameras(
    world_from_camera=xp.asarray(pose), intrinsics=xp.asarray(intrinsics), height=1, width=1
  )
  np.testing.assert_allclose(plucker.camera_map(cameras)[0, 0], [0, -2, 0, 0, 0, 1], atol=1e-7)


def test_first_camera_has_no_moment_and_directions_are_unit():
  ray_map = plucker.camera_map(orbit_cameras())
  assert ray_map.shape == (3, 6, 8, 6)
  np.testing.assert_array_equal(ray_map[0, ..., :3], 0)
  np.testing.assert_allclose(np.linalg.norm(ray_map[..., 3:], axis=-1), 1, atol=1e-6)
  assert np.abs(ray_map[1, ..., :3]).max() > 0.5


def test_the_moment_is_that_of_any_point_of_the_ray():
  cameras = orbit_cameras()
  ray_map = plucker.camera_map(cameras)
  points = pinhole.unproject(np.full((3, 6, 8), 4, np.float32), cameras)
  moments = np.cross(points, ray_map[..., 3:])
  # Products of lengths near 5.
  np.testing.assert_allclose(moments, ray_map[..., :3], atol=5e-6)


def test_flat_repeats_the_pose_over_the_pixels(xp):
  cameras = jax.tree.map(xp.asarray, orbit_cameras())
  tiled = plucker.camera_map(cameras, "flat")
  assert tiled.shape == (3, 6, 8, 12)
  np.testing.assert_array_equal(tiled[1, 2, 3], cameras.world_from_camera[1, :3].reshape(12))
  np.testing.assert_array_equal(tiled[1], np.broadcast_to(tiled[1, 0, 0], (6, 8, 12)))


@pytest.mark.parametrize("encoding", plucker.CHANNELS)
def test_channels_and_traced_equal_numpy(encoding):
  cameras = orbit_cameras()
  expected = plucker.camera_map(cameras, encoding)
  assert expected.shape[-1] == plucker.CHANNELS[encoding] and expected.dtype == np.float32
  traced = jax.jit(plucker.camera_map, static_argnums=1)(
    jax.tree.map(jnp.asarray, cameras), encoding
  )
  np.testing.assert_allclose(traced, expected, atol=1e-5)


def test_unknown_encoding_is_refused_with_the_names():
  with pytest.raises(ValueError, match="'rays'; expected one of .*flat.*plucker"):
    plucker.camera_map(orbit_cameras(), "rays")
