"""Clips of shards: geometry after cutting, reversal and scaling; what is chosen, what is masked."""

import dataclasses
import json

import numpy as np
import pytest

from d4s_jax.data import sampling
from d4s_jax.data.record import CorruptRecord
from d4s_jax.data.recorded import Recorded
from d4s_jax.data.sampling import Augmentation
from d4s_jax.data.shards import MANIFEST, line, read_manifest, split
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Tracks
from tests.data.records import HEIGHT, WIDTH, entry, plain_record, scene_record, write_folder

SIZE = {"frames": 5, "height": 32, "width": 32, "views": 4, "tracks": 32}


@pytest.fixture(scope="module")
def scene():
  return scene_record()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scene):
  folder = tmp_path_factory.mktemp("shards")
  write_folder(folder, [scene])
  return folder


def draws(folder, count=6, **options):
  source = Recorded(folder, **{**SIZE, "augment": Augmentation(), **options})
  return [source.draw(0, np.random.default_rng(seed)) for seed in range(count)]


def test_without_augmentation_a_clip_is_the_record(folder, scene):
  clip = Recorded(folder, frames=17, height=HEIGHT, width=WIDTH, views=4, tracks=99).read(0)
  cameras = clip.source.cameras
  first = np.linalg.inv(scene.world_from_camera[0].astype(np.float64))
  np.testing.assert_allclose(cameras.world_from_camera, first @ scene.world_from_camera, atol=1e-5)
  np.testing.assert_allclose(cameras.intrinsics, scene.intrinsics, rtol=1e-6)
  np.testing.assert_allclose(clip.source.times, np.linspace(0, 1, 17), atol=1e-6)
  assert clip.text == scene.caption and clip.scale == 1 and not clip.dynamic
  valid = np.asarray(clip.tracks.valid)
  assert valid.shape == (99, 17) and not valid[64:].any() and valid[:50].any()


def test_cutting_reversing_and_scaling_keep_the_geometry(folder):
  """Pixels of one view, lifted by its depth, have the depth of every other view, where seen."""
  for distance in (0.0, 3.0):
    for clip in draws(folder, distance=distance):
      source = clip.source
      points = camera_geometry.unproject(source.depth[0], source.cameras[0]).reshape(1, -1, 3)
      errors = []
      for views in (source, clip.target):
        for index in range(len(views.times)):
          pixels, z = camera_geometry.project(points, views.cameras[index : index + 1])
          column, row = np.floor(pixels[0]).astype(int).T
          seen = (z[0] > 0) & (column >= 0) & (column < 32) & (row >= 0) & (row < 32)
          there = views.depth[index][row[seen], column[seen]]
          errors.append(np.abs(there / z[0][seen] - 1))
      errors = np.concatenate(errors)
      # Far cameras see much that the first one does not.
      assert len(errors) > 2000 and np.median(errors) < 0.03
      assert clip.scale == 1 if not distance else clip.scale > 0
      known = source.depth[source.depth > 0]
      if distance:
        assert abs(np.median(known) / distance - 1) < 1e-3
      np.testing.assert_allclose(source.cameras.world_from_camera[0], np.eye(4), atol=1e-6)
      assert np.all(np.diff(source.times) > 0) and source.times[0] == 0 and source.times[-1] == 1
      assert np.all((clip.target.times >= 0) & (clip.target.times <= 1))


def test_the_factor_turns_a_scaled_clip_back_into_metres(folder):
  metres, units = (draws(folder, 1, distance=distance)[0] for distance in (0.0, 2.5))
  scale = float(units.scale)
  np.testing.assert_allclose(units.source.depth * scale, metres.source.depth, rtol=1e-4)
  np.testing.assert_allclose(
    units.source.cameras.world_from_camera[:, :3, 3] * scale,
    metres.source.cameras.world_from_camera[:, :3, 3],
    atol=1e-5,
  )
  np.testing.assert_allclose(units.tracks.points * scale, metres.tracks.points, atol=1e-4)


def test_tracks_lie_on_the_surface_that_is_seen(folder):
  near = total = 0
  for clip in draws(folder):
    points = np.swapaxes(np.asarray(clip.tracks.points), 0, 1)
    pixels, z = camera_geometry.project(points, clip.source.cameras)
    column, row = np.floor(pixels).astype(int).transpose(2, 0, 1)
    inside = (column >= 0) & (column < 32) & (row >= 0) & (row < 32)
    frame, track = np.nonzero(np.asarray(clip.tracks.visible).T & inside)
    depth = clip.source.depth[frame, row[frame, track], column[frame, track]]
    near += np.sum(np.abs(depth / z[frame, track] - 1) < 0.05)
    total += len(frame)
  assert total > 200 and near > 0.9 * total


