"""The one entry to attention: splash on a TPU, cuDNN on a GPU, by blocks on a CPU, else XLA."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from d4s_jax.layers import splash
from d4s_jax.layers.partitioning import platform
from d4s_jax.layers.sequence_parallel import distributed

# On a CPU: queries whose logits are in the cache together, and logits of a head from which on the
# way through memory costs more than the loop.
_BLOCK = 128
_MANY = 2**20
# Largest head that cuDNN's fused attention takes on every GPU it supports.
_CUDNN_HEAD_DIM = 128
# Names of that platform: of JAX's backend, and of a mesh.
_GPU = ("gpu", "cuda")


def attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  *,
  mask: Bool[Array, "#b #h #n m"] | None = None,
  bias: Float[Array, "#b h n m"] | None = None,
  scale: float | None = None,
  tokens: str | None = None,
) -> Float[Array, "b n h d"]:
  """softmax(scale q k^T + bias) v with the softmax in float32.

  On a mesh each device computes its part of samples and heads and, where `tokens` is given, of the
  queries; see `sequence_parallel`.

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: False where a key is not to be seen; every query must see at least one key.
    bias: added to the logits.
    scale: 1 / sqrt(d) unless given.
    tokens: logical axis along which the queries are cut; only without mask and bias.

  Returns:
    The weighted values, in the dtype of `q`.
  """
  factor = q.shape[-1] ** -0.5 if scale is None else scale
  if mask is None and bias is None:
    kernel = functools.partial(_kernel(q, k), factor)
    return distributed(kernel, q, k, v, scale=factor, tokens=tokens)
  if _fits_cudnn(q):
    return _cudnn(factor, q, k, v, mask, bias)
  return _plain(factor, q, k, v, mask, bias)


def _kernel(q, k):
  """What computes attention without mask and bias on one device."""
  if platform() == "tpu" and splash.fits(q, k):
    return splash.splash_attention
  if _fits_cudnn(q):
    return _cudnn
  return _by_blocks if _fits_blocks(q, k) else _plain


def _cudnn(scale, q, k, v, mask=None, bias=None):
  return jax.nn.dot_product_attention(
    q, k, v, bias=bias, mask=mask, scale=scale, implementation="cudnn"
  )


def _plain(scale, q, k, v, mask=None, bias=None):
  logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * scale
  if bias is not None:
    logits = logits + bias.astype(jnp.float32)
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _fits_cudnn(q: Float[Array, "b n h d"]) -> bool:
  """Half precision, a GPU, and a head that the fused kernel takes."""
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  head = q.shape[-1]
  return half and head <= _CUDNN_HEAD_DIM and head % 8 == 0 and platform() in _GPU


def _fits_blocks(q: Float[Array, "b n h d"], k: Float[Array, "b m h d"]) -> bool:
  """A CPU, and too many logits for its cache."""
  return q.shape[1] * k.shape[1] >= _MANY and platform() == "cpu"


def _by_blocks(
  scale: float,
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
) -> Float[Array, "b n h d"]:
  """softmax(scale q k^T) v, one head and one block of queries at a time, there and back.

  XLA would write all logits to memory and read them several times; those of a block stay in the
  cache, and are computed again for the gradient.
  """
  batch, tokens, _, _ = q.shape
  q = jnp.pad(q, ((0, 0), (0, -tokens % _BLOCK), (0, 0), (0, 0)))
  blocks = rearrange(q, "b (i n) h d -> (b h) i n d", n=_BLOCK)
  keys, values = (rearrange(x, "b m h d -> (b h) m d") for x in (k, v))

  def head(inputs):
    queries, keys, values = inputs

    @jax.checkpoint
    def block(queries):
      logits = jnp.matmul(queries, keys.T, preferred_element_type=jnp.float32) * scale
      largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
      weights = jnp.exp(logits - largest)
      total = jnp.sum(weights, axis=-1, keepdims=True)
      return (jnp.matmul(weights.astype(values.dtype), values) / total).astype(queries.dtype)

    return jax.lax.map(block, queries)

  y = jax.lax.map(head, (blocks, keys, values))
  return rearrange(y, "(b h) i n d -> b (i n) h d", b=batch)[:, :tokens]
