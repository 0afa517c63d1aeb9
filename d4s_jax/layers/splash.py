"""Attention on a TPU: JAX's splash kernel, for any number of tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import (
  BlockSizes,
  FullMask,
  MultiHeadMask,
  SegmentIds,
  make_splash_mha,
)
from jaxtyping import Array, Float

# Queries and keys of a block, and the unit that the kernel asks of their number.
_BLOCK, _UNIT = 512, 128
# The kernel takes heads of a multiple of this width.
_HEAD_UNIT = 64


def fits(q: Float[Array, "b n h d"], k: Float[Array, "b m h d"]) -> bool:
  """Whether the kernel takes such heads, and there are enough tokens to be worth its padding."""
  return q.shape[-1] % _HEAD_UNIT == 0 and min(q.shape[1], k.shape[1]) >= _UNIT


def splash_attention(
  scale: float,
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  *,
  interpret: bool = False,
) -> Float[Array, "b n h d"]:
  """softmax(scale q k^T) v; logits stay on the chip, there and back.

  Args:
    scale: factor on the logits.
    q: queries.
    k: keys.
    v: values.
    interpret: run the kernel in Python, on any platform, for tests.
  """
  queries, keys = q.shape[1], k.shape[1]
  q, k, v = (
    _padded(rearrange(x, "b n h d -> b h n d"), axis=2) for x in ((q * scale).astype(q.dtype), k, v)
  )
  own, theirs = _block(q.shape[2]), _block(k.shape[2])
  blocks = BlockSizes(
    block_q=own,
    block_kv=theirs,
    block_kv_compute=theirs,
    block_q_dkv=own,
    block_kv_dkv=theirs,
    block_kv_dkv_compute=theirs,
    block_q_dq=own,
    block_kv_dq=theirs,
  )
  mask = MultiHeadMask([FullMask((q.shape[2], k.shape[2]))] * q.shape[1])
  kernel = make_splash_mha(
    mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
  )
  segments = None
  if (q.shape[2], k.shape[2]) != (queries, keys):
    # Queries see keys of their own segment: padding, that of padding.
    segments = SegmentIds(
      q=(jnp.arange(q.shape[2]) >= queries).astype(jnp.int32),
      kv=(jnp.arange(k.shape[2]) >= keys).astype(jnp.int32),
    )
  y: Any = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(q, k, v)
  return rearrange(y[:, :, :queries], "b h n d -> b n h d")


def _block(length: int) -> int:
  return next(size for size in (_BLOCK, _BLOCK // 2, _UNIT) if length % size == 0)


def _padded(x: Array, axis: int) -> Array:
  """Up to whole blocks, or to whole units where a block would be mostly padding."""
  length = x.shape[axis]
  unit = _BLOCK if length > 4 * _BLOCK else _UNIT
  return jnp.pad(x, [(0, -length % unit if i == axis else 0) for i in range(x.ndim)])
