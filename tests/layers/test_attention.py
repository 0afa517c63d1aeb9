import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.layers import attention as module
from d4s_jax.layers.attention import attention


def _inputs(key, dtype=jnp.float32):
  shapes = ((2, 5, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4))
  return [jax.random.normal(k, s, dtype) for k, s in zip(jax.random.split(key, 3), shapes)]


def _by_hand(q, k, v, scale, bias=0.0):
  logits = np.einsum("bnhd,bmhd->bhnm", q, k) * scale + bias
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)


def test_equals_the_formula(key):
  q, k, v = _inputs(key)
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(attention(q, k, v), _by_hand(q, k, v, 0.5), atol=1e-5)
  bias = jax.random.normal(key, (1, 3, 5, 7))
  got = attention(q, k, v, bias=bias, scale=1.0)
  np.testing.assert_allclose(got, _by_hand(q, k, v, 1.0, bias), atol=1e-5)


def test_masked_keys_do_not_exist(key):
  q, k, v = _inputs(key)
  mask = (jnp.arange(7) < 4)[None, None, None, :]
  got = attention(q, k, v, mask=mask)
  np.testing.assert_allclose(got, attention(q, k[:, :4], v[:, :4]), atol=1e-6)


def test_half_precision_keeps_its_softmax_in_float32(key):
  q, k, v = _inputs(key)
  half = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
  assert half.dtype == jnp.bfloat16
  # 0.02: eight bits of mantissa in inputs, weights and output of size 1.
  np.testing.assert_allclose(half.astype(jnp.float32), attention(q, k, v), atol=0.02)
  # A large common offset of the logits would swallow their differences in bfloat16.
  bias = jnp.full((1, 3, 5, 7), 1000.0)
  np.testing.assert_allclose(attention(q, k, v, bias=bias), attention(q, k, v), atol=1e-3)


@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def _loss(*args):
  y = attention(*args)
  return jnp.sum(jnp.square(y.astype(jnp.float32))), y


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_block_by_block_is_the_same_there_and_back(dtype, key, monkeypatch):
  """Numbers of queries that the blocks divide and don't, one sample and several."""
  # 1e-5: float32 sums in another order; 0.02 of gradients of size 2: eight bits of mantissa.
  near = 1e-5 if dtype == jnp.float32 else 0.05
  for batch, queries, keys in ((1, 2 * module._BLOCK, 64), (2, module._BLOCK + 3, 40), (2, 1, 7)):
    shapes = ((batch, queries, 2, 8), (batch, keys, 2, 8), (batch, keys, 2, 8))
    args = [jax.random.normal(k, s, dtype) for k, s in zip(jax.random.split(key, 3), shapes)]

    monkeypatch.setattr(module, "_MANY", 2**62)
    (_, dense), wanted = _loss(*args)
    monkeypatch.setattr(module, "_MANY", 0)
    (_, blocks), got = _loss(*args)
    assert blocks.dtype == dtype
    for a, b in ((blocks, dense), *zip(got, wanted)):
      np.testing.assert_allclose(np.float32(a), np.float32(b), atol=near)


def test_many_logits_are_never_whole_in_memory():
  """4,096 tokens of 4 heads: 256 MiB of logits, which only the dense way has."""
  x = jax.ShapeDtypeStruct((1, 4096, 4, 16), jnp.float32)
  plan = jax.jit(attention).lower(x, x, x).compile().memory_analysis()
  assert plan.temp_size_in_bytes < 32 * 2**20


@pytest.mark.skipif(
  not os.environ.get("JAX_PLATFORMS", "").startswith("cuda"), reason="needs a GPU"
)
@pytest.mark.parametrize("queries, keys, heads, head", [(256, 256, 4, 64), (100, 77, 3, 128)])
def test_the_kernel_of_a_gpu_is_the_same_there_and_back(queries, keys, heads, head, key):
  """`JAX_PLATFORMS=cuda python -m pytest tests/layers/test_attention.py`, with the extra `cuda`."""
  shapes = ((2, queries, heads, head), (2, keys, heads, head), (2, keys, heads, head))
  args = [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(jax.random.split(key, 3), shapes)]
  mask = (jnp.arange(keys) < keys - 5)[None, None, None, :]
  bias = jax.random.normal(key, (1, heads, queries, keys), jnp.bfloat16)
  for options in ({}, {"mask": mask}, {"bias": bias}):

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def loss(*args, options=options):
      y = attention(*args, **options)
      return jnp.sum(jnp.square(y.astype(jnp.float32))), y

    fused = jax.jit(loss).lower(*args).compile()
    assert "cudnn$fmha" in fused.as_text() or "__cudnn" in fused.as_text()
    (_, y), got = fused(*args)
    (_, exact), want = loss(*(x.astype(jnp.float32) for x in args))
    for a, b in ((y, exact), *zip(got, want)):
      # Eight bits of mantissa in inputs, weights and output.
      np.testing.assert_allclose(np.float32(a), b, atol=0.03 * max(1, float(jnp.abs(b).max())))
