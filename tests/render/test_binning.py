"""Tile lists against a search over every splat and tile; overflow to the last intersection."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.render import binning, projection, render
from d4s_jax.render.binning import Grid
from d4s_jax.types import Gaussians
from tests.render import scenes

GRID = Grid(height=scenes.HEIGHT, width=scenes.WIDTH, tile=8)


@pytest.fixture(scope="module")
def splats():
  cameras = scenes.cameras(views=3)
  scene = scenes.gaussians(coefficients=1)
  # Equal depths: ties have to keep the order of the input.
  scene = scenes.change(scene, means=np.asarray([[0.1, 0.1, 3.0]] * 9))
  per_view = jax.tree.map(lambda x: jnp.stack([x] * 3), scene)
  return projection.project(per_view, cameras)


def expected_lists(splats):
  """For each view and tile the splats with a pixel centre of the tile in their box, by depth."""
  low, high = splats.means - splats.extents, splats.means + splats.extents
  pixels = [np.arange(size) + 0.5 for size in (GRID.width, GRID.height)]
  lists = []
  for view in range(len(splats.depths)):
    for row in range(GRID.rows):
      for column in range(GRID.columns):
        inside = np.asarray(splats.opacities[view] > 0)
        for axis, place in enumerate((column, row)):
          centres = pixels[axis][place * 8 : place * 8 + 8, None]
          touched = (centres >= low[view, None, :, axis]) & (centres <= high[view, None, :, axis])
          inside &= np.any(touched, axis=0)
        order = np.argsort(splats.depths[view], kind="stable")
        lists.append([48 * view + i for i in order if inside[i]])
  return lists


def actual_lists(lists):
  pairs = zip(np.asarray(lists.starts), np.asarray(lists.counts))
  return [np.asarray(lists.splats)[start : start + count].tolist() for start, count in pairs]


def test_lists_match_a_full_search(splats):
  lists = binning.tile_lists(splats, GRID, 48 * GRID.tiles)
  expected = expected_lists(splats)
  assert sum(map(len, expected)) > 100
  assert actual_lists(lists) == expected
  assert not jnp.any(lists.overflow)


def test_keys_that_do_not_fit_an_integer(splats, monkeypatch):
  monkeypatch.setattr(binning, "_PACKED_LIMIT", 0)
  assert actual_lists(binning.tile_lists(splats, GRID, 48 * GRID.tiles)) == expected_lists(splats)


@pytest.mark.parametrize("capacity", [1, 17, 60])
def test_overflow_counts_what_the_farthest_lose(splats, capacity):
  lists = binning.tile_lists(splats, GRID, capacity)
  expected = expected_lists(splats)
  depth = np.asarray(splats.depths).ravel()
  kept_lists = actual_lists(lists)
  for view in range(3):
    tiles = slice(view * GRID.tiles, (view + 1) * GRID.tiles)
    everything, kept = sum(expected[tiles], []), sum(kept_lists[tiles], [])
    assert len(kept) == capacity
    assert lists.overflow[view] == len(everything) - capacity
    lost = set(everything) - set(kept)
    assert max(depth[kept]) <= min(depth[list(lost)])


def test_totals_beyond_int32_saturate():
  counts = jnp.full((1, 5), 2**29, jnp.int32)
  total = binning._running_total(counts)
  np.testing.assert_array_equal(total, [[2**29, 2**30, 2**30, 2**30, 2**30]])


def test_render_reports_overflow_and_drops_the_farthest():
  """Three Gaussians, each in a tile of its own, and room for two."""
  camera = scenes.cameras(views=1)
  pixels = np.asarray([[4.0, 4.0], [12.0, 12.0], [20.0, 4.0]])
  depths = np.asarray([2.0, 4.0, 3.0])
  lens, pose = np.asarray(camera.intrinsics[0]), np.asarray(camera.world_from_camera[0])
  rays = np.concatenate([pixels, np.ones((3, 1))], 1) @ np.linalg.inv(lens).T
  scene = Gaussians(
    means=jnp.asarray((rays * depths[:, None]) @ pose[:3, :3].T + pose[:3, 3], jnp.float32),
    quaternions=jnp.tile(jnp.asarray([[1.0, 0, 0, 0]]), (3, 1)),
    scales=jnp.full((3, 3), 0.01),
    opacities=jnp.full(3, 0.9),
    harmonics=jnp.ones((3, 1, 3)),
  )
  draw = jax.jit(render, static_argnames="capacity")
  drawn = draw(scene, camera, capacity=2)
  assert drawn.overflow.tolist() == [1]
  without = draw(dataclasses.replace(scene, opacities=jnp.asarray([0.9, 0, 0.9])), camera)
  assert without.overflow.tolist() == [0]
  np.testing.assert_array_equal(drawn.image, without.image)
  assert jnp.max(drawn.image) > 0.2
