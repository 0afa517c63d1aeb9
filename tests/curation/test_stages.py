"""What the stages measure, on footage of which the truth is known."""

import dataclasses
import re

import numpy as np
import pytest

from d4s_jax.curation import duplicates, stages
from d4s_jax.curation.recording import small_copy
from d4s_jax.curation.sample import Sample
from d4s_jax.curation.stages import cuts, flow, moving, picture, reprojection, tracking
from tests.curation.footage import pan, texture
from tests.data.records import scene_record


def sample(frames):
  return Sample(images=np.round(np.asarray(frames) * 255).astype(np.uint8))


def blurred(frames, size):
  for _ in range(size):
    frames = (np.roll(frames, 1, 1) + np.roll(frames, -1, 1) + frames) / 3
    frames = (np.roll(frames, 1, 2) + np.roll(frames, -1, 2) + frames) / 3
  return frames


def test_blur_and_exposure():
  frames = pan(0, 5)
  sharp, soft = (picture.measure(sample(x)) for x in (frames, blurred(frames, 15)))
  assert sharp["sharpness"] > 0.05 and soft["sharpness"] < sharp["sharpness"] / 50
  assert picture.measure(sample(frames * 0.05))["dark"] > 0.9
  assert picture.measure(sample(frames * 0 + 1))["bright"] == 1
  assert picture.measure(sample(frames * 0 + 0.5))["contrast"] == 0


def test_a_cut_stands_out():
  one, other = (np.repeat(pan(seed, 1), 6, axis=0) for seed in (0, 1))
  assert cuts.measure(sample(one))["cut"] < 0.02
  assert cuts.measure(sample(np.concatenate([one, other])))["cut"] > 0.05


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (-5, 2), (1, -7)])
def test_blocks_move_as_the_picture_does(shift):
  whole = texture(3, 160, 220).mean(axis=-1)
  before = whole[20:140, 20:180]
  after = whole[20 - shift[1] : 140 - shift[1], 20 - shift[0] : 180 - shift[0]]
  center, moved = flow.block_flow(before, after)
  assert len(center) > 40
  np.testing.assert_allclose(np.median(moved, axis=0), shift, atol=0.2)
  assert np.median(flow.affine_residual(center, moved)) < 0.3


def test_cameras_that_only_tremble_are_rejected_where_nothing_else_has_a_length():
  """As structure from motion gives them for a tripod: positions are noise, in a unit of its own."""
  rng = np.random.default_rng(0)

  def reason(noise, **known):
    record = scene_record(0, "static", **{"metric": False, "depth": None, "tracks": None, **known})
    poses = np.array(record.world_from_camera)
    if noise:
      poses[:, :3, 3] = 3 * rng.normal(size=(len(poses), 3))
    figures = stages.measure(small_copy(dataclasses.replace(record, world_from_camera=poses)))
    mine = {name: value for name, value in figures.items() if name == "trembling"}
    return stages.judge(mine, stages.limits({}))

  assert re.fullmatch(r"trembling (0\.[6-9]\d*|1\.\d+) is above 0.5", reason(noise=True))
  assert reason(noise=False) == ""
  whole = scene_record(0, "static")
  for known in ({"metric": True}, {"depth": whole.depth}, {"tracks": whole.tracks}):
    assert reason(noise=True, **known) == ""


def test_a_camera_that_stands_still_is_told_from_one_that_pans():
  still = stages.measure(sample(np.repeat(pan(0, 1), 10, axis=0)))
  panning = stages.measure(sample(pan(0, 10)))
  limits = stages.limits({})
  assert stages.judge(still, limits).startswith("flow") and not stages.judge(panning, limits)
  np.testing.assert_allclose(panning["flow"], 3 / 128, rtol=0.2)


