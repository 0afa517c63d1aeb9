"""Camera paths of videos whose path is known."""

import numpy as np
import pycolmap
import pytest

from d4s_jax.data.source import open_source
from d4s_jax.evaluation.camera_paths import path_error
from d4s_jax.evaluation.structure_from_motion import find_path

SIDE, FRAMES = 256, 9


@pytest.fixture(scope="module")
def clip():
  source = open_source(
    "synthetic", split="heldout", kind="static", views=1, frames=FRAMES, height=SIDE, width=SIDE
  )
  return source.read(0)


def test_the_path_of_a_drawn_scene_is_found(clip):
  found = find_path(np.asarray(clip.source.images), clip.source.cameras)
  assert found is not None and found.shape == (FRAMES, 4, 4)
  error = path_error(found, np.asarray(clip.source.cameras.world_from_camera))
  # The path is half a metre long; 0.0025 m and 0.04 degrees were seen, fractions of a pixel.
  assert error.absolute < 0.02
  assert error.relative_rotation < 0.3
  # The other way round it is another path.
  back = path_error(found[::-1], np.asarray(clip.source.cameras.world_from_camera))
  assert back.relative_translation > 10 * error.relative_translation


def test_two_runs_agree_bit_for_bit(clip):
  video = np.asarray(clip.source.images)
  first, second = (find_path(video, clip.source.cameras) for _ in range(2))
  assert first is not None and second is not None
  np.testing.assert_array_equal(first, second)


def test_noise_has_no_path(clip):
  noise = np.random.default_rng(0).random((FRAMES, SIDE, SIDE, 3), np.float32)
  assert find_path(noise, clip.source.cameras) is None


def test_whatever_colmap_raises_is_told_as_its_failure(clip, monkeypatch):
  def fail(*_):
    raise RuntimeError("no more GPUs")

  monkeypatch.setattr(pycolmap, "incremental_mapping", fail)
  with pytest.raises(ValueError, match=r"pycolmap failed \(RuntimeError: no more GPUs\)"):
    find_path(np.asarray(clip.source.images)[:3], clip.source.cameras[:3])


def test_unusable_videos_are_refused(clip):
  video = np.asarray(clip.source.images)
  with pytest.raises(ValueError, match="video of 2 frames; expected at least 3"):
    find_path(video[:2], clip.source.cameras[:2])
  zoom = clip.source.cameras
  zoom = type(zoom)(
    world_from_camera=zoom.world_from_camera,
    intrinsics=np.asarray(zoom.intrinsics) * np.linspace(1, 2, FRAMES)[:, None, None],
    height=SIDE,
    width=SIDE,
  )
  with pytest.raises(ValueError, match="one lens for all frames"):
    find_path(video, zoom)
