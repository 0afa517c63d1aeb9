"""Sums over the bits of arrays, kept beside them: what a disk changed shows when it is read.

Orbax notices files that are missing or cut short, but not bits that flip in what it can still
decode.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, UInt, UInt32

from d4s_jax.training import sharding

# Numbers at a time, so that a large array is not in memory twice.
_PIECE = 2**20


def by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """The leaves of a tree by their paths, in which dictionaries and named tuples look alike."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def sums(tree: Any) -> dict[str, int]:
  """One number for each array of a tree, by path.

  It changes with any bit and with the order of values, and doesn't depend on how an array is cut
  over devices.
  """
  leaves = by_path(tree)
  numbers = jax.jit(_sums, out_shardings=sharding.whole())(list(leaves.values()))
  return dict(zip(leaves, np.asarray(numbers).tolist()))


def share(values: Num[np.ndarray, "..."], start: int) -> int:
  """What some of an array's numbers, which follow each other, add to its number in `sums`.

  Args:
    values: the numbers.
    start: how many of the array come before them.
  """
  bits = np.ascontiguousarray(values).reshape(-1)
  bits = bits.view(f"u{bits.itemsize}")
  total = 0
  for begin in range(0, bits.size, _PIECE):
    piece = bits[begin : begin + _PIECE].astype(np.uint64)
    weights = 1 + 2 * np.arange(start + begin, start + begin + piece.size, dtype=np.uint64)
    # 2^32 divides 2^64: what overflows is not missed.
    total += int((piece * weights).sum(dtype=np.uint64))
  return total % 2**32


def _sums(leaves: list[Array]) -> UInt32[Array, "n"]:
  return jnp.stack([_sum(leaf) for leaf in leaves])


def _sum(values: Num[Array, "..."]) -> UInt32[Array, ""]:
  """Bits times odd weights that differ from place to place, modulo 2^32."""
  bits = _bits(values)
  weights, stride = jnp.ones(bits.shape, jnp.uint32), 2
  for axis in reversed(range(bits.ndim)):
    place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    weights += place * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return jnp.sum(bits * weights, dtype=jnp.uint32)


def _bits(values: Num[Array, "..."]) -> UInt[Array, "..."]:
  kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
  return jax.lax.bitcast_convert_type(values, kinds[values.dtype.itemsize]).astype(jnp.uint32)
