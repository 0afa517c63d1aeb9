"""Selection of a fixed number of Gaussians, and the opacity threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.pruning import OPACITY_THRESHOLD, select, switch_off


@pytest.fixture
def opacities(key):
  """A shuffled ramp for each of two scenes: the index of the n-th most opaque is known."""
  ramp = jnp.linspace(0.01, 0.99, 100)
  return jnp.stack([jax.random.permutation(k, ramp) for k in jax.random.split(key)])


def test_without_a_key_the_most_opaque_are_kept(opacities):
  kept = jax.jit(select, static_argnums=1)(opacities, 20)
  expected = np.argsort(-np.asarray(opacities), axis=1)[:, :20]
  np.testing.assert_array_equal(np.sort(kept, axis=1), np.sort(expected, axis=1))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_with_a_key_a_share_is_random_and_the_rest_the_most_opaque(opacities, share):
  kept = np.asarray(select(opacities, 20, key=jax.random.key(1), random_share=share))
  drawn = round(20 * share)
  order = np.argsort(-np.asarray(opacities), axis=1)
  for scene in range(2):
    assert len(set(kept[scene])) == 20
    assert set(order[scene, : 20 - drawn]) <= set(kept[scene])


def test_the_random_share_is_even_over_all_others(opacities):
  keys = jax.random.split(jax.random.key(2), 400)
  kept = jax.vmap(lambda key: select(opacities[:1], 20, key=key))(keys)
  counts = np.bincount(np.asarray(kept).ravel(), minlength=100)
  rank = np.argsort(np.argsort(-np.asarray(opacities[0])))
  assert np.all(counts[rank < 15] == 400)
  # 5 of 85 each time: 23.5 expected in 400 draws, deviation 4.7; five deviations either way.
  assert counts[rank >= 15].min() > 0
  assert counts[rank >= 15].max() < 48


def test_selection_depends_on_the_key_alone(opacities):
  first, again = (select(opacities, 20, key=jax.random.key(3)) for _ in range(2))
  other = select(opacities, 20, key=jax.random.key(4))
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)


def test_budget_of_the_whole_map_keeps_everything(opacities):
  for key in (None, jax.random.key(5)):
    kept = select(opacities, 100, key=key)
    np.testing.assert_array_equal(np.sort(kept, axis=1), np.tile(np.arange(100), (2, 1)))


def test_budget_larger_than_the_map_is_refused(opacities):
  with pytest.raises(ValueError, match="budget of 101 Gaussians exceeds the 100"):
    select(opacities, 101)


def test_opacities_below_the_threshold_are_zero():
  below, at = OPACITY_THRESHOLD * 0.99, OPACITY_THRESHOLD
  np.testing.assert_allclose(switch_off(jnp.array([0.0, below, at, 0.9])), [0.0, 0.0, at, 0.9])
