"""SyntheticScenes: purity, splits, cameras, captions, refusals."""

import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from d4s_jax.data.source import SOURCES
from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.geometry.trajectories import TRAJECTORIES
from d4s_jax.types import Cameras

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {"frames": 5, "height": 24, "width": 32, "views": 4, "tracks": 20}


def digest(clip):
  """A hash of every bit of a clip."""
  whole = hashlib.sha256(clip.text.encode())
  for leaf in jax.tree.leaves(clip):
    if not isinstance(leaf, str):
      whole.update(np.ascontiguousarray(leaf).tobytes())
  return whole.hexdigest()


def test_a_clip_is_a_function_of_its_index():
  scenes = SyntheticScenes(7, "train", "mixed", **SMALL)
  first = [digest(scenes.read(i)) for i in (3, 4, 5)]
  again = SyntheticScenes(7, "train", "mixed", **SMALL)
  assert [digest(again.read(i)) for i in (5, 4, 3)] == first[::-1]
  program = (
    "from test_synthetic import *\n"
    "print(digest(SyntheticScenes(7, 'train', 'mixed', **SMALL).read(4)))"
  )
  other = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'data'}"},
  )
  assert other.stdout.strip() == first[1]


def test_seeds_splits_and_indices_give_different_clips():
  sources = [
    SyntheticScenes(seed, split, **SMALL) for seed in (0, 1) for split in ("train", "heldout")
  ]
  digests = [digest(source.read(index)) for source in sources for index in range(3)]
  assert len(set(digests)) == len(digests)


def test_the_scene_does_not_depend_on_the_sizes_asked_for():
  small = SyntheticScenes(0, **SMALL)
  big = SyntheticScenes(0, frames=9, height=48, width=64, views=2, tracks=0)
  first, second = small.read(2), big.read(2)
  assert first.text == second.text
  np.testing.assert_array_equal(
    first.source.cameras.world_from_camera, second.source.cameras.world_from_camera[::2]
  )
  # The centre of a pixel is the corner of four finer ones: their mean depth is near its own.
  fine = second.source.depth[::2].reshape(5, 24, 2, 32, 2).mean(axis=(2, 4))
  assert np.median(np.abs(fine / first.source.depth - 1)) < 0.01
  assert second.tracks.points.shape == (0, 9, 3)


def test_shapes_types_and_ranges():
  clip = SyntheticScenes(0, **SMALL).read(0)
  assert clip.source.images.shape == (5, 24, 32, 3) and clip.target.images.shape == (4, 24, 32, 3)
  assert clip.source.depth.shape == clip.instances.shape == (5, 24, 32)
  assert clip.tracks.points.shape == (20, 5, 3) and clip.tracks.visible.shape == (20, 5)
  floats = [clip.tracks.points]
  for views in (clip.source, clip.target):
    floats += [views.images, views.depth, views.times]
    floats += [views.cameras.world_from_camera, views.cameras.intrinsics]
    assert 0 <= views.images.min() and views.images.max() <= 1
  for leaf in floats:
    assert leaf.dtype == np.float32 and np.isfinite(leaf).all()
  assert clip.instances.dtype == np.int32 and clip.dynamic.dtype == bool
  assert isinstance(clip.text, str)


def test_cameras_start_at_the_origin_and_times_rise():
  for index in range(12):
    clip = SyntheticScenes(1, **SMALL).read(index)
    np.testing.assert_array_equal(clip.source.cameras.world_from_camera[0], np.eye(4))
    np.testing.assert_array_equal(clip.source.times, np.linspace(0, 1, 5))
    assert np.all(np.diff(clip.target.times) >= 0)
    assert 0 <= clip.target.times.min() and clip.target.times.max() <= 1
    fov = camera_geometry.fov_from_intrinsics(clip.source.cameras.intrinsics, 32)
    assert np.all((fov > 49.9) & (fov < 70.1))


def distances_to_path(source, index):
  """Distance of each target camera from the source camera's path, metres."""
  eyes = source.read(index).target.cameras.world_from_camera[:, :3, 3]
  path = source.setting(index).path.at(np.linspace(0, 1, 200))[:, :3, 3]
  return np.linalg.norm(eyes[:, None] - path[None], axis=-1).min(axis=1)


