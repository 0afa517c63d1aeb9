"""Scales of clips through the pipeline: by height, baseline, lengths, depth maps and matches."""

import dataclasses
import re

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
  chosen = {kind: f"files:{folder}" for kind in kinds}
  settings = Settings(plugins=chosen, **{"limits": OPEN, **more})
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
  # Beside a dataset's metres it is a network's still: not held against itself as their own depth.
  metres = dataclasses.replace(truth, tracks=None, depth=None)
  told, found = decided(tmp_path, metres, ["depth", "matches"], baseline=baseline)
  assert told["metres"] == "dataset" and found.depth is not None
  assert "own_depth" not in told["figures"] and "depth_scale" in told["figures"]
  assert told["notes"] == ["scale not checked: the dataset has no depth to hold against its poses."]
  # Where tracks know better, a wrong baseline is noticed.
  tracks = dataclasses.replace(truth, depth=None)
  limits = {**OPEN, "own_scale": "0.8:1.25"}
  for factor, reason in ((1, ""), (2, "own_scale .* is above 1.25")):
    wrong = factor * baseline
    told, _ = decided(tmp_path, tracks, ["depth", "matches"], baseline=wrong, limits=limits)
    assert told["metres"] == "dataset" and abs(told["figures"]["own_scale"] / factor - 1) < 0.05
    assert re.fullmatch(reason, told.get("reason", ""))


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


def test_depth_of_a_dataset_is_not_replaced_by_a_networks(tmp_path, truth):
  """Also where nothing could scale the network's, which would then leave the clip without any."""
  for tracks in (truth.tracks, None):
    own = dataclasses.replace(truth, tracks=tracks)
    told, found = decided(tmp_path, own, ["depth"])  # nothing lies there: it isn't asked
    assert found is not None and found.depth == truth.depth
    assert told["notes"] == ["depth is the dataset's own; the plug-in was not asked."]
    assert ("own_scale" if tracks else "own_depth") in told["figures"]
  told, _ = decided(tmp_path, own, [])
  assert "notes" not in told


def test_depth_of_a_dataset_is_held_against_its_own_tracks(truth):
  """A dataset whose depth is in other units than its poses is rejected, and so is its scatter."""
  own = {name: ends for name, ends in OPEN.items() if name != "own_scale"}
  told, found = decided(None, truth, [], limits=own)
  assert told["metres"] == "dataset" and abs(told["figures"]["own_scale"] - 1) < 0.02
  assert found is not None and found.depth is not None
  depth = [records.read_depth(x, (truth.height, truth.width)) for x in truth.depth]
  for factor, side in ((1.4, "above 1.25"), (0.7, "below 0.8")):
    files = [records.to_depth_png(factor * x) for x in depth]
    other = dataclasses.replace(truth, depth=files)
    told, found = decided(None, other, [], limits=own)
    assert abs(told["figures"]["own_scale"] / factor - 1) < 0.02
    assert found is None and re.fullmatch(f"own_scale .* is {side}", told["reason"])
    # As with all limits, a user may think otherwise.
    told, found = decided(None, other, [], limits={**own, "own_scale": "0.6:1.5"})
    assert told["kept"] and found.depth is not None
  factors = np.exp(np.random.default_rng(0).normal(0, 0.15, FRAMES))
  scattered = [records.to_depth_png(x * factor) for x, factor in zip(depth, factors)]
  told, found = decided(None, dataclasses.replace(truth, depth=scattered), [])
  assert found is None and told["reason"].startswith("own_scale_variation")


