"""The stem before the tokens: what it sees, what it finds, and that latents pass through it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.trunk import MATCH_UNIT, MATCHED_FRAMES, Matching, Stem, still_offsets
from tests.models.test_ldrm import make_cameras

CHANNELS, FRAMES, SIDE = 8, 6, 12


def texture(*shape):
  return jax.random.normal(jax.random.key(0), shape)


def test_a_change_is_seen_in_the_frames_that_are_compared_and_nowhere_else():
  stem = Stem(depth=1)
  latents = texture(1, 8, SIDE, SIDE, CHANNELS)
  still = jnp.zeros((1, 8, SIDE, SIDE, 4 * len(MATCHED_FRAMES)))
  params = stem.init(jax.random.key(1), latents, still)
  changed = latents.at[:, 4].add(1.0)
  before, after = (stem.apply(params, x, still) for x in (latents, changed))
  np.testing.assert_array_equal(before[..., :CHANNELS], latents)
  moved = jnp.any(before[..., CHANNELS:] != after[..., CHANNELS:], axis=(0, 2, 3, 4))
  # Two frames by matching, one more by the convolution.
  np.testing.assert_array_equal(moved, np.abs(np.arange(8) - 4) <= 3)


@pytest.mark.parametrize("step", [(1, 0), (-1, 0), (0, 1)])
def test_what_moves_is_found_where_it_went(step):
  first = texture(SIDE, SIDE, CHANNELS)
  moved = [jnp.roll(first, (i * step[1], i * step[0]), axis=(0, 1)) for i in range(FRAMES)]
  latents = jnp.stack(moved)[None]
  matching = Matching()
  found = matching.apply(matching.init(jax.random.key(0), latents), latents)
  assert isinstance(found, jax.Array)
  offsets = found.reshape(*found.shape[:-1], len(MATCHED_FRAMES), 3)
  # Away from the border, over which the texture is rolled, and from the clip's ends.
  middle = np.asarray(offsets[0, 2:4, 4:-4, 4:-4])
  want = np.array(MATCHED_FRAMES)[:, None] * np.array(step) / MATCH_UNIT
  # Places elsewhere are unlikely but many, and a few of them look alike.
  np.testing.assert_allclose(middle[..., :2].mean(axis=(0, 1, 2)), want, atol=0.02)
  assert middle[..., 2].mean() > 0.9


def test_before_the_first_frame_nothing_moves():
  matching = Matching()
  latents = texture(1, FRAMES, SIDE, SIDE, CHANNELS)
  found = matching.apply(matching.init(jax.random.key(0), latents), latents)
  assert isinstance(found, jax.Array)
  assert np.abs(found[0, 0, ..., :2]).max() < 0.1


def test_offsets_of_still_points_are_the_cameras_alone():
  cameras = make_cameras(1, FRAMES, SIDE, SIDE)
  offsets = still_offsets(cameras, near=2.0)
  assert offsets.shape == (1, FRAMES, SIDE, SIDE, 4 * len(MATCHED_FRAMES))
  # Frames for which the first one stands.
  np.testing.assert_allclose(offsets[0, 0, ..., :8], 0, atol=1e-4)
  assert np.abs(offsets[0, 3]).max() > 0.01

  # A camera that only steps aside: what is far stays, what is near goes the other way by f / z.
  aside = np.tile(np.eye(4, dtype=np.float32), (1, FRAMES, 1, 1))
  aside[0, :, 0, 3] = 0.1 * np.arange(FRAMES)
  cameras = dataclasses.replace(cameras, world_from_camera=jnp.asarray(aside))
  far_x, far_y, near_x, near_y = np.moveaxis(
    still_offsets(cameras, near=2.0)[0, 2, ..., 8:12], -1, 0
  )
  focal = float(cameras.intrinsics[0, 0, 0, 0])
  np.testing.assert_allclose(near_x, -0.1 * focal / 2.0 / MATCH_UNIT, atol=1e-4)
  np.testing.assert_allclose(far_x, near_x / 1000, atol=1e-4)
  np.testing.assert_allclose([far_y, near_y], 0, atol=1e-4)
