"""The deformation head: exactly the identity at first, a function of cell and time later."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.geometry.deformation import identity
from d4s_jax.models.deformation_head import DeformationHead, _coarser

HEAD = DeformationHead(channels=16, upsampling=(4, 4, 4))
# Three tokens in time, three rows (odd, so that halving is ragged) and two columns.
GRID, MAP = (3, 3, 2), (9, 12, 8)


@pytest.fixture(scope="module")
def taps():
  return list(jax.random.normal(jax.random.key(0), (4, 2, *GRID, 24)))


@pytest.fixture(scope="module")
def untrained(taps):
  cells, times = jnp.zeros((2, 5), jnp.int32), jnp.zeros((2, 3))
  # This generator compiles much faster than the default one.
  key = jax.random.key(1, impl="unsafe_rbg")
  return nn.unbox(jax.jit(HEAD.init)(key, taps, cells, times))


@pytest.fixture(scope="module")
def trained(untrained):
  """Parameters away from their initial zeros."""
  numbers = np.random.default_rng(2)

  def move(x):
    return jnp.asarray(x + 0.1 * numbers.normal(size=x.shape), jnp.float32)

  return jax.tree.map(move, untrained)


apply = jax.jit(HEAD.apply)


@pytest.fixture(scope="module")
def cells():
  return jax.random.randint(jax.random.key(3), (2, 40), 0, int(np.prod(MAP)))


TIMES = jnp.array([[0.0, 0.3, 1.0], [0.1, 0.2, 0.9]])


def test_untrained_head_is_the_identity_bit_for_bit(untrained, taps, cells):
  deformation = apply(untrained, taps, cells, TIMES)
  assert deformation.dtype == jnp.float32
  np.testing.assert_array_equal(deformation, identity(2, 3, 40))


def test_rotations_are_unit_and_the_rest_unbounded(trained, taps, cells):
  trained["params"]["out"]["bias"] = trained["params"]["out"]["bias"].at[:3].add(1e3)
  deformation = apply(trained, taps, cells, TIMES)
  # Float32 square root and division.
  np.testing.assert_allclose(jnp.linalg.norm(deformation[..., 3:7], axis=-1), 1.0, rtol=1e-6)
  assert jnp.all(deformation[..., :3] > 900)
  assert jnp.any(deformation[..., 7:] < 0)


def test_motion_depends_on_target_time_and_source_time(trained, taps):
  still = [jnp.ones_like(tap) for tap in taps]
  # The same tokens everywhere, and the same cell of every fourth frame: only the clock differs.
  frames = jnp.array([2, 6]) * MAP[1] * MAP[2]
  cells = jnp.tile(frames[None], (2, 1))
  deformation = apply(trained, still, cells, TIMES)
  assert jnp.max(jnp.abs(deformation[:, 0] - deformation[:, 1])) > 1e-2
  assert jnp.max(jnp.abs(deformation[:, :, 0] - deformation[:, :, 1])) > 1e-2


def test_each_cell_and_each_time_is_computed_for_itself(trained, taps, cells):
  together = apply(trained, taps, cells, TIMES)
  order = jnp.array([2, 0])
  apart = apply(trained, taps, cells[:, ::-1][:, :7], TIMES[:, order])
  # Matrix products of other sizes may sum in another order.
  np.testing.assert_allclose(apart, together[:, order][:, :, ::-1][:, :, :7], rtol=1e-4, atol=1e-5)


def test_taps_act_at_their_own_scale(trained, taps):
  everywhere = jnp.tile(jnp.arange(np.prod(MAP))[None], (2, 1))
  before = apply(trained, taps, everywhere, TIMES)

  def reach(level):
    """Frames, rows and columns of cells that the token at (1, 0, 0) of a tap acts on."""
    moved = [tap.at[:, 1, 0, 0].multiply(1.0 - 2.0 * (i == level)) for i, tap in enumerate(taps)]
    difference = jnp.abs(apply(trained, moved, everywhere, TIMES) - before)
    touched = jnp.max(difference, axis=(0, 1, 3)).reshape(MAP) > 1e-6
    return [int(jnp.sum(jnp.any(touched, axis=axes))) for axes in ((1, 2), (0, 2), (0, 1))]

  # The earliest tap reaches the cells of its own token: 5 frames, 4 rows, 4 columns.
  assert reach(0) == [5, 4, 4]
  # The latest is halved, then refined by two convolutions: every row and column around it.
  frames, rows, columns = reach(3)
  assert frames == 4
  assert rows > 8
  assert columns == 8


def test_cells_of_a_coarser_grid():
  fine, coarse = (9, 32, 32), (3, 16, 16)
  frames = _coarser(jnp.arange(9) * 32 * 32, fine, coarse) // (16 * 16)
  np.testing.assert_array_equal(frames, [0, 1, 1, 1, 1, 2, 2, 2, 2])
  inside = _coarser(jnp.array([5 * 32 + 7]), fine, coarse)
  np.testing.assert_array_equal(inside, [2 * 16 + 3])
  np.testing.assert_array_equal(_coarser(jnp.arange(4), (1, 2, 2), (1, 1, 1)), 0)


def test_gradients_are_finite_and_reach_every_parameter_once_trained(
  untrained, trained, taps, cells
):
  @jax.jit
  @jax.grad
  def gradient_of(params):
    return jnp.sum(jnp.square(HEAD.apply(params, taps, cells, TIMES) - 0.5))

  gradients = gradient_of(trained)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert jnp.isfinite(gradient).all(), path
    assert jnp.any(gradient != 0), path
  # Before, everything lies behind the zero of the last convolution.
  first = gradient_of(untrained)["params"]
  assert jnp.any(first["out"]["kernel"] != 0)
  assert all(
    jnp.all(x == 0) for name in first if name != "out" for x in jax.tree.leaves(first[name])
  )


def test_wrong_number_of_taps_is_refused(taps, cells):
  with pytest.raises(ValueError, match="3 taps.*fuses 4"):
    HEAD.init(jax.random.key(0), taps[:3], cells, TIMES)
