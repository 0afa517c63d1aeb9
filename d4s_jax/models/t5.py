"""T5 v1.1 and umT5 text encoders.

Relative positions enter as a bias on the attention logits, which are not scaled; the gate of the
feed-forward network is a tanh GELU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from d4s_jax.layers.attention import attention
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import RMSNorm
from d4s_jax.layers.partitioning import constrain, partitioned
from d4s_jax.layers.transformer import scan_blocks


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "l l"]:
  """Bucket of each (query, key) pair: half for each sign, exact when near, logarithmic when far."""
  offset = np.arange(length)[None, :] - np.arange(length)[:, None]
  half = buckets // 2
  exact = half // 2
  distance = np.abs(offset)
  # In float32, as the published models were trained: buckets begin where this rounding says.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
  ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
  far = np.minimum(exact + ratio.astype(np.int32), half - 1)
  return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class T5Encoder(nn.Module):
  """Token ids to embeddings.

  Attributes:
    vocabulary: number of token ids.
    dim: width.
    depth: number of blocks.
    heads: attention heads.
    head_dim: width of a head.
    ffn_dim: inner width of the feed-forward networks.
    per_layer_bias: whether each block has its own position bias (umT5) or all share one (T5).
    buckets: relative positions are sorted into so many.
    max_distance: all positions at least so far apart share the last bucket.
    dtype: compute dtype.
    remat: what of a block the backward pass computes again, a name in `layers.transformer.REMAT`.
  """

  vocabulary: int
  dim: int
  depth: int
  heads: int
  head_dim: int
  ffn_dim: int
  per_layer_bias: bool = True
  buckets: int = 32
  max_distance: int = 128
  dtype: DTypeLike = jnp.float32
  remat: str = "products"

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
  ) -> Float[Array, "b l {self.dim}"]:
    """Embeds tokens; those where `mask` is False are not seen by the others."""
    table = partitioned(nn.initializers.normal(1.0), "mlp", "embed")
    table = self.param("embedding", table, (self.vocabulary, self.dim))
    x = jnp.take(table, tokens, axis=0).astype(self.dtype)
    positions = jnp.asarray(relative_buckets(tokens.shape[1], self.buckets, self.max_distance))
    if not self.per_layer_bias:
      positions = PositionBias(self.heads, self.buckets, self.dim, name="bias")(positions)
    stack = scan_blocks(T5Block, self.depth, inputs=2, remat=self.remat)
    block = dict(heads=self.heads, head_dim=self.head_dim, ffn_dim=self.ffn_dim, dtype=self.dtype)
    block |= dict(buckets=self.buckets if self.per_layer_bias else None)
    x, _ = stack(**block, name="blocks")(x, positions, mask[:, None, None, :])
    return RMSNorm(name="norm")(x)


class PositionBias(nn.Module):
  """A learnt logit for each head and bucket."""

  heads: int
  buckets: int
  dim: int

  @nn.compact
  def __call__(self, positions: Int[Array, "l l"]) -> Float[Array, "1 h l l"]:
    """Looks the buckets up."""
    init = partitioned(nn.initializers.normal(self.dim**-0.5), None, "heads")
    table = self.param("table", init, (self.buckets, self.heads))
    return rearrange(jnp.take(table, positions, axis=0), "q k (one h) -> one h q k", one=1)


class T5Block(nn.Module):
  """Self-attention and a gated feed-forward network, both normalised before and without biases.

  With `buckets` set the block has its own position bias and is given bucket numbers; otherwise it
  is given the bias itself.
  """

  heads: int
  head_dim: int
  ffn_dim: int
  dtype: DTypeLike
  buckets: int | None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l d"], positions: Array, mask: Bool[Array, "b 1 1 l"]
  ) -> tuple[Float[Array, "b l d"], None]:
    """Returns what the scan carries, and nothing to collect."""
    dim, inner = x.shape[-1], self.heads * self.head_dim
    if self.buckets is not None:
      positions = PositionBias(self.heads, self.buckets, dim, name="bias")(positions)

    def project(features, *axes, scale=1.0, name):
      init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
      return dense(features, *axes, name=name, dtype=self.dtype, use_bias=False, kernel_init=init)

    y = RMSNorm(name="attention_norm")(x)
    # The logits are not scaled: the initialisation of the queries makes up for it.
    q = project(inner, "embed", "heads", scale=1 / self.head_dim, name="query")(y)
    k = project(inner, "embed", "heads", name="key")(y)
    v = project(inner, "embed", "heads", name="value")(y)
    q, k, v = (rearrange(a, "b l (h d) -> b l h d", h=self.heads) for a in (q, k, v))
    y = rearrange(attention(q, k, v, bias=positions, mask=mask, scale=1.0), "b l h d -> b l (h d)")
    x = x + project(dim, "heads", "embed", name="attention_out")(y)

    y = RMSNorm(name="mlp_norm")(x)
    gate = jax.nn.gelu(project(self.ffn_dim, "embed", "mlp", name="mlp_gate")(y))
    y = gate * project(self.ffn_dim, "embed", "mlp", name="mlp_in")(y)
    x = x + project(dim, "mlp", "embed", name="mlp_out")(y)
    return constrain(x, "batch", "text", None), None
