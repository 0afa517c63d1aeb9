import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.geometry import deformation, rotations
from d4s_jax.types import LOG_SCALE_RANGE, DynamicGaussians

HALF = np.sqrt(0.5)


def scene(*batch: int, count: int = 4, times=(0.0, 0.25, 1.0), seed: int = 0) -> DynamicGaussians:
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=(*batch, *shape)).astype(np.float32)

  still = deformation.identity(*batch, len(times), count, xp=np)
  change = still + 0.3 * normal(len(times), count, 10)
  change[..., 3:7] = rotations.normalize(change[..., 3:7])
  return DynamicGaussians(
    means=normal(count, 3),
    quaternions=rotations.normalize(normal(count, 4)),
    raw_scales=0.5 * normal(count, 3),
    footprints=np.abs(normal(count)) + 0.01,
    opacities=rng.uniform(size=(*batch, count)).astype(np.float32),
    harmonics=normal(count, 4, 3),
    times=np.broadcast_to(np.array(times, np.float32), (*batch, len(times))),
    deformation=change,
  )


def one(xp, change) -> DynamicGaussians:
  """A single Gaussian with a quarter turn about x as its canonical rotation."""
  arrays = {
    "means": [[1, 2, 3]],
    "quaternions": [[HALF, HALF, 0, 0]],
    "raw_scales": [[0, 0.5, 3.5]],
    "footprints": [0.1],
    "opacities": [0.7],
    "harmonics": [[[1, 0, -1]]],
    "times": [0.0],
    "deformation": [[change]],
  }
  return DynamicGaussians(**{k: xp.asarray(v, dtype=xp.float32) for k, v in arrays.items()})


def test_the_delta_is_added_multiplied_on_the_right_and_clipped(xp):
  drawn = deformation.deform(one(xp, [0.5, 0, -1, HALF, 0, 0, HALF, -9, 0.5, 1]))
  np.testing.assert_allclose(drawn.means[0, 0], [1.5, 2, 2], atol=1e-6)
  # (h, h, 0, 0) (x) (h, 0, 0, h) with h^2 = 1/2: i k = -j. The other order has +1/2 for y.
  np.testing.assert_allclose(drawn.quaternions[0, 0], [0.5, 0.5, -0.5, 0.5], atol=1e-6)
  low, high = LOG_SCALE_RANGE
  expected = 0.1 * np.exp([low, 1.0, high])
  np.testing.assert_allclose(drawn.scales[0, 0], expected, rtol=1e-5)
  np.testing.assert_allclose(drawn.opacities[0], [0.7], atol=1e-6)
  np.testing.assert_array_equal(drawn.harmonics[0, 0], [[1, 0, -1]])


def test_identity_changes_nothing(xp):
  static = one(xp, deformation.identity(xp=xp))
  drawn = deformation.deform(static)
  np.testing.assert_array_equal(drawn.means[0], static.means)
  np.testing.assert_array_equal(drawn.quaternions[0], static.quaternions)
  assert deformation.identity(2, 3, xp=xp).shape == (2, 3, deformation.CHANNELS)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_shapes_and_stored_times_are_hit(batch):
  dynamic = scene(*batch)
  every = deformation.deform(dynamic)
  again = deformation.at(dynamic, np.array([0, 0.25, 1], np.float32))
  assert every.means.shape == (*batch, 3, 4, 3)
  assert every.quaternions.shape == (*batch, 3, 4, 4)
  assert every.scales.shape == (*batch, 3, 4, 3)
  assert every.opacities.shape == (*batch, 3, 4)
  assert every.harmonics.shape == (*batch, 3, 4, 4, 3)
  for stored, found in zip(jax.tree.leaves(every), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(found, stored, atol=1e-6)


def test_between_and_beyond_the_stored_times():
  dynamic = scene()
  stored = deformation.deform(dynamic)
  found = deformation.at(dynamic, np.array([-1, 0.0625, 5], np.float32))
  np.testing.assert_allclose(found.means[0], stored.means[0], atol=1e-6)
  np.testing.assert_allclose(
    found.means[1], 0.75 * stored.means[0] + 0.25 * stored.means[1], atol=1e-6
  )
  np.testing.assert_allclose(found.means[2], stored.means[2], atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(found.quaternions, axis=-1), 1, atol=1e-6)


def test_each_scene_of_a_batch_can_have_its_own_times():
  dynamic = scene(2)
  query = np.array([[0.1, 0.9], [0.4, 0.2]], np.float32)
  together = deformation.at(dynamic, query)
  for i in range(2):
    alone = deformation.at(jax.tree.map(lambda x, i=i: x[i], dynamic), query[i])
    np.testing.assert_allclose(together.means[i], alone.means, atol=1e-6)
    np.testing.assert_allclose(together.quaternions[i], alone.quaternions, atol=1e-6)


def test_one_stored_time_is_a_static_scene():
  dynamic = scene(times=(0.5,))
  found = deformation.at(dynamic, np.array([0, 1], np.float32))
  stored = deformation.deform(dynamic)
  np.testing.assert_allclose(found.means[1], stored.means[0], atol=1e-6)


def test_traced_equals_numpy_and_the_untrained_head_has_finite_gradients():
  dynamic = scene(2)
  query = np.array([0.1, 0.6], np.float32)
  traced = jax.jit(deformation.at)(jax.tree.map(jnp.asarray, dynamic), query)
  expected = deformation.at(dynamic, query)
  for ours, theirs in zip(jax.tree.leaves(traced), jax.tree.leaves(expected), strict=True):
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)

  still = dataclasses.replace(dynamic, deformation=deformation.identity(2, 3, 4))

  def total(change):
    drawn = deformation.at(dataclasses.replace(still, deformation=change), query)
    return sum(leaf.sum() for leaf in jax.tree.leaves(drawn))

  assert np.isfinite(jax.jit(jax.grad(total))(still.deformation)).all()