def test_strides_and_directions_vary_and_are_a_function_of_the_seed(folder, scene):
  rows = []
  for seed in range(40):
    rng = np.random.default_rng(seed)
    chosen = sampling.choose_frames(scene, 5, 4, rng, Augmentation())
    source, target = chosen.source, chosen.target
    assert len(set(np.diff(source))) == 1 and chosen.backwards == (source[1] < source[0])
    assert not set(source) & set(target) or abs(source[1] - source[0]) == 1
    rows.append(int(source[1] - source[0]))
    np.testing.assert_allclose(chosen.times, np.linspace(0, 1, 5), atol=1e-6)
  assert set(rows) == {-4, -3, -2, -1, 1, 2, 3, 4}
  for reverse in (0, 1):
    for seed in range(20):
      rng = np.random.default_rng(seed)
      how = Augmentation(reverse=reverse)
      assert sampling.choose_frames(scene, 5, 4, rng, how).backwards == bool(reverse)
  first, again = draws(folder, 2), draws(folder, 2)
  np.testing.assert_array_equal(first[1].source.images, again[1].source.images)
  assert not np.array_equal(first[0].source.images, first[1].source.images)


def test_strides_reach_as_far_as_suits_the_dataset(scene):
  """As far as the registry says; four frames where it knows nothing; as far as is asked for."""

  def most(name, **how):
    footage = dataclasses.replace(
      scene, name=name, view=np.zeros(300, np.int64), times=np.arange(300.0)
    )
    found = [
      sampling.choose_frames(footage, 5, 1, np.random.default_rng(x), Augmentation(**how)).source
      for x in range(200)
    ]
    return max(abs(int(x[1] - x[0])) for x in found)

  assert most("realestate10k/train/a/0-299") == 170 // 4
  assert most("virtual_kitti/Scene01/clone/0-299") == 17 // 4
  assert most("videos/a.mp4/0-299") == 4
  assert most("virtual_kitti/Scene01/clone/0-299", stride=9) == 9


def test_targets_come_from_other_cameras_too(scene):
  """Two cameras, the second half a second late: only what is in the span of time counts."""
  both = dataclasses.replace(
    scene,
    view=np.repeat([0, 1], [17, 17]),
    times=np.concatenate([scene.times, scene.times + 0.25]),
    images=[*scene.images, *scene.images],
  )
  other = 0
  for seed in range(20):
    rng = np.random.default_rng(seed)
    source, target, *_ = sampling.choose_frames(both, 5, 4, rng, Augmentation())
    assert len(set(both.view[source])) == 1
    span = np.sort(both.times[source])[[0, -1]]
    assert np.all((both.times[target] >= span[0]) & (both.times[target] <= span[1]))
    other += np.sum(both.view[target] != both.view[source[0]])
  assert other > 20


def test_what_a_record_lacks_is_masked(tmp_path):
  bare = plain_record("a/7", frames=9)
  write_folder(tmp_path, [bare])
  clip = Recorded(tmp_path, **SIZE).read(0)
  assert not clip.source.depth.any() and not clip.target.depth.any()
  assert not clip.tracks.valid.any() and not clip.tracks.visible.any()
  assert not clip.instances.any()
  assert abs(clip.source.images * 255 - 7).max() < 1
  unposed = dataclasses.replace(bare, intrinsics=None, world_from_camera=None)
  write_folder(tmp_path / "unposed", [unposed])
  with pytest.raises(ValueError, match="no metric posed clips"):
    Recorded(tmp_path / "unposed", **SIZE)
  clip = Recorded(tmp_path / "unposed", posed=False, **SIZE).read(0)
  np.testing.assert_array_equal(clip.source.cameras.world_from_camera[3], np.eye(4))


def test_clips_of_unknown_scale_need_a_distance(tmp_path, scene):
  write_folder(tmp_path, [dataclasses.replace(scene, metric=False)])
  with pytest.raises(ValueError, match="config.data.distance"):
    Recorded(tmp_path, **SIZE)
  assert Recorded(tmp_path, distance=2.0, **SIZE).read(0).scale == 0


def test_kinds_and_splits(tmp_path):
  several = [plain_record(f"a/{number}", dynamic=number % 3 == 0) for number in range(12)]
  write_folder(tmp_path, several, heldout=("a/3", "a/4"))
  counts = {
    (kind, split): len(Recorded(tmp_path, split, kind, **SIZE))
    for kind in ("static", "dynamic", "mixed")
    for split in ("train", "heldout")
  }
  assert counts == {
    **{("static", "train"): 7, ("static", "heldout"): 1},
    **{("dynamic", "train"): 3, ("dynamic", "heldout"): 1},
    **{("mixed", "train"): 10, ("mixed", "heldout"): 2},
  }
  with pytest.raises(ValueError, match="Unknown kind"):
    Recorded(tmp_path, kind="moving")
  with pytest.raises(ValueError, match="Unknown split"):
    Recorded(tmp_path, "test")


