"""Datasets as sources of clips."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest

from d4s_jax.data.datasets.scene import Dataset
from d4s_jax.data.datasets.windows import Windows, split_names
from d4s_jax.data.record import CorruptRecord
from d4s_jax.data.source import Mixture, open_source
from d4s_jax.geometry import cameras as camera_geometry
from tests.data.datasets.world import paint
from tests.data.datasets.writers import multicamvideo, pointodyssey, tartanair, virtual_kitti

SIZE = {"frames": 5, "height": 48, "width": 48, "views": 3, "tracks": 12}


@pytest.fixture(scope="module")
def odyssey(tmp_path_factory):
  return pointodyssey.write(tmp_path_factory.mktemp("odyssey"), frames=9)


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
  root = tmp_path_factory.mktemp("kitti")
  virtual_kitti.write(root, "Scene20/clone", numbers=range(6), apart=False)
  return virtual_kitti.write(root, "Scene01/clone", numbers=range(8), apart=False)


def test_a_clip_shows_the_world_as_its_cameras_say(odyssey):
  source = Windows("pointodyssey", str(odyssey.root), **SIZE)
  for index in range(4):
    clip = source.read(index)
    np.testing.assert_allclose(clip.source.cameras.world_from_camera[0], np.eye(4), atol=1e-6)
    assert clip.source.times[0] == 0 and clip.source.times[-1] == 1
    assert bool(clip.dynamic) and clip.text == ""
    # The first camera, in the dataset's world, tells where the clip's world lies in it.
    first = _first(odyssey, clip)
    for views in (clip.source, clip.target):
      points = camera_geometry.unproject(views.depth, views.cameras)
      true = points @ first[:3, :3].T + first[:3, 3]
      # The middle of the picture shows a wall, whose colour is known of its place.
      wall = (np.asarray(clip.source.depth).max() > 0) & (views.depth > 4)
      away = np.abs(views.images - paint(true))[wall]
      assert wall.mean() > 0.3 and away.mean() < 0.03


def test_scenes_are_told_from_others_wherever_they_lie(kitti, tmp_path):
  def differ(**options):
    now = Windows("virtual_kitti", str(tmp_path / "moved"), **SIZE, **options).contents()
    return [name for name in told if now[name] != told[name]]

  told = Windows("virtual_kitti", str(kitti.root), **SIZE).contents()
  shutil.copytree(kitti.root, tmp_path / "moved")
  assert differ() == []
  assert differ(distance=1.0) == ["distance"]
  pictures = sorted((tmp_path / "moved").glob("Scene01/clone/frames/rgb/Camera_0/*"))
  kept = pictures[0].read_bytes()
  shutil.copy(pictures[3], pictures[0])
  assert differ() == ["hash of three scenes"]
  pictures[0].write_bytes(kept)
  assert differ() == []
  pictures[-1].unlink()
  assert differ() == ["hash of three scenes"]


def _first(written, clip):
  """Pose of the eye whose picture a clip begins with."""
  for number, one in written.eyes["camera"].items():
    colors = written.seen("camera", number)[0]
    left = (written.width - written.height) // 2
    square = colors[:, left : left + written.height]
    shrunk = square[:, : 2 * (written.height // 2)]
    rows = ((np.arange(48) + 0.5) * written.height / 48).astype(int)
    if np.abs(shrunk[np.ix_(rows, rows)] - clip.source.images[0]).mean() < 0.02:
      return np.column_stack([one.right, one.down, one.forward, one.center])
  raise AssertionError("no such frame")


def test_tracks_lie_on_what_is_seen(odyssey):
  clip = Windows("pointodyssey", str(odyssey.root), **SIZE).read(1)
  tracks = clip.tracks
  assert tracks.points.shape == (12, 5, 3) and tracks.valid.dtype == bool
  assert tracks.visible.any() and (tracks.visible <= tracks.valid).all()
  assert not tracks.points[~np.asarray(tracks.valid)].any()
  for frame in range(5):
    points = np.asarray(tracks.points)[np.asarray(tracks.visible)[:, frame], frame]
    pixels, far = camera_geometry.project(points, clip.source.cameras[frame])
    inside = ((pixels > 0) & (pixels < 48)).all(-1)
    column, row = pixels[inside].astype(int).T
    stated = clip.source.depth[frame][row, column]
    np.testing.assert_allclose(far[inside], stated, rtol=0.05)


def test_targets_come_from_all_cameras_at_moments_of_the_clip(tmp_path):
  written = multicamvideo.write(tmp_path)
  source = Windows("multicamvideo", str(written.root), **SIZE | {"views": 8})
  clip = source.read(0)
  assert clip.target.images.shape == (8, 48, 48, 3)
  assert (clip.target.times >= 0).all() and (clip.target.times <= 1).all()
  clips = [source.read(index) for index in range(6)]
  places = np.stack([x.target.cameras.world_from_camera[:, :3, 3] for x in clips])
  away = np.linalg.norm(places, axis=-1)
  # Cameras stand half a metre apart, and go 55 cm.
  assert away.max() > 0.9 and not clip.source.depth.any()


def test_targets_are_not_source_frames_where_there_are_others(kitti, odyssey):
  def repeated(dataset, root, index):
    clip = Windows(dataset, str(root), **SIZE).read(index)
    away = np.abs(clip.target.images[:, None] - clip.source.images[None]).max((2, 3, 4))
    return bool((away.min(1) == 0).any())

  # The other camera has others at every stride.
  assert not any(repeated("virtual_kitti", kitti.root, index) for index in range(6))
  # Nine frames of one camera, five at strides of 1 or 2: between those of 2 there are others.
  found = {repeated("pointodyssey", odyssey.root, index) for index in range(8)}
  assert found == {True, False}


def test_a_clip_depends_on_its_index_alone_and_travels_to_workers(kitti):
  source = Windows("virtual_kitti", str(kitti.root), **SIZE)
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(source.read(3).source.images, again.read(3).source.images)
  assert not np.array_equal(source.read(3).source.images, source.read(4).source.images)
  with pytest.raises(IndexError, match="Clip 100000"):
    source.read(100_000)


def test_instances_are_numbered_from_one(kitti):
  source = Windows("virtual_kitti", str(kitti.root), **SIZE)
  clips = [source.read(index) for index in range(3)]
  assert {int(clip.instances.max()) for clip in clips} == {1}
  assert all(clip.instances.dtype == np.int32 for clip in clips)


def test_splits_are_the_datasets_own_or_every_tenth_place(kitti, tmp_path):
  names = {
    split: Windows("virtual_kitti", str(kitti.root), split, **SIZE)._names
    for split in ("train", "heldout")
  }
  assert names == {"train": ["Scene01/clone"], "heldout": ["Scene20/clone"]}

  class Places(Dataset):
    def _find(self):
      return [f"{place:02d}/{part}" for place in range(25) for part in "ab"]

    def open(self, name):
      raise AssertionError(name)

    def group(self, name):
      return name[:2]

  places = Places(tmp_path)
  held = split_names(places, "heldout")
  assert held == ["09/a", "09/b", "19/a", "19/b"]
  assert sorted(held + split_names(places, "train")) == places.names
  places.names = places.names[:6]
  assert split_names(places, "heldout") == ["02/a", "02/b"]
  places.names = places.names[:2]
  with pytest.warns(UserWarning, match="are of 00: those that are held out look like"):
    assert split_names(places, "heldout") == ["00/b"]
  assert split_names(places, "train") == ["00/a"]
  places.names = places.names[:1]
  with pytest.raises(ValueError, match="has no scenes of the split 'heldout' among 1"):
    split_names(places, "heldout")


def test_of_a_part_for_training_alone_scenes_are_held_out_all_the_same(tmp_path):
  class Part(Dataset):
    held = ""

    def _find(self):
      return [f"{number:02d}" for number in range(12)]

    def open(self, name):
      raise AssertionError(name)

    def official(self, name):
      return "heldout" if name == self.held else "train"

  part = Part(tmp_path)
  assert split_names(part, "heldout") == ["09"]
  assert len(split_names(part, "train")) == 11
  part.held = "03"
  assert split_names(part, "heldout") == ["03"]


def test_training_opens_it_by_name(odyssey, kitti):
  mixed = open_source(
    f"synthetic,pointodyssey:{odyssey.root},virtual_kitti:{kitti.root}", length=2, **SIZE
  )
  assert isinstance(mixed, Mixture) and len(mixed) == 6
  shapes = [np.shape(mixed.read(index).target.depth) for index in range(3)]
  assert shapes == [(3, 48, 48)] * 3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "static"}, "Virtual KITTI 2 has scenes of kind 'dynamic'; expected it instead of 's"),
    ({"frames": 4}, "4 frames"),
    ({"frames": 21}, "None of 1 scenes .* has 21 frames"),
    ({"split": "test"}, "Unknown split 'test'"),
    ({"views": 0}, "0 views"),
    ({"path": "nowhere"}, "No folder at nowhere"),
  ],
)
def test_bad_input_is_named(kitti, change, message):
  with pytest.raises((ValueError, OSError), match=message):
    Windows(**{"dataset": "virtual_kitti", "path": str(kitti.root), **SIZE, **change}).read(0)


def test_one_scene_among_many_that_are_too_short_is_found(kitti, monkeypatch):
  windows, again = (Windows("virtual_kitti", str(kitti.root), **SIZE, length=4) for _ in range(2))
  (name,), opened = windows._names, []
  expected = [windows.read(index) for index in range(4)]
  scene = windows._dataset.open(name)
  first = scene.views[0]
  one = dataclasses.replace(
    first, numbers=first.numbers[:1], times=first.times[:1], cameras=first.cameras[:1]
  )

  def read(name):
    opened.append(name)
    return scene if name == "long" else dataclasses.replace(scene, views=(one,))

  monkeypatch.setattr(again, "_names", [*(f"{number:03d}" for number in range(300)), "long"])
  monkeypatch.setattr(again._dataset, "open", read)
  for index in range(4):
    np.testing.assert_array_equal(again.read(index).source.images, expected[index].source.images)
  # Each of the others once.
  assert len(set(opened)) > 200 and len(opened) == len(set(opened)) + 3


def test_a_damaged_file_is_a_corrupt_record(kitti, monkeypatch):
  """Which the loader skips and counts."""
  windows = Windows("virtual_kitti", str(kitti.root), **SIZE)

  def damaged(name):
    raise OSError("No file at depth_00000.png")

  monkeypatch.setattr(windows._dataset, "open", damaged)
  with pytest.raises(CorruptRecord, match="Clip 0, scene .*: No file at depth_00000.png"):
    windows.read(0)


def test_another_dataset_is_told_where_to_be_had(kitti, tmp_path):
  tartanair.write(tmp_path, frames=1)
  with pytest.raises(
    ValueError, match="expected Virtual KITTI 2. .* from https://europe.naverlabs"
  ):
    Windows("virtual_kitti", str(tmp_path), **SIZE)
  with pytest.raises(ValueError, match="Unknown data source 'kitti'"):
    open_source(f"kitti:{tmp_path}", **SIZE)
