"""A scene and a video that belong together, and those that don't."""

import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.geometry.trajectories import trajectory
from d4s_jax.training import fitting
from d4s_jax.types import Cameras


def metadata(frames=3, height=16, width=24) -> SceneMetadata:
  lens = np.tile([[20, 0, width / 2], [0, 20, height / 2], [0, 0, 1]], (frames, 1, 1))
  cameras = Cameras(
    world_from_camera=jnp.asarray(trajectory("up", frames)),
    intrinsics=jnp.asarray(lens, jnp.float32),
    height=height,
    width=width,
  )
  return SceneMetadata(
    cameras=cameras, times=jnp.linspace(0, 1, frames), prompt="", package_version="0"
  )


def test_a_larger_video_has_larger_cameras():
  views = fitting.video_views(np.zeros((3, 32, 48, 3), np.float32), metadata())
  assert (views.cameras.height, views.cameras.width) == (32, 48)
  np.testing.assert_allclose(views.cameras.intrinsics[0, 0, 0], 40)
  np.testing.assert_array_equal(views.times, [0, 0.5, 1])


@pytest.mark.parametrize(
  "shape, message",
  [
    ((2, 16, 24, 3), "2 frames and the scene 3 cameras"),
    ((3, 16, 16, 3), "16 x 16 pixels and the scene 24 x 16"),
    ((3, 8, 12, 3), "expected at least 11 a side"),
  ],
)
def test_other_videos_are_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    fitting.video_views(np.zeros(shape, np.float32), metadata())


def test_what_was_refined_says_so():
  assert fitting.refined(metadata(), 7).checkpoint == "unknown, refined in 7 steps"


@pytest.mark.parametrize(
  ("frames", "held"), [(3, []), (5, [4]), (9, [4]), (49, [4, 12, 20, 28, 36, 44])]
)
def test_every_eighth_frame_is_held_out(frames, held):
  views = fitting.video_views(np.zeros((frames, 16, 24, 3), np.float32), metadata(frames))
  fitted, others = fitting.hold_out(views)
  assert len(fitted.times) == len(fitted.images) == frames - len(held)
  assert (others is None) == (not held)
  if others is not None:
    np.testing.assert_allclose(others.times, np.linspace(0, 1, frames)[held], rtol=1e-6)
    assert (
      others.cameras.world_from_camera.shape == (len(held), 4, 4) and others.cameras.height == 16
    )
