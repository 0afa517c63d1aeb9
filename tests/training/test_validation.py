"""Scores and baselines, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.models.system import System
from d4s_jax.training import validation
from d4s_jax.training.stages import stage
from tests.support import random_params, small_config


def test_psnr_by_hand():
  image = jnp.full((1, 4, 5, 3), 0.5)
  np.testing.assert_allclose(validation.psnr(image, image + 0.1), [20.0], rtol=1e-5)
  np.testing.assert_allclose(validation.psnr(image, image), [100.0])


def test_correlation_is_blind_to_scale_and_to_unknown_depth():
  depth = jnp.asarray(np.random.default_rng(0).uniform(1, 5, (6, 7)), jnp.float32)
  holes = depth.at[2].set(0.0)
  np.testing.assert_allclose(validation.correlation(3 * depth + 1, holes), 1.0, atol=1e-5)
  np.testing.assert_allclose(validation.correlation(-depth, depth), -1.0, atol=1e-5)
  np.testing.assert_allclose(validation.correlation(jnp.ones_like(depth), depth), 0.0, atol=1e-5)


def clip_source():
  return SOURCES["synthetic"](
    split="heldout", kind="dynamic", frames=5, height=16, width=16, views=2
  )


def clips(system, count=2):
  source = clip_source()
  return source, list(validation.HeldOut(source, system.backbone.tokenizer, 1, count))


def test_heldout_clips_are_the_first_of_the_split():
  system = System.build(small_config().model.to_dict())
  source, loaded = clips(system)
  for index, clip in enumerate(loaded):
    expected = with_tokens(source.read(index), system.backbone.tokenizer)
    np.testing.assert_array_equal(clip.source.images[0], expected.source.images)
    np.testing.assert_array_equal(clip.text[0], expected.text)


class Counted:
  """A source that remembers what was read of it."""

  def __init__(self, length):
    self._source, self._length, self.seen = clip_source(), length, []

  def __len__(self):
    return self._length

  def read(self, index):
    self.seen.append(index)
    return self._source.read(index)


def test_heldout_clips_are_made_at_each_look_by_the_process_whose_they_are():
  tokenize = System.build(small_config().model.to_dict()).backbone.tokenizer
  source = Counted(100)
  heldout = validation.HeldOut(source, tokenize, batch_size=4, batches=2, rows=(1, 3))
  assert source.seen == []
  assert heldout.example().source.images.shape[0] == 1
  source.seen.clear()
  looks = [list(heldout), list(heldout)]
  assert source.seen == 2 * [1, 3, 5, 7]
  jax.tree.map(np.testing.assert_array_equal, *looks)
  whole = list(validation.HeldOut(source, tokenize, batch_size=4, batches=2))
  for part, batch in zip(looks[0], whole, strict=True):
    np.testing.assert_array_equal(part.source.images, batch.source.images[[1, 3]])


def test_too_few_heldout_clips_fill_a_batch_by_turns():
  tokenize = System.build(small_config().model.to_dict()).backbone.tokenizer
  source = Counted(3)
  batches = list(validation.HeldOut(source, tokenize, batch_size=2, batches=9))
  assert source.seen == [0, 1, 2, 0] and len(batches) == 2
  np.testing.assert_array_equal(batches[1].source.images[1], batches[0].source.images[0])


def test_baselines_repeat_the_nearest_frame():
  _, (clip, _) = clips(System.build(small_config().model.to_dict()))
  # Views that are source frames 3 and 1 themselves.
  picked = np.array([3, 1])
  target = dataclasses.replace(
    clip.target,
    cameras=clip.source.cameras[:, picked],
    times=jnp.asarray(clip.source.times[:, picked] + 0.05),
  )
  clip = dataclasses.replace(clip, target=target)
  for baseline in (validation.nearest_time, validation.nearest_camera):
    np.testing.assert_array_equal(baseline(clip), clip.source.images[:, picked])


def test_scores_of_a_run_and_what_motion_is_worth():
  """A head that moves everything aside scores differently with its motion switched off."""
  system = System.build(small_config().model.to_dict())
  params = random_params(system)
  _, loaded = clips(system)
  scores = validation.make_validation(system, stage("joint"))(params, loaded)
  assert {"psnr", "psnr_without_motion", "psnr_nearest_time", "depth_correlation"} <= scores.keys()
  assert all(np.isfinite(value) for value in scores.values())
  assert scores["psnr"] != scores["psnr_without_motion"]

  validate = validation.make_validation(system, stage("diffusion"))
  before = validate(params, loaded)
  assert set(before) == {"flow_matching"} and before == validate(params, loaded)
  other = params | {"transformer": random_params(system, seed=1)["transformer"]}
  assert validate(other, loaded) != before
  other = params | {"ldrm": random_params(system, seed=1)["ldrm"]}
  assert validate(other, loaded) == before