@pytest.mark.parametrize("off_path", [0.0, 0.5, 1.0])
def test_target_views_leave_the_path_by_option(off_path):
  source = SyntheticScenes(2, off_path=off_path, **SMALL)
  distances = np.array([distances_to_path(source, index) for index in range(12)])
  far = distances > 0.12
  assert abs(far.mean() - off_path) < 0.1  # few off-path cameras come that near by chance
  if off_path:
    assert np.median(distances[far]) > 0.3


def test_kinds():
  for kind, expected in (("static", {False}), ("dynamic", {True}), ("mixed", {False, True})):
    source = SyntheticScenes(3, kind=kind, **SMALL)
    clips = [source.read(index) for index in range(10)]
    assert {bool(clip.dynamic) for clip in clips} == expected
    for clip in clips:
      travelled = np.abs(clip.tracks.points - clip.tracks.points[:, :1]).max()
      assert (travelled > 1e-3) == clip.dynamic
      if not clip.dynamic:
        assert travelled == 0


VERBS = {"slide": "slides", "roll": "rolls", "bounce": "bounces", "spin": "spins"}
CAMERA = {
  "spiral": "spirals",
  "forward": "moves forward",
  "backward": "moves back",
  "up": "rises",
  "down": "sinks",
  "orbit": "orbits",
}


def test_captions_say_what_is_seen_and_how_it_moves():
  source = SyntheticScenes(4, "train", "mixed", **SMALL)
  families, verbs = set(), set()
  for index in range(40):
    setting, clip = source.setting(index), source.read(index)
    text = clip.text
    assert text.isascii() and len(text) < 180
    assert text.endswith(f"The camera {CAMERA[setting.path.name]}.")
    families.add(setting.path.name)
    for number, body in enumerate(setting.scene.bodies):
      share = (clip.instances == number + 1).mean(axis=(1, 2)).max()
      name = f"{body.material.name} {body.noun}"
      assert (name in text) == (share > 0.002)
      if name in text and body.motion.moves:
        verb = VERBS[body.motion.kind]
        phrase = text.split(f"{name} {verb}", 1)
        assert len(phrase) == 2
        verbs.add(verb)
        check_direction(phrase[1], body, setting)
  assert families == set(TRAJECTORIES) and verbs == set(VERBS.values())


def check_direction(rest, body, setting):
  """A thing that goes left in words goes left in the first camera's picture; and so on."""
  if body.motion.kind == "spin":
    return
  word = rest.split()[0].strip(",.")
  room = body.motion.start + np.array([[0.0], [1.0]]) * body.motion.way
  scene = setting.scene
  world = (room - scene.room_from_world[:3, 3]) @ scene.room_from_world[:3, :3]
  camera = Cameras(world_from_camera=np.eye(4), intrinsics=np.eye(3), height=1, width=1)
  pixels, depth = camera_geometry.project(world, camera)
  if word in ("left", "right"):
    # Perspective moves what only comes closer too: judge from the place itself.
    assert (world[1, 0] > world[0, 0]) == (word == "right")
    level = pixels[:, 0] * depth[0]
    assert np.sign(level[1] * depth[1] - level[0] * depth[0]) == (1 if word == "right" else -1)
  else:
    assert (depth[1] > depth[0]) == {"away": True, "closer": False}[word]


def test_an_odd_index_or_option_is_refused():
  with pytest.raises(ValueError, match="'validation'; expected one of train, heldout"):
    SyntheticScenes(split="validation")
  with pytest.raises(ValueError, match="'moving'; expected one of static, dynamic, mixed"):
    SyntheticScenes(kind="moving")
  with pytest.raises(ValueError, match="8 frames.*5 or 9"):
    SyntheticScenes(frames=8)
  with pytest.raises(ValueError, match="positive sizes"):
    SyntheticScenes(height=0)
  with pytest.raises(IndexError, match="Clip 3; expected 0 to 2"):
    SyntheticScenes(length=3).read(3)


def test_the_table_of_sources_makes_a_source():
  source = SOURCES["synthetic"](seed=0, length=5, **SMALL)
  assert len(source) == 5 and source.read(4).text
