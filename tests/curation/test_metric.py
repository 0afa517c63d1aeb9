"""Scales of clips through the pipeline: by height, baseline, lengths, depth maps and matches."""

import dataclasses

import numpy as np
import pytest

from d4s_jax.curation import stages
from d4s_jax.curation.recording import cameras_of
from d4s_jax.curation.settings import Settings, parse
from d4s_jax.data import record as records
from tests.curation.rows import assess, estimators, row, tracked
from tests.curation.test_anchors import street, walk
from tests.data.records import FRAMES, scene_record

UNIT = 0.3
OPEN = {name: ":" for name in stages.limits({}) if not name.endswith("variation")}


@pytest.fixture(scope="module")
def truth():
  return scene_record(3)


def relative(record, **changes):
  """The same clip in a unit of UNIT metres."""
  poses = np.array(record.world_from_camera)
  poses[:, :3, 3] /= UNIT
  bare = {"metric": False, "depth": None, "tracks": None, **changes}
  return dataclasses.replace(record, world_from_camera=poses, **bare)


def write(folder, **arrays):
  """Results of all plug-ins for a.mp4, of which the clip is frames 3 to 19."""
  (folder / "videos").mkdir(exist_ok=True)
  padded = {
    name: np.concatenate([x[:3], x]) if len(x) == FRAMES else x for name, x in arrays.items()
  }
  np.savez(folder / "videos" / "a.mp4.npz", **padded)


def decided(folder, record, kinds, **more):
  """The manifest's line and the record of a clip."""
  settings = Settings(plugins={kind: f"files:{folder}" for kind in kinds}, limits=OPEN, **more)
  (made,) = estimators(settings)([row(record)]) if kinds else [row(record)]
  assert not made["failed"], made["failed"]
  done = assess(made, settings)
  return done["told"], records.decode(done["record"]) if done["record"] else None


def check_poses(told, found, truth):
  assert found is not None, told
  assert found.metric and abs(told["figures"]["scale"] / UNIT - 1) < 0.02
  assert told["figures"]["scale_variation"] < 0.05
  np.testing.assert_allclose(
    found.world_from_camera[:, :3, 3],
    truth.world_from_camera[:, :3, 3],
    rtol=0.03,
    atol=0.01,
  )


def test_the_height_of_the_camera_scales_a_walk(tmp_path, truth):
  """As a user gives it: --set=height=1.6 and a plug-in for cameras and points."""
  cameras = walk(FRAMES, unit=UNIT)
  points = street(np.random.default_rng(0), UNIT)
  write(
    tmp_path,
    world_from_camera=cameras.world_from_camera,
    intrinsics=cameras.intrinsics,
    points=points,
    visible=np.ones((FRAMES, len(points)), bool),
  )
  bare = dataclasses.replace(relative(truth), world_from_camera=None, intrinsics=None)
  settings, _ = parse(["height=1.6"], [], [])
  told, found = decided(tmp_path, bare, ["cameras"], height=settings.height)
  metres = dataclasses.replace(truth, world_from_camera=walk(FRAMES).world_from_camera)
  check_poses(told, found, metres)
  assert told["metres"] == "height"
  # Without the height there is nothing to go by, and without points the height says nothing.
  told, found = decided(tmp_path, bare, ["cameras"])
  assert told["metres"] == "unknown" and not found.metric and "scale" not in told["figures"]
  told, _ = decided(tmp_path, relative(truth), [], height=1.6)
  assert told["metres"] == "unknown" and "no scale by height: no points" in told["notes"][0]


def test_the_baseline_of_a_rig_scales_both_its_cameras(tmp_path, truth):
  beside = np.array(truth.world_from_camera, np.float64)
  beside[:, :3, 3] += 0.12 * beside[:, :3, 0]
  beside[4] = np.nan
  poses = np.array(truth.world_from_camera)
  poses[:, :3, 3] /= UNIT
  second = beside.copy()
  second[:, :3, 3] /= UNIT
  write(tmp_path, world_from_camera=poses, intrinsics=np.asarray(truth.intrinsics), second=second)
  told, found = decided(tmp_path, relative(truth), ["cameras"], baseline=0.12)
  check_poses(told, found, truth)
  assert told["metres"] == "baseline" and told["figures"]["scale_anchors"] == FRAMES - 1
  # A dataset's own second view is as good; and stays, in metres.
  both = dataclasses.replace(
    truth,
    view=np.repeat([0, 1], FRAMES),
    times=np.tile(truth.times, 2),
    images=[*truth.images, *truth.images],
    world_from_camera=np.concatenate([truth.world_from_camera, np.nan_to_num(beside)]).astype("f4"),
    intrinsics=np.tile(truth.intrinsics, (2, 1, 1)),
    instances=None,
  )
  both.world_from_camera[FRAMES + 4] = both.world_from_camera[FRAMES + 3]
  told, found = decided(tmp_path, relative(both), [], baseline=0.12)
  assert told["metres"] == "baseline" and abs(told["figures"]["scale"] / UNIT - 1) < 0.02
  np.testing.assert_allclose(
    found.world_from_camera[:, :3, 3], both.world_from_camera[:, :3, 3], rtol=0.03, atol=0.01
  )


