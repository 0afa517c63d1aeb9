"""Tracked points as cells of the map, and the error of what is predicted for them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.data.source import SOURCES
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.training.motion_queries import motion_error, motion_queries


@pytest.fixture(scope="module")
def clip():
  """Two clips in which something moves."""
  source = SOURCES["synthetic"](kind="dynamic", frames=5, height=32, width=32, views=2)
  clips = [dataclasses.replace(source.read(i), text=np.zeros(1)) for i in range(2)]
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *clips)


def test_motion_queries_are_the_tracks(clip):
  points, frames, (true, valid) = motion_queries(clip, jax.random.key(1), 3)
  assert frames.shape == (3,) and len(set(np.asarray(frames).tolist())) == 3
  assert bool(valid.any()) and float(jnp.abs(true).max()) > 0.05
  for sample in range(2):
    tracks = jax.tree.map(lambda x, i=sample: np.asarray(x[i]), clip.tracks)
    for n in np.flatnonzero(np.asarray(valid[sample, 0]))[:20]:
      start = int(points.frames[sample, n])
      assert tracks.visible[n, start]
      camera = dataclasses.replace(clip.source.cameras[sample][start])
      pixel, depth = pinhole.project(tracks.points[n, start][None], camera)
      np.testing.assert_allclose(points.pixels[sample, n], pixel[0], atol=1e-3)
      assert depth[0] > 0 and (0 <= pixel).all() and (pixel <= 32).all()
      expected = tracks.points[n, np.asarray(frames)] - tracks.points[n, start]
      np.testing.assert_allclose(true[sample, :, n], expected, atol=1e-5)


def test_with_the_first_frame_as_canonical_tracks_start_there(clip):
  points, _, (true, valid) = motion_queries(clip, jax.random.key(1), 2, first_only=True)
  assert bool(valid.any()) and not bool(valid.all())
  np.testing.assert_array_equal(points.frames, 0)
  np.testing.assert_array_equal(valid[:, 0], clip.tracks.visible[:, :, 0])
  assert float(jnp.abs(true).max()) > 0.05


def test_points_never_seen_are_not_valid(clip):
  hidden = dataclasses.replace(clip.tracks, visible=jnp.zeros_like(clip.tracks.visible))
  _, _, (_, valid) = motion_queries(dataclasses.replace(clip, tracks=hidden), jax.random.key(1), 2)
  assert not bool(valid.any())


def test_error_of_moving_points_is_relative_to_no_motion():
  true = jnp.zeros((1, 2, 3, 3)).at[:, :, 0, 0].set(1.0).at[:, :, 1, 1].set(0.01)
  valid = jnp.ones((1, 2, 3), bool)
  assert float(motion_error(jnp.zeros_like(true), true, valid)) == pytest.approx(1.0)
  # What barely moves, and what does not, is left out.
  assert float(motion_error(true.at[:, :, 1:].set(7.0), true, valid)) == pytest.approx(0.0)
  assert float(motion_error(true / 2, true, valid)) == pytest.approx(0.5)
  assert float(motion_error(true / 2, true, valid.at[:, :, 0].set(False))) == 0.0
