"""What the stem sees of the decoded video and finds in it, and that the heads see it too."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.gaussian_head import raw_colour
from d4s_jax.models.ldrm import LDRM
from d4s_jax.models.stem import MATCH_UNIT, MATCHED_FRAMES, Detail, Matching, Stem, still_offsets
from tests.models.test_ldrm import SMALL, TIMES, make_cameras

CHANNELS, FRAMES, SIDE = 8, 9, 12
# Of SMALL: 5 frames of 16 x 16.
SEEING = SMALL.clone(stem=1)


def texture(*shape):
  return jax.random.normal(jax.random.key(0), shape)


def test_a_change_is_seen_in_the_frames_that_are_compared_and_nowhere_else():
  stem = Stem(depth=1, cell=(4, 4), near=2.0)
  frames = 13
  video = jax.random.uniform(jax.random.key(0), (1, frames, 16, 16, 3))
  cameras = make_cameras(1, frames, 16, 16)
  params = stem.init(jax.random.key(1), video, cameras)
  before = stem.apply(params, video, cameras)
  after = stem.apply(params, video.at[:, 6].add(0.5), cameras)
  moved = np.asarray(jnp.any(before != after, axis=(0, 2, 3, 4)))
  # By matching four frames before and after and those beside, and one more by the convolution.
  reached = [6 + shift + beside for shift in (0, *MATCHED_FRAMES) for beside in (-1, 0, 1)]
  np.testing.assert_array_equal(moved, np.isin(np.arange(frames), reached))
  assert not moved.all()


@pytest.mark.parametrize("step", [(1, 0), (-1, 0), (0, 1)])
def test_what_moves_is_found_where_it_went(step):
  first = texture(SIDE, SIDE, CHANNELS)
  moved = [jnp.roll(first, (i * step[1], i * step[0]), axis=(0, 1)) for i in range(FRAMES)]
  cells = jnp.stack(moved)[None]
  matching = Matching()
  found = matching.apply(matching.init(jax.random.key(0), cells), cells)
  assert isinstance(found, jax.Array)
  offsets = np.asarray(found.reshape(*found.shape[:-1], len(MATCHED_FRAMES), 3))
  # The middle frame is four from both ends. Away from the border, over which the texture is rolled.
  middle = offsets[0, 4, 4:-4, 4:-4]
  want = np.array(MATCHED_FRAMES)[:, None] * np.array(step) / MATCH_UNIT
  near = np.abs(MATCHED_FRAMES) == 1
  # Places elsewhere are unlikely but many, and a few of them look alike.
  np.testing.assert_allclose(middle[:, :, near, :2].mean(axis=(0, 1)), want[near], atol=0.02)
  # Four cells away are 1.3 deviations of where a match is likely.
  np.testing.assert_allclose(middle[:, :, ~near, :2].mean(axis=(0, 1)), want[~near], atol=0.1)
  assert middle[..., 2].mean() > 0.9


def test_before_the_first_frame_nothing_moves():
  matching = Matching()
  cells = texture(1, FRAMES, SIDE, SIDE, CHANNELS)
  found = matching.apply(matching.init(jax.random.key(0), cells), cells)
  assert isinstance(found, jax.Array)
  backwards = np.asarray(found).reshape(*found.shape[:-1], -1, 3)[0, 0, ..., :2, :2]
  assert np.abs(backwards).max() < 0.1


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


def test_colours_of_cells_are_those_of_their_pixels():
  video = jnp.linspace(0.1, 0.9, 2 * 4 * 6 * 3).reshape(1, 2, 4, 6, 3)
  raw = raw_colour(video, (2, 3))
  want = np.asarray(video).reshape(1, 2, 2, 2, 3, 2, 3).mean(axis=(3, 5))
  np.testing.assert_allclose(0.5 + 0.5 * np.tanh(raw), want, rtol=1e-5)
  # Beyond black and white there are values, too.
  assert jnp.isfinite(raw_colour(jnp.array([-0.1, 0.0, 1.2]).reshape(1, 1, 1, 1, 3), (1, 1))).all()


@pytest.fixture(scope="module")
def inputs():
  latents = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 6))
  video = jax.random.uniform(jax.random.key(1), (2, 5, 16, 16, 3))
  return latents, make_cameras(2, 5, 16, 16), TIMES, video


@pytest.fixture(scope="module")
def params(inputs):
  *others, video = inputs
  key = jax.random.key(1, impl="unsafe_rbg")
  untrained = nn.unbox(jax.jit(SEEING.init)(key, *others, video=video))
  numbers = np.random.default_rng(2)
  return jax.tree.map(lambda x: jnp.asarray(x + 0.1 * numbers.normal(size=x.shape)), untrained)


def test_detail_is_that_of_a_cell_and_its_neighbours():
  # A token is 4 x 4 cells, a feature of the stem 2 x 2, a cell 2 x 2 pixels.
  detail = Detail((4, 4, 4), (2, 2))
  tokens, seen = texture(1, 2, 3, 3, 8), texture(1, 5, 6, 6, 4)
  video = jax.random.uniform(jax.random.key(1), (1, 5, 24, 24, 3))
  params = detail.init(jax.random.key(2), tokens, seen, video)

  def reach(tokens=tokens, seen=seen, video=video):
    """Frames, rows and columns of the cells that differ."""
    change = detail.apply(params, tokens, seen, video) != before
    return [set(where.tolist()) for where in np.nonzero(np.asarray(change).any(axis=-1)[0])]

  before = detail.apply(params, tokens, seen, video)
  # Two convolutions reach two cells further.
  assert reach(video=video.at[0, 3, 12, 12].add(0.5)) == [{3}, {*range(4, 9)}, {*range(4, 9)}]
  assert reach(seen=seen.at[0, 3, 3, 3].add(0.5)) == [{3}, {*range(4, 10)}, {*range(4, 10)}]
  assert reach(tokens=tokens.at[0, 1, 1, 1].add(0.5))[1:] == [{*range(2, 10)}] * 2


def test_gradients_are_finite_and_reach_every_parameter_and_the_video(inputs, params):
  latents, cameras, times, video = inputs

  @jax.jit
  def gradient(params, video):
    def loss(params, video):
      scene, auxiliary = SEEING.apply(
        params, latents, cameras, times, video=video, key=jax.random.key(3)
      )
      return sum(jnp.sum(jnp.square(x - 0.1)) for x in jax.tree.leaves((scene, auxiliary.depth)))

    return jax.grad(loss, argnums=(0, 1))(params, video)

  of_params, of_video = gradient(params, video)
  found = jax.tree_util.tree_leaves_with_path(of_params["params"])
  zero = {"/".join(k.key for k in path) for path, x in found if jnp.all(x == 0)}
  assert all(jnp.isfinite(x).all() for _, x in found)
  # Of noise that isn't there.
  assert zero == {"trunk/noise_in/kernel"} or not zero
  assert jnp.isfinite(of_video).all() and (jnp.abs(of_video).max(axis=(0, 2, 3, 4)) > 0).all()


def test_the_video_is_asked_for_where_it_is_seen_and_refused_elsewhere(inputs):
  latents, cameras, times, video = inputs

  def run(model: LDRM, **video):
    return jax.eval_shape(model.init, jax.random.key(0), latents, cameras, times, **video)

  with pytest.raises(ValueError, match="stem of 1 takes the decoded video beside the latents"):
    run(SEEING)
  with pytest.raises(ValueError, match="stem of 0 takes no video"):
    run(SMALL, video=video)
