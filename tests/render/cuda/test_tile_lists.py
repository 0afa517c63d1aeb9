"""Tile lists of the `cuda` backend, against a search; what does not fit is counted to the last."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.render import render
from d4s_jax.render.binning import Grid
from d4s_jax.render.cuda import operations
from d4s_jax.render.cuda.operations import Projected
from tests.render import scenes
from tests.render.cuda import emulator

GRID = Grid(height=37, width=50, tile=16)
VIEWS, COUNT = 3, 64


@pytest.fixture(autouse=True, scope="module")
def _emulator():
  emulator.load()


@pytest.fixture
def projected():
  """Boxes of all sizes in and around the image; many depths are equal, some splats are unseen."""
  random = np.random.default_rng(0)
  radii = random.integers(1, 30, (VIEWS, COUNT, 2))
  radii[random.uniform(size=(VIEWS, COUNT)) < 0.2] = 0
  return splats(
    radii,
    random.uniform(-20, 70, (VIEWS, COUNT, 2)),
    random.integers(1, 9, (VIEWS, COUNT)).astype(np.float32) / 3,
  )


def splats(radii, means, depths):
  shape = depths.shape
  return Projected(
    radii=jnp.asarray(radii, jnp.int32),
    means=jnp.asarray(means, jnp.float32),
    depths=jnp.asarray(depths, jnp.float32),
    conics=jnp.zeros((*shape, 3)),
    compensations=jnp.zeros(shape),
  )


def touched(projected, view, splat):
  """Numbers of the tiles that a splat's box touches."""
  mean, radius = np.asarray(projected.means[view, splat]), np.asarray(projected.radii[view, splat])
  if not radius.all():
    return []
  low = np.maximum(np.floor((mean - radius) / 16), 0).astype(int)
  high = np.ceil((mean + radius) / 16).astype(int)
  columns = range(low[0], min(high[0], GRID.columns))
  rows = range(low[1], min(high[1], GRID.rows))
  return [row * GRID.columns + column for row in rows for column in columns]


def expected_lists(projected, capacity):
  """For each view and tile its splats by depth, ties by index; and what each view loses."""
  lists, lost = [], []
  for view in range(len(projected.depths)):
    tiles = [[] for _ in range(GRID.tiles)]
    used = missed = 0
    for splat in np.argsort(projected.depths[view], kind="stable"):
      places = touched(projected, view, splat)
      if missed or used + len(places) > capacity:
        missed += len(places)
        continue
      used += len(places)
      for place in places:
        tiles[place].append(view * COUNT + splat)
    lists.append(tiles)
    lost.append(missed)
  return lists, lost


@pytest.mark.parametrize("capacity", [2000, 120, 40, 1])
def test_lists_match_a_search(projected, capacity):
  lists = operations.tile_lists(projected, GRID, capacity)
  expected, lost = expected_lists(projected, capacity)
  assert lists.overflow.tolist() == lost
  assert bool(sum(lost)) == (capacity < 2000)
  bounds = np.append(np.asarray(lists.starts).ravel(), VIEWS * capacity)
  tiles = (GRID.rows + 1) * GRID.columns
  for view in range(VIEWS):
    # All of the view's room is given to its tiles; pads are behind those of the image.
    assert bounds[view * tiles] == view * capacity
    for tile in range(GRID.tiles):
      start, end = bounds[view * tiles + tile : view * tiles + tile + 2]
      assert lists.splats[start:end].tolist() == expected[view][tile]
    inside = np.asarray(lists.inside[view])
    assert inside[:-1].all() and not inside[-1].any()
  assert jnp.all((lists.splats >= 0) & (lists.splats < VIEWS * COUNT))


def test_totals_beyond_int32_saturate():
  """640 splats over 4 million tiles each: 2.6e9 intersections."""
  count = 640
  huge = splats(np.full((1, count, 2), 2**30), np.full((1, count, 2), 16000), np.ones((1, count)))
  lists = operations.tile_lists(huge, Grid(height=32000, width=32000, tile=16), 64)
  assert lists.overflow.tolist() == [2**31 - 1]
  assert not jnp.any(lists.starts[:, :-1])


def test_what_overflows_is_not_drawn():
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras(views=1)
  draw = jax.jit(functools.partial(render, backend="cuda"), static_argnames="capacity")
  tight, enough = draw(scene, cameras, capacity=60), draw(scene, cameras, capacity=48 * 4)
  assert tight.overflow > 0 and not enough.overflow
  pose = np.asarray(cameras.world_from_camera[0])
  order = np.argsort((scene.means - pose[None, :3, 3]) @ pose[:3, 2])
  # Take the farthest away, one after the other, until nothing overflows.
  for kept in range(len(order), 0, -1):
    nearest = dataclasses.replace(
      scene, opacities=scene.opacities.at[jnp.asarray(order[kept:], int)].set(0)
    )
    if not draw(nearest, cameras, capacity=60).overflow:
      break
  assert 1 < kept < len(order)
  expected = draw(nearest, cameras, capacity=48 * 4)
  np.testing.assert_array_equal(tight.image, expected.image)
  assert jnp.max(jnp.abs(tight.image - enough.image)) > 0.01


def test_gradients_where_room_is_short():
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras(views=2)

  @jax.jit
  def gradient(scene, poses):
    def loss(scene, poses):
      moved = dataclasses.replace(cameras, world_from_camera=poses)
      return jnp.sum(render(scene, moved, backend="cuda", capacity=60).image ** 2)

    return jax.grad(loss, argnums=(0, 1))(scene, poses)

  leaves = jax.tree.leaves(gradient(scene, cameras.world_from_camera))
  assert all(jnp.all(jnp.isfinite(x)) and jnp.any(x != 0) for x in leaves)