def test_lengths_of_things_scale_poses(tmp_path, truth):
  rng = np.random.default_rng(0)
  metres = rng.uniform(0.3, 2, 60)
  start, along = rng.normal(size=(2, 60, 3))
  along /= np.linalg.norm(along, axis=1, keepdims=True)
  ends = np.stack([start, start + along * metres[:, None]], 1) / UNIT
  write(tmp_path, ends=ends, metres=metres, objects=np.arange(60) // 6)
  told, found = decided(tmp_path, relative(truth), ["lengths"])
  check_poses(told, found, truth)
  assert told["metres"] == "lengths"


@pytest.mark.parametrize("kind", ["relative", "disparity"])
def test_relative_depth_is_anchored_to_points_of_the_metric_world(tmp_path, truth, kind):
  """Poses by lengths, points by a tracker, depth by a network that knows no metres."""
  pixels, visible, depth = tracked(truth)
  rng = np.random.default_rng(0)
  metres = rng.uniform(0.3, 2, 60)
  ends = np.stack([np.zeros((60, 3)), np.array([1.0, 0, 0]) * metres[:, None] / UNIT], 1)
  with np.errstate(divide="ignore"):
    stated = depth / 7.3 if kind == "relative" else np.where(depth > 0, 5 / depth + 0.2, 0)
  write(
    tmp_path,
    **{kind: stated, "pixels": pixels, "visible": visible},
    **{"ends": ends, "metres": metres, "objects": np.arange(60)},
  )
  told, found = decided(tmp_path, relative(truth), ["depth", "tracks", "lengths"])
  check_poses(told, found, truth)
  assert told["figures"]["depth_scale_variation"] < 0.05
  size = (found.height, found.width)
  for index in (0, FRAMES - 1):
    back, there = records.read_depth(found.depth[index], size), depth[index]
    known = (there > 0) & (back > 0)
    assert known.mean() > 0.5
    assert np.median(np.abs(back[known] / there[known] - 1)) < 0.02
  assert found.tracks is not None
  # Poses of unknown scale leave nothing to anchor it to.
  told, found = decided(tmp_path, relative(truth), ["depth", "tracks"])
  assert found.depth is None and "depth is left out: the scale of its poses" in told["notes"][-1]


def test_matches_of_a_stereo_pair_scale_depth_and_then_poses(tmp_path, truth):
  pixels, visible, depth = tracked(truth)
  cameras = cameras_of(truth, slice(None))
  focal, baseline = float(cameras.intrinsics[0, 0, 0]), 0.5
  frame, track = np.nonzero(visible)
  left = pixels[frame, track]
  column, line = np.floor(left).astype(int).T
  shift = focal * baseline / depth[frame, line, column]
  # The right picture's centre is three pixels further right.
  right = left - np.stack([shift - 3, np.zeros_like(shift)], 1)
  write(
    tmp_path,
    **{"relative": depth / 7.3, "pixels": pixels, "visible": visible},
    **{"frame": frame + 3, "left": left, "right": right, "offset": np.full(len(left), 3.0)},
  )
  kinds = ["depth", "tracks", "matches"]
  told, found = decided(tmp_path, relative(truth), kinds, baseline=baseline)
  assert told["metres"] == "depth maps", told
  check_poses(told, found, truth)
  assert found.depth is not None and told["figures"]["depth_scale_variation"] < 0.05


def test_depth_of_a_dataset_stays_its_own_beside_matches(tmp_path, truth):
  """It is in the unit of the poses, and scaled with them; matches are for depth of a network."""
  size = (truth.height, truth.width)
  depth = np.stack([records.read_depth(x, size) for x in truth.depth])
  rng = np.random.default_rng(0)
  metres = rng.uniform(0.3, 2, 60)
  ends = np.stack([np.zeros((60, 3)), np.array([1.0, 0, 0]) * metres[:, None] / UNIT], 1)
  write(
    tmp_path,
    **{"ends": ends, "metres": metres, "objects": np.arange(60)},
    **{"frame": np.array([3]), "left": np.ones((1, 2)), "right": np.zeros((1, 2))},
  )
  own = relative(truth, depth=[records.to_depth_png(x / UNIT) for x in depth])
  told, found = decided(tmp_path, own, ["lengths", "matches"])
  check_poses(told, found, truth)
  back, there = records.read_depth(found.depth[0], size), depth[0]
  known = (there > 0) & (back > 0)
  assert known.any() and abs(np.median(back[known] / there[known]) - 1) < 0.02
  # Of unknown scale, both stay as they are, and agree.
  told, found = decided(tmp_path, own, ["matches"])
  assert told["metres"] == "unknown" and found.depth is not None


def test_depth_of_a_dataset_is_held_against_its_own_tracks(truth):
  """A dataset whose depth is in other units than its poses is seen, and its scatter rejected."""
  told, _ = decided(None, truth, [])
  assert told["metres"] == "dataset" and abs(told["figures"]["scale"] - 1) < 0.02
  depth = [records.read_depth(x, (truth.height, truth.width)) for x in truth.depth]
  double = dataclasses.replace(truth, depth=[records.to_depth_png(2 * x) for x in depth])
  told, _ = decided(None, double, [])
  assert abs(told["figures"]["scale"] - 2) < 0.04
  factors = np.exp(np.random.default_rng(0).normal(0, 0.15, FRAMES))
  scattered = [records.to_depth_png(x * factor) for x, factor in zip(depth, factors)]
  told, found = decided(None, dataclasses.replace(truth, depth=scattered), [])
  assert found is None and told["reason"].startswith("scale_variation")


def test_lengths_that_cannot_be_are_refused():
  for bad in ("height=-1", "baseline=nan", "height=tall"):
    with pytest.raises(ValueError, match="height|baseline"):
      parse([bad], [], [])
  with pytest.raises(ValueError, match="expected metres"):
    Settings(height=float("inf")).check()