def test_depth_without_tracks_is_held_against_later_frames(truth):
  """As of TartanAir, MatrixCity, Spring and Virtual KITTI."""
  own = {name: ends for name, ends in OPEN.items() if not name.startswith("own_")}
  bare = dataclasses.replace(truth, tracks=None)
  told, found = decided(None, bare, [], limits=own)
  assert (
    told["metres"] == "dataset" and found.depth is not None and "own_scale" not in told["figures"]
  )
  assert abs(told["figures"]["own_depth"] - 1) < 0.02
  assert told["figures"]["own_depth_variation"] < 0.02
  assert told["figures"]["own_depth_anchors"] > 500
  depth = [records.read_depth(x, (truth.height, truth.width)) for x in truth.depth]

  def scaled(factors):
    files = [records.to_depth_png(x * factor) for x, factor in zip(depth, factors)]
    return dataclasses.replace(bare, depth=files)

  # A scale of its own in each frame, as networks give.
  scattered = scaled(np.exp(np.random.default_rng(0).normal(0, 0.15, FRAMES)))
  told, found = decided(None, scattered, [], limits=own)
  assert found is None and re.fullmatch(r"own_depth_variation .* is above 0\.05", told["reason"])
  # One that drifts: from frame to frame by the same.
  for drift, side in ((1.05, "above 1.25"), (0.95, "below 0.8")):
    told, found = decided(None, scaled(drift ** np.arange(FRAMES)), [], limits=own)
    assert found is None and re.fullmatch(f"own_depth .* is {side}", told["reason"])
    assert told["figures"]["own_depth_variation"] < 0.05
  # Poses that are turned about make two scales of one: no estimate, and a note that says so.
  turned = np.linalg.inv(truth.world_from_camera).astype(np.float32)
  told, found = decided(None, dataclasses.replace(bare, world_from_camera=turned), [], limits=own)
  assert found is not None and "own_depth" not in told["figures"]
  (note,) = told["notes"]
  assert re.fullmatch("scale not checked: .* agree with one scale and .* with another; .*", note)
  # Cameras alone can't be held against anything, and that is said.
  told, found = decided(None, dataclasses.replace(bare, depth=None), [], limits=own)
  assert found is not None and told["notes"] == [
    "scale not checked: the dataset has no depth to hold against its poses."
  ]


@pytest.mark.parametrize("points", ["tracks of the dataset", "a tracker", "none"])
def test_a_networks_metric_depth_is_scaled_to_poses_that_are_metres(tmp_path, truth, points):
  """Depth that is 1.5 times off, beside true poses: as MultiCamVideo's and Stereo4D's."""
  pixels, visible, depth = tracked(truth)
  write(tmp_path, depth=1.5 * depth, pixels=pixels, visible=visible)
  tracks = truth.tracks if points == "tracks of the dataset" else None
  kinds = ["depth", "tracks"] if points == "a tracker" else ["depth"]
  told, found = decided(tmp_path, dataclasses.replace(truth, tracks=tracks, depth=None), kinds)
  assert told["metres"] == "dataset" and found.metric and "own_scale" not in told["figures"]
  np.testing.assert_array_equal(found.world_from_camera, truth.world_from_camera)
  if points == "none":
    assert found.depth is None and told["notes"] == [
      "depth is left out: no points of structure from motion and no tracks; expected one of them."
    ]
    return
  assert abs(1.5 * told["figures"]["depth_scale"] - 1) < 0.02
  assert told["figures"]["depth_scale_variation"] < 0.05
  for index in (0, FRAMES - 1):
    back, there = records.read_depth(found.depth[index], depth[0].shape), depth[index]
    known = (there > 0) & (back > 0)
    assert known.mean() > 0.5
    assert np.median(np.abs(back[known] / there[known] - 1)) < 0.02
  # How far off a network may be is for the user to say.
  told, found = decided(
    tmp_path,
    dataclasses.replace(truth, tracks=tracks, depth=None),
    kinds,
    limits={**OPEN, "depth_scale": "0.8:1.25"},
  )
  assert found is None and re.fullmatch("depth_scale .* is below 0.8", told["reason"])


def test_metric_depth_yields_to_a_better_scale_of_poses(tmp_path, truth):
  """Lengths come before depth maps: the poses' metres are theirs, and depth follows."""
  pixels, visible, depth = tracked(truth)
  metres = np.random.default_rng(0).uniform(0.3, 2, 60)
  ends = np.stack([np.zeros((60, 3)), np.array([1.0, 0, 0]) * metres[:, None] / UNIT], 1)
  write(
    tmp_path,
    **{"depth": 1.5 * depth, "pixels": pixels, "visible": visible},
    **{"ends": ends, "metres": metres, "objects": np.arange(60)},
  )
  told, found = decided(tmp_path, relative(truth), ["depth", "tracks", "lengths"])
  check_poses(told, found, truth)
  assert told["metres"] == "lengths" and abs(1.5 * told["figures"]["depth_scale"] - 1) < 0.02
  back, there = records.read_depth(found.depth[0], depth[0].shape), depth[0]
  known = (there > 0) & (back > 0)
  assert np.median(np.abs(back[known] / there[known] - 1)) < 0.02


def test_lengths_that_cannot_be_are_refused():
  for bad in ("height=-1", "baseline=nan", "height=tall"):
    with pytest.raises(ValueError, match="height|baseline"):
      parse([bad], [], [])
  with pytest.raises(ValueError, match="expected metres"):
    Settings(height=float("inf")).check()
