"""Clips cut out of scenes of datasets and of records alike: backwards, cropped, scaled."""

import dataclasses

import numpy as np
import pytest

from d4s_jax.data import sampling
from d4s_jax.data.cutting import BACKWARDS
from d4s_jax.data.datasets.windows import Windows
from d4s_jax.data.recorded import Recorded
from d4s_jax.data.sampling import Augmentation, NoLength
from d4s_jax.data.source import open_source
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Tracks
from tests.data.datasets.writers import pointodyssey, realestate10k, virtual_kitti
from tests.data.records import scene_record, write_folder

SIZE = {"frames": 5, "height": 32, "width": 32, "views": 4, "tracks": 16}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """A moving scene as a record, and as a dataset."""
  base = tmp_path_factory.mktemp("moving")
  write_folder(base / "shards", [scene_record(0, "dynamic")])
  return {"shards": base / "shards", "odyssey": pointodyssey.write(base / "odyssey", frames=9).root}


def opened(places, name, **how):
  augment = Augmentation(**how)
  if name == "shards":
    return Recorded(places[name], **SIZE, augment=augment)
  return Windows("pointodyssey", places[name], **SIZE, augment=augment)


@pytest.mark.parametrize("name", ["shards", "odyssey"])
def test_backwards_everything_is_the_other_way_round(places, name):
  """Frames, times, tracks and so velocities; the world is that of the camera that is now first."""
  for seed in range(4):
    clips = [
      opened(places, name, reverse=reverse).draw(0, np.random.default_rng(seed))
      for reverse in (0, 1)
    ]
    forth, back = clips
    assert bool(forth.dynamic) and bool(back.dynamic)
    np.testing.assert_array_equal(back.source.images, forth.source.images[::-1])
    np.testing.assert_array_equal(back.source.depth, forth.source.depth[::-1])
    np.testing.assert_allclose(back.source.times, 1 - forth.source.times[::-1], atol=1e-6)
    assert np.all(np.diff(back.source.times) > 0) and np.all(np.diff(back.target.times) >= 0)
    np.testing.assert_allclose(
      np.sort(back.target.times), np.sort(1 - forth.target.times), atol=1e-6
    )
    np.testing.assert_array_equal(back.instances > 0, forth.instances[::-1] > 0)
    for flag in ("valid", "visible"):
      there, here = (getattr(x.tracks, flag) for x in clips)
      np.testing.assert_array_equal(here, there[:, ::-1])
    # A motion from the world of one clip into that of the other turns velocities too.
    last = np.asarray(forth.source.cameras.world_from_camera[-1], np.float64)
    steps = [
      np.diff(np.asarray(x.tracks.points, np.float64), axis=1)
      / np.diff(x.source.times)[None, :, None]
      for x in clips
    ]
    valid = np.asarray(forth.tracks.valid)
    both = valid[:, 1:] & valid[:, :-1]
    assert both.any()
    expected = -(steps[0] @ last[:3, :3])[:, ::-1]
    np.testing.assert_allclose(steps[1][both[:, ::-1]], expected[both[:, ::-1]], atol=2e-3)
    if name == "shards":
      assert forth.text and back.text == BACKWARDS + forth.text
    else:
      assert back.text == ""


def test_cut_scenes_keep_their_geometry_and_their_factor(tmp_path):
  """Depth of one frame, carried to all others; sizes, windows and strides vary."""
  root = virtual_kitti.write(tmp_path, numbers=range(8), ball=(0, 0, -50)).root
  windows = set()
  for distance in (0.0, 2.0):
    source = Windows("virtual_kitti", root, **SIZE, distance=distance, augment=Augmentation())
    for seed in range(6):
      clip = source.draw(seed, np.random.default_rng(seed))
      windows.add(round(float(clip.source.cameras.intrinsics[0, 0, 2]), 3))
      first = clip.source
      points = camera_geometry.unproject(first.depth[0], first.cameras[0]).reshape(1, -1, 3)
      errors = []
      for views in (clip.source, clip.target):
        for index in range(len(views.times)):
          pixels, z = camera_geometry.project(points, views.cameras[index : index + 1])
          column, row = np.floor(pixels[0]).astype(int).T
          seen = (z[0] > 0) & (column >= 0) & (column < 32) & (row >= 0) & (row < 32)
          there = views.depth[index][row[seen], column[seen]]
          errors.append(np.abs(there / z[0][seen] - 1)[there > 0])
      assert np.median(np.concatenate(errors)) < 0.03
      known = first.depth[first.depth > 0]
      assert not distance or abs(np.median(known) / distance - 1) < 1e-3
      assert float(clip.scale) > 0 and (distance or clip.scale == 1)
  assert len(windows) > 4


def test_lengths_that_are_no_metres_need_a_distance(tmp_path):
  name = f"realestate10k:{realestate10k.write(tmp_path).root}"
  size = {x: SIZE[x] for x in ("height", "width", "views")} | {"frames": 1, "split": "train"}
  with pytest.raises(ValueError, match="set config.data.distance"):
    open_source(name, **size)
  clip = open_source(name, cutting={"distance": 1.0}, **size | {"frames": 5, "split": "train"})
  assert clip.read(0).scale == 0
  # Where only pictures matter, it is as good as any.
  assert open_source(name, posed=False, **size).read(0).scale == 1


