"""The one entry to attention: XLA everywhere, cuDNN on a GPU where it can."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Largest head that cuDNN's fused attention takes on every GPU it supports.
_CUDNN_HEAD_DIM = 128


def attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  *,
  mask: Bool[Array, "#b #h #n m"] | None = None,
  bias: Float[Array, "#b h n m"] | None = None,
  scale: float | None = None,
) -> Float[Array, "b n h d"]:
  """softmax(scale q k^T + bias) v with the softmax in float32.

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: False where a key is not to be seen; every query must see at least one key.
    bias: added to the logits.
    scale: 1 / sqrt(d) unless given.

  Returns:
    The weighted values, in the dtype of `q`.
  """
  factor = q.shape[-1] ** -0.5 if scale is None else scale
  if _fits_cudnn(q):
    return jax.nn.dot_product_attention(
      q, k, v, bias=bias, mask=mask, scale=factor, implementation="cudnn"
    )
  logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * factor
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
  return half and head <= _CUDNN_HEAD_DIM and head % 8 == 0 and jax.default_backend() == "gpu"
