"""Stills as pop-up cards: exact geometry, the still itself in the first frame, splits apart."""

import pickle

import jax
import numpy as np
import pytest

from d4s_jax.data.pictures import Pictures
from d4s_jax.data.source import open_source
from d4s_jax.formats.video import write_video
from d4s_jax.geometry.cameras import project

SHOTS, LENGTH = 10, 4
SIZE = {"frames": 5, "height": 32, "width": 40, "views": 4, "tracks": 64}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
  """Ten shots of a smooth pattern, told apart by their brightness."""
  y, x = np.mgrid[0:60, 0:100] / 20
  pattern = 0.25 + 0.1 * np.sin(x)[..., None] * np.cos(y + np.arange(3)[:, None, None]).T.swapaxes(
    0, 1
  )
  shots = [np.repeat(pattern[None] + 0.4 * (i % 2) + 0.02 * i, LENGTH, 0) for i in range(SHOTS)]
  path = tmp_path_factory.mktemp("film") / "film.mp4"
  write_video(path, np.concatenate(shots).astype(np.float32), fps=24)
  return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_points_of_a_frame_have_the_colour_that_another_frame_shows(film):
  """Depth, cameras and pictures agree: what a track says is where the next frame shows it."""
  for index in range(4):
    clip = Pictures(film, **SIZE).read(index)
    images = np.asarray(clip.source.images)
    points, visible = np.asarray(clip.tracks.points), np.asarray(clip.tracks.visible)
    seen = []
    for frame in range(5):
      pixels, depth = project(points[:, frame], clip.source.cameras[frame])
      inside = visible[:, frame] & (np.abs(np.asarray(pixels) - (20, 16)) < (18, 14)).all(axis=1)
      column, row = np.floor(np.asarray(pixels)[inside]).astype(int).T
      # Float32, and half a pixel of where depth is read.
      near = np.asarray(clip.source.depth)[frame, row, column]
      np.testing.assert_allclose(np.asarray(depth)[inside], near, rtol=0.15)
      seen.append((inside, images[frame, row, column]))
    for (a, first), (b, other) in zip(seen, seen[1:]):
      both = a & b
      # The pattern changes by a hundredth a pixel.
      np.testing.assert_allclose(first[both[a]], other[both[b]], atol=0.06)


def test_the_first_frame_is_the_still_undistorted(film):
  still = np.asarray(Pictures(film, **SIZE).read(0).source.images)[0]
  # The pattern is smooth: no seam between floor and wall.
  assert np.abs(np.diff(still, axis=0)).max() < 0.06
  assert np.abs(np.diff(still, axis=1)).max() < 0.06


def test_depth_is_that_of_a_floor_and_a_wall(film):
  clip = Pictures(film, **SIZE).read(1)
  depth = np.asarray(clip.source.depth)[0]
  # Of a plane, the inverse of z-depth is linear in the row; two planes have two slopes.
  inverse = 1 / depth[:, 20]
  bend = np.abs(np.diff(inverse, n=2))
  assert (bend > 1e-4).sum() <= 2
  np.testing.assert_allclose(np.ptp(depth, axis=1), 0, atol=1e-4)
  assert not clip.dynamic and not np.asarray(clip.instances).any()


def test_clips_are_a_function_of_the_index_and_fit_the_others(film):
  source = Pictures(film, **SIZE)
  first, again = source.read(2), pickle.loads(pickle.dumps(source)).read(2)
  jax.tree.map(np.testing.assert_array_equal, first.source, again.source)
  assert np.any(np.asarray(first.source.images) != np.asarray(source.read(3).source.images))
  other = open_source("synthetic", length=1, **SIZE).read(0)
  ours, theirs = (
    [(np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(clip) if not isinstance(x, str)]
    for clip in (first, other)
  )
  assert ours == theirs
  assert first.text.startswith("A picture. The camera ")


def test_splits_share_no_shot(film):
  """The tenth shot, the brightest, is held out."""
  bright = {
    split: [
      np.asarray(Pictures(film, split, **SIZE).read(i).source.images).mean() for i in range(12)
    ]
    for split in ("train", "heldout")
  }
  assert np.ptp(bright["heldout"]) < 0.05
  assert max(bright["train"]) < min(bright["heldout"]) - 0.01


def test_bad_arguments(film):
  with pytest.raises(ValueError, match="Unknown split 'test'"):
    Pictures(film, "test")
  with pytest.raises(ValueError, match="Pictures stand still"):
    Pictures(film, kind="dynamic")
  with pytest.raises(FileNotFoundError, match="No film at"):
    Pictures("none.mp4")
  with pytest.raises(IndexError, match="Clip 7; expected 0 to 4"):
    Pictures(film, length=5, **SIZE).read(7)
  with pytest.raises(ValueError, match="expected 'pictures:PATH'"):
    open_source("pictures", **SIZE)