def still(count, places=0.0):
  """Poses of a camera that trembles by 0.1 mm about `places` [k 3]."""
  poses = np.tile(np.eye(4), (count, 1, 1))
  poses[:, :3, 3] = places + np.random.default_rng(0).uniform(-1e-4, 1e-4, (count, 3))
  return poses


def test_the_unit_of_footage_without_depth_is_that_of_its_tracks():
  """Not the trembling of a camera that is held still, nor points behind it or not known."""
  nothing, poses = np.zeros((5, 2, 2), np.float32), still(5)
  points = np.tile(np.float32([[[0, 1, 3]], [[1, 0, 3]], [[0, 0, -9]], [[0, 0, 80]]]), (1, 5, 1))
  valid = np.arange(4)[:, None] + np.zeros(5, int) < 3
  tracks = Tracks(points=points, visible=valid, valid=valid)
  about = {"metric": True, "distance": 2.0}
  assert sampling.unit(nothing, tracks, poses, poses, **about) == pytest.approx(1.5, abs=1e-3)
  depth = nothing + np.float32(5)
  assert sampling.unit(depth, tracks, poses, poses, **about) == 2.5


def line(count, length=1.0):
  """Poses of a camera that goes straight ahead."""
  poses = np.tile(np.eye(4), (count, 1, 1))
  poses[:, 2, 3] = np.linspace(0, length, count)
  return poses


def test_a_camera_that_hardly_moves_gives_no_unit():
  """Whether lengths are metres or not: little is what is little beside the rest of the footage."""
  nothing, hardly = np.zeros((5, 2, 2), np.float32), line(5, 1e-4)
  far = np.concatenate([hardly, line(5)])
  for metric, everywhere in ((True, hardly), (False, far)):
    with pytest.raises(NoLength, match="no tracks are known, and the camera travels"):
      sampling.unit(nothing, None, hardly, everywhere, metric=metric, distance=1.0)
  for metric in (True, False):
    found = sampling.unit(nothing, None, line(5, 0.2), far, metric=metric, distance=1.0)
    assert found == pytest.approx(0.2)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_a_camera_that_only_trembles_gives_no_unit(unit):
  """In whatever unit of length, and wherever the world's origin is."""
  rng = np.random.default_rng(0)
  for count, least in ((5, 0.95), (9, 0.99), (49, 1)):
    refused = 0
    for _ in range(300):
      poses = np.tile(np.eye(4), (count, 1, 1))
      poses[:, :3, 3] = unit * (rng.normal(size=(count, 3)) + [10, 0, -50])
      try:
        about = {"metric": False, "distance": 1.0}
        sampling.unit(np.zeros((count, 2, 2), np.float32), None, poses, poses, **about)
      except NoLength as error:
        assert "the camera only trembles" in str(error)
        refused += 1
    assert refused >= least * 300
  standing = np.tile(np.eye(4), (5, 1, 1))
  standing[:, 0, 3] = 7 * unit
  assert sampling.trembling(standing) == 1


@pytest.mark.parametrize("count", [5, 9, 49])
def test_a_path_is_no_trembling(count):
  """Nor is one that is walked, with a hand that shakes by a twentieth of the way."""
  rng = np.random.default_rng(0)
  angle = np.linspace(0, np.pi, count)
  orbit = line(count)
  orbit[:, 0, 3], orbit[:, 2, 3] = np.cos(angle), np.sin(angle)
  assert sampling.trembling(orbit) < 0.35 and sampling.trembling(line(count)) < 0.25
  for _ in range(300):
    walked = line(count)
    walked[:, :3, 3] += 0.05 * rng.normal(size=(count, 3))
    assert sampling.trembling(walked) < 0.4
    assert sampling.trembling(walked[::-1]) == pytest.approx(sampling.trembling(walked))


def test_a_scene_without_length_is_left_out_when_one_is_chosen(tmp_path, monkeypatch):
  source = Windows("realestate10k", realestate10k.write(tmp_path).root, **SIZE, distance=1.0)
  real, asked = sampling.unit, []

  def unit(*arguments, **about):
    asked.append(1)
    if len(asked) < 4:
      raise NoLength("it trembles")
    return real(*arguments, **about)

  monkeypatch.setattr(sampling, "unit", unit)
  assert source.read(0).source.images.shape == (5, 32, 32, 3) and len(asked) == 4
  monkeypatch.setattr(sampling, "unit", lambda *_, **__: unit_of_none())
  with pytest.raises(ValueError, match="none of 50 scenes .* or a camera that moves"):
    source.read(0)


def unit_of_none():
  raise NoLength("it trembles")


def test_kept_clips_of_other_windows_have_another_place(tmp_path):
  root = virtual_kitti.write(tmp_path / "set", numbers=range(8)).root
  names = set()
  for how in (Augmentation(), Augmentation(crop=False), None):
    source = open_source(
      f"virtual_kitti:{root}", cache=str(tmp_path / "kept"), cutting={"augment": how}, **SIZE
    )
    source.read(0)
    names = {x.name for x in (tmp_path / "kept").iterdir()}
  assert len(names) == 3


def test_strange_windows_are_refused():
  for how in ({"stride": -1}, {"reverse": 1.5}):
    with pytest.raises(ValueError, match="expected a stride of 0 or more"):
      Augmentation(**how)
  assert dataclasses.replace(Augmentation(), stride=3).stride == 3
