"""Samples one by one: how a scene becomes pictures, for metrics and for people."""

import dataclasses
import hashlib
import tracemalloc
import types

import numpy as np
import pytest

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation import families, page, samples
from d4s_jax.evaluation.settings import Settings
from d4s_jax.formats.scene import SceneMetadata, write_scene
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import deformation
from d4s_jax.types import Cameras, DynamicGaussians

_SIDE, _COUNT = 32, 40


@pytest.fixture
def sample(tmp_path) -> samples.Scene:
  """Splats narrower than a pixel of the pictures that the scene was made for."""
  random = np.random.default_rng(0)
  means = random.uniform(-1, 1, (_COUNT, 3)) + np.array([0, 0, 4])
  dynamic = DynamicGaussians(
    means=means.astype(np.float32),
    quaternions=np.tile(np.array([1, 0, 0, 0], np.float32), (_COUNT, 1)),
    raw_scales=np.zeros((_COUNT, 3), np.float32),
    footprints=np.full(_COUNT, 0.01, np.float32),
    opacities=np.full(_COUNT, 0.9, np.float32),
    harmonics=np.ones((_COUNT, 1, 3), np.float32),
    times=np.zeros(1, np.float32),
    deformation=deformation.identity(1, _COUNT, xp=np).astype(np.float32),
  )
  cameras = Cameras(
    world_from_camera=np.eye(4, dtype=np.float32)[None],
    intrinsics=pinhole.intrinsics_from_fov(60, _SIDE, _SIDE)[None],
    height=_SIDE,
    width=_SIDE,
  )
  metadata = SceneMetadata(
    cameras=cameras, times=np.zeros(1, np.float32), prompt="", package_version="0"
  )
  write_scene(tmp_path / "scene", dynamic, metadata)
  return samples.Scene("scene", tmp_path / "scene")


def test_larger_pictures_are_sharp_for_metrics_and_soft_for_people(sample, monkeypatch):
  sharp, soft = sample.pictures(256), sample.frames(256, shown=True)
  assert sharp.shape == soft.shape == (1, 256, 256, 3)
  # A splat is 8 times wider for people, so it covers far more of the picture.
  assert (soft > 0.01).mean() > 3 * (sharp > 0.01).mean() > 0
  np.testing.assert_array_equal(sample.frames(), sample.frames(shown=True))
  drawn = []
  monkeypatch.setattr(page, "write_video", lambda path, frames, fps: drawn.append(frames))
  monkeypatch.setattr(page.pathlib.Path, "read_bytes", lambda path: b"")
  page._video(sample)
  np.testing.assert_array_equal(drawn[0], soft)


def test_protocols_tell_how_sharp_and_how_large_scenes_are_drawn():
  settings = Settings(pose_side=300)
  for family in (families.POSES, families.MATCHES_SIFT, families.MATCHES_XFEAT):
    assert "scenes-drawn-sharp-at-300-px" in family.protocol(settings), family.name


def test_a_video_is_hashed_piece_by_piece_with_what_lies_beside_it(tmp_path):
  path, contents = tmp_path / "long.mp4", bytes(20_000_000)
  path.write_bytes(contents)
  (tmp_path / "long.json").write_bytes(b"{}")
  tracemalloc.start()
  found = samples.Video("long", path).digest
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert found == hashlib.sha256(contents + b"{}").hexdigest() and peak < 2_000_000
  (tmp_path / "long.txt").write_bytes(b"a cat")
  assert samples.Video("long", path).digest not in (found, hashlib.sha256(contents).hexdigest())


def test_all_that_metrics_read_of_a_clip_is_in_its_hash(tmp_path):
  whole = SyntheticScenes(split="heldout", kind="dynamic", views=1, height=16, width=16).read(0)

  def digest(clip) -> str:
    return samples.SourceClip("a", tmp_path, types.SimpleNamespace(read=lambda _: clip), 0).digest

  views, tracks, lens = whole.target, whole.tracks, whole.target.cameras.intrinsics
  others = [
    {"text": f"{whole.text} "},
    {"target": dataclasses.replace(views, depth=2 * views.depth)},
    {"target": dataclasses.replace(views, times=views.times / 2)},
    {
      "target": dataclasses.replace(
        views, cameras=dataclasses.replace(views.cameras, intrinsics=2 * lens)
      )
    },
    {"tracks": dataclasses.replace(tracks, valid=~tracks.valid)},
    {"tracks": dataclasses.replace(tracks, visible=~tracks.visible)},
    {"tracks": dataclasses.replace(tracks, points=tracks.points + 1)},
  ]
  found = [digest(whole), *(digest(dataclasses.replace(whole, **change)) for change in others)]
  assert len(set(found)) == len(found) and digest(whole) == found[0]
