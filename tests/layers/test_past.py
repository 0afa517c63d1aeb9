import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers.convolution import CausalConv3d
from d4s_jax.layers.past import by_chunks, first_chunk


class Layers(nn.Module):
  """Two layers that look back, and one that knows the first frame."""

  repeat_first: bool

  @nn.compact
  def __call__(self, x, begins):
    x = CausalConv3d(4, repeat_first=self.repeat_first)(x)
    x = jnp.concatenate([-x[:, : int(begins)], x[:, int(begins) :]], axis=1)
    return CausalConv3d(5, (2, 1, 1), repeat_first=self.repeat_first)(x)


class Clip(nn.Module):
  """The layers, by chunks."""

  first: int
  length: int
  repeat_first: bool = False

  def setup(self):
    self.layers = Layers(self.repeat_first)

  def __call__(self, x):
    return by_chunks(self.layers, x, self.first, self.length)


def _whole_numbers(random, like):
  return jax.tree.map(lambda x: jnp.asarray(random.integers(-4, 5, x.shape), jnp.float32), like)


@pytest.mark.parametrize("repeat_first", [False, True])
@pytest.mark.parametrize("first, length", [(1, 2), (3, 4)])
def test_chunks_equal_the_whole_exactly(first, length, repeat_first, key):
  # In whole numbers, whose sums are exact: XLA rounds others by how many frames it gets at once.
  random = np.random.default_rng(0)
  x = _whole_numbers(random, jnp.zeros((2, 7, 3, 5, 3)))
  whole, chunked = Clip(7, 0, repeat_first), Clip(first, length, repeat_first)
  shapes = jax.eval_shape(chunked.init, key, x)
  assert set(shapes) == {"params"}
  variables = _whole_numbers(random, nn.unbox(shapes))
  np.testing.assert_array_equal(
    jax.jit(chunked.apply)(variables, x), jax.jit(whole.apply)(variables, x)
  )


def test_gradients_cross_from_chunk_to_chunk(key):
  x = jax.random.normal(key, (1, 5, 2, 2, 2))
  variables = jax.jit(Clip(5, 0).init)(key, x)

  def gradients(module):
    loss = lambda variables, x: jnp.sum(jnp.sin(module.apply(variables, x)))  # noqa: E731
    return jax.jit(jax.grad(loss, (0, 1)))(variables, x)

  got, want = gradients(Clip(1, 2)), gradients(Clip(5, 0))
  # 1e-5: sums over the frames, in another order.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@hypothesis.given(st.integers(1, 60), st.integers(1, 9))
def test_first_chunk_takes_what_is_left_over(count, length):
  first = first_chunk(count, length)
  assert (count - first) % length == 0
  assert first == count if count < 2 * length else length <= first < 2 * length