def test_groups_are_held_out_whole():
  entries = [
    dataclasses.replace(entry(plain_record(f"a/{i}"), "s", i, ""), group=f"place {i // 4}")
    for i in range(2000)
  ]
  heldout, train = split(entries, "heldout"), split(entries, "train")
  assert len(heldout) + len(train) == 2000
  assert not {x.group for x in heldout} & {x.group for x in train}
  assert 20 < len(heldout) < 140
  # Of a few groups, one; of one group, single clips; and there has to be something to train on.
  assert len(split(entries[:8], "heldout")) == 4
  one, others = split(entries[:4], "heldout"), split(entries[:4], "train")
  assert len(one) == 1 and len(others) == 3
  assert not split(entries[:1], "heldout")
  # Of many, a group stays on its side among others.
  fewer = {x.name for x in split(entries[400:], "heldout")}
  assert fewer == {x.name for x in heldout} & {x.name for x in entries[400:]} != set()
  # What a dataset holds out is all that is.
  entries[3] = dataclasses.replace(entries[3], split="heldout")
  assert split(entries, "heldout") == [entries[3]]


def test_a_single_film_is_trained_on_with_a_warning(tmp_path):
  films = [plain_record(f"film/{number}") for number in range(5)]
  write_folder(tmp_path, films)
  path = tmp_path / MANIFEST
  lines = [json.loads(one) for one in path.read_text().splitlines()]
  for one in lines:
    one["record"] |= {"split": "", "group": "film"}
  path.write_bytes(b"".join(line(one) for one in lines))
  assert len(Recorded(tmp_path, **SIZE)) == 4
  with pytest.warns(UserWarning, match="are of film: those that are held out look like"):
    assert len(Recorded(tmp_path, "heldout", **SIZE)) == 1


def test_buckets_share_the_records_out(tmp_path):
  shapes = [(5, 16, 16), (5, 16, 32), (9, 16, 32)]
  several = [
    plain_record("a/0", 5, 20, 20),
    plain_record("a/1", 5, 20, 40),
    plain_record("a/2", 12, 20, 36),
    plain_record("a/3", 4, 20, 20),
  ]
  write_folder(tmp_path, several)
  names = []
  for frames, height, width in shapes:
    source = Recorded(
      tmp_path, frames=frames, height=height, width=width, views=2, tracks=4, shapes=shapes
    )
    clips = [source.read(index) for index in range(len(source))]
    assert all(clip.source.images.shape == (frames, height, width, 3) for clip in clips)
    names.append([clip.text for clip in clips])
  assert names == [["clip 0"], ["clip 1"], ["clip 2"]]


def test_a_changed_byte_names_file_and_row(tmp_path):
  write_folder(tmp_path, [plain_record(f"a/{number}", 5, 64, 64) for number in range(3)])
  path = tmp_path / "shard-00000.array_record"
  contents = bytearray(path.read_bytes())
  contents[contents.find(b"a/1") + 300] ^= 1
  path.write_bytes(contents)
  source = Recorded(tmp_path, **SIZE)
  source.read(0)
  with pytest.raises(CorruptRecord, match="shard-00000.array_record, record 1"):
    source.read(1)
  path.unlink()
  with pytest.raises(CorruptRecord, match="no such file; copy shard-00000"):
    Recorded(tmp_path, **SIZE).read(0)


MANIFESTS = {
  "no JSON": (b"{\n", "line 1: not valid JSON"),
  "fields": (b'{"record": {"shard": "a"}}\n', "line 1: missing row"),
  "climbs": (None, "no plain name"),
  "twice": (None, "a second clip 'a/0'"),
}


@pytest.mark.parametrize("contents, message", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_none_is_refused(contents, message, tmp_path):
  write_folder(tmp_path, [plain_record("a/0")])
  path = tmp_path / MANIFEST
  good = path.read_bytes()
  if contents is None:
    climbing = good.replace(b"shard-00000", b"../shard-00000")
    contents = climbing if "plain" in message else good + good
  path.write_bytes(contents)
  with pytest.raises(ValueError, match=message):
    read_manifest(tmp_path)


def test_tracks_without_two_known_frames_are_left_out():
  valid = np.zeros((3, 4), bool)
  valid[0], valid[1, 2] = True, True
  valid[2, :2] = True
  points = np.arange(36, dtype=np.float32).reshape(3, 4, 3)
  some = Tracks(
    points=points[:, [0, 2, 3]], **{x: valid[:, [0, 2, 3]] for x in ("visible", "valid")}
  )
  capped = sampling.cap_tracks(some, 2, 3, np.random.default_rng(0))
  np.testing.assert_array_equal(capped.points[0], points[0, [0, 2, 3]])
  assert capped.valid.sum() == 3 and not capped.points[1].any()