def test_depth_and_cameras_that_agree_are_told_from_those_that_do_not():
  record = scene_record()
  good = reprojection.measure(small_copy(record))["reprojection"]
  poses = np.array(record.world_from_camera)
  poses[:, :3, 3] *= -3
  wrong = dataclasses.replace(record, world_from_camera=poses)
  bad = reprojection.measure(small_copy(wrong))["reprojection"]
  assert good < 0.03 and bad > 5 * good
  assert reprojection.measure(small_copy(dataclasses.replace(record, depth=None))) == {}


def test_what_moves_is_masked():
  """On a scene whose moving solids are known: the mask finds them, and little of the rest."""
  record = scene_record(2, "dynamic")
  known = small_copy(record, every=True)
  assert known.moving is not None
  hidden = dataclasses.replace(known, moving=None)
  mask = moving.mask_of(hidden)
  # Of those, only what really moved between the frames that are compared can be found.
  inside, outside = mask[known.moving].mean(), mask[~known.moving].mean()
  assert inside > 3 * outside and outside < 0.1
  static = small_copy(scene_record(0, "static"), every=True)
  assert moving.mask_of(dataclasses.replace(static, moving=None)).mean() < 0.1


def test_tracks_that_jump_are_told_from_smooth_ones():
  record = scene_record(0, "dynamic")
  smooth = tracking.measure(small_copy(record))
  points = np.asarray(record.tracks.points)
  noise = np.random.default_rng(0).normal(0, 1.5, points.shape)
  jumping = dataclasses.replace(record.tracks, points=points + noise)
  rough = tracking.measure(small_copy(dataclasses.replace(record, tracks=jumping)))
  assert smooth["track_jerk"] < 0.1 < 0.2 < rough["track_jerk"]
  assert 0.02 < smooth["track_share"] == rough["track_share"]


def test_duplicates_survive_compression_and_small_changes():
  one, other = sample(pan(0)), sample(pan(1))
  seen = duplicates.Seen()
  seen.add("one", duplicates.hashes(one))
  noisy = np.clip(pan(0) * 0.95 + np.random.default_rng(0).normal(0, 0.01, pan(0).shape), 0, 1)
  like = seen.like(duplicates.hashes(sample(noisy)))
  assert like is not None and like[0] == "one"
  assert seen.like(duplicates.hashes(other)) is None
  assert duplicates.hashes(sample(pan(0) * 0 + 0.3)) == []


def test_the_first_of_many_clips_is_found_whatever_bits_differ():
  rng = np.random.default_rng(0)
  kept = rng.integers(2**63, size=(40_000, duplicates.HASHES)).tolist()
  seen = duplicates.Seen()
  for number, found in enumerate(kept):
    seen.add(str(number), found)
  seen.add("flat", [])
  for number in (0, 20_000, 39_999):
    spread = kept[number][0] ^ 0x0101010101010101
    assert seen.like([spread, *kept[number][1:]]) == (str(number), 8 / 3)
    # 18 bits of three hashes are within six each, 19 are not.
    near = [x ^ (2**6 - 1) for x in kept[number]]
    assert seen.like(near) == (str(number), 6.0)
    assert seen.like([near[0] ^ 2**40, *near[1:]]) is None
  seen.add("again", kept[5])
  assert seen.like(kept[5]) == ("5", 0.0)
  assert seen.like([]) is None


def test_limits_are_changed_by_name_and_judge_in_order():
  limits = stages.limits({"flow": ":0.5", "speed": "1:2"})
  assert limits["flow"] == (None, 0.5) and limits["speed"] == (1, 2)
  assert stages.judge({"flow": 0.0, "speed": 1.5}, limits) == ""
  assert stages.judge({"speed": 3.0}, limits) == "speed 3 is above 2"
  assert stages.judge({"speed": float("nan")}, limits).startswith("speed nan is below")
  wrong = ("1", "a:b", "nan:", "5:1")
  for changes in ({"flows": "1:"}, *({"flow": text} for text in wrong)):
    with pytest.raises(ValueError, match="has a limit|expected LEAST:MOST"):
      stages.limits(changes)
