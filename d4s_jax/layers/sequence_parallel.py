"""Attention over tokens and heads that lie on several devices.

Ulysses (Jacobs et al., 2023): an all-to-all turns a device's part of the tokens, with all heads,
into all tokens with its part of the heads, and back. Ring (Liu et al., 2023): keys and values go
round, and each device adds what its queries see of them. The mesh says which, or both: tokens lie
along "ring" and "ulysses", ring first.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import dividing, platform

# Queries whose logits are computed together.
_BLOCK = 512

Kernel = Callable[[Array, Array, Array], Array]


def distributed(
  kernel: Kernel,
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  *,
  scale: float,
  tokens: str | None,
) -> Float[Array, "b n h d"]:
  """softmax(scale q k^T) v, each device computing its own part; outside a mesh, `kernel` itself.

  Args:
    kernel: attention on one device, with the scale inside.
    q: queries.
    k: keys. As many as queries are taken to lie as these do; others, such as those of a prompt, to
      be whole on every device.
    v: values.
    scale: factor on the logits, for the ring, which computes them itself.
    tokens: logical axis of the queries; None if each device has all of them.

  Raises:
    ValueError: the devices of a logical axis don't divide tokens or heads.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel(q, k, v)
  batch, heads = dividing("batch", q.shape[0]), dividing("heads", q.shape[2])
  cut = dividing(tokens, q.shape[1], strict=True) if tokens else ()
  # XLA may cut by itself what is not cut here, but not kernels of TPUs and of cuDNN.
  if not (batch or heads or cut) and platform() == "cpu":
    return kernel(q, k, v)
  layout = PartitionSpec(batch or None, cut or None, heads or None)
  if k.shape[1] != q.shape[1] or not cut:
    whole = PartitionSpec(batch or None, None, heads or None)
    function, layouts = kernel, (layout, whole, whole)
  else:
    # Of the devices that share tokens, those that also share the sequence during attention.
    ring = dividing("gathered", q.shape[1])
    exchanged = tuple(axis for axis in cut if axis not in ring)
    if exchanged:
      dividing("spread_heads", q.shape[2], strict=True)
    function = functools.partial(_own, kernel, scale, ring, exchanged)
    layouts = (layout, layout, layout)
  return jax.shard_map(function, in_specs=layouts, out_specs=layout, check_vma=False)(q, k, v)


def _own(kernel: Kernel, scale: float, ring, exchanged, q, k, v):
  """One device's part of self-attention."""
  if exchanged:
    q, k, v = (jax.lax.all_to_all(x, exchanged, 2, 1, tiled=True) for x in (q, k, v))
  y = _around(scale, ring, q, k, v) if ring else kernel(q, k, v)
  return jax.lax.all_to_all(y, exchanged, 1, 2, tiled=True) if exchanged else y


def _around(scale: float, ring, q, k, v):
  """Attention to the keys of all devices of a ring, which come by one after the other."""
  size = jax.lax.axis_size(ring)
  ways = [(i, (i + 1) % size) for i in range(size)]

  @jax.checkpoint
  def add(seen, keys, values):
    total, weight = seen
    more, heavy = partial_attention(scale, q, keys, values)
    both = jnp.logaddexp(weight, heavy)
    share = [rearrange(jnp.exp(x - both), "b h n -> b n h 1") for x in (weight, heavy)]
    return total * share[0] + more * share[1], both

  def hop(carry, _):
    seen, keys, values = carry
    # On their way while those that are here are used.
    following = [jax.lax.ppermute(x, ring, ways) for x in (keys, values)]
    return (add(seen, keys, values), *following), None

  batch, tokens, heads, _ = q.shape
  nothing = (
    jnp.zeros((*q.shape[:3], v.shape[-1]), jnp.float32),
    jnp.full((batch, heads, tokens), -jnp.inf, jnp.float32),
  )
  (seen, k, v), _ = jax.lax.scan(hop, (nothing, k, v), length=size - 1)
  return add(seen, k, v)[0].astype(q.dtype)


def partial_attention(
  scale: float,
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
  """softmax(scale q k^T) v over some of the keys, float32, and the logarithm of its divisor.

  By blocks of queries, computed again for the gradient: all logits never exist at once.
  """
  tokens = q.shape[1]
  block = min(_BLOCK, tokens)
  q = jnp.pad(q, ((0, 0), (0, -tokens % block), (0, 0), (0, 0)))

  @jax.checkpoint
  def one(queries):
    logits = jnp.einsum("bnhd,bmhd->bhnm", queries, k, preferred_element_type=jnp.float32) * scale
    divisor = jax.nn.logsumexp(logits, axis=-1)
    weights = jnp.exp(logits - divisor[..., None]).astype(v.dtype)
    y = jnp.einsum("bhnm,bmhd->bnhd", weights, v, preferred_element_type=jnp.float32)
    return y, divisor

  y, divisor = jax.lax.map(one, rearrange(q, "b (i n) h d -> i b n h d", n=block))
  y, divisor = (
    rearrange(y, "i b n h d -> b (i n) h d"),
    rearrange(divisor, "i b h n -> b h (i n)"),
  )
  return y[:, :tokens], divisor[:, :, :tokens]
