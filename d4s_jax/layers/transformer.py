"""A plain pre-norm transformer, compiled as one scanned block."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.attention import attention
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm, RMSNorm
from d4s_jax.layers.partitioning import constrain

# Collection of the low-rank adapters, beside "params"; see `models.adapter`.
ADAPTER = "adapter"


def scan_blocks(block: type[nn.Module], depth: int, inputs: int, remat: bool) -> type[nn.Module]:
  """Stacks `depth` copies of a block whose call is (carry, *inputs) -> (carry, output).

  The parameters of all copies lie along a first axis named "layers"; the outputs are stacked.

  Args:
    block: the module class; its parameters depend on nothing but its fields and input shapes.
    depth: number of copies.
    inputs: how many inputs, the same for every copy, follow the carry.
    remat: recompute all of a block in the backward pass, not only what lies between the products
      with its weights; those are stored otherwise, which takes less time than storing everything.
  """
  every_copy: Any = (nn.broadcast,) * inputs
  policy = None if remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  block = nn.remat(block, prevent_cse=False, policy=policy)
  return nn.scan(
    block,
    variable_axes={"params": 0, ADAPTER: 0},
    split_rngs={"params": True},
    in_axes=every_copy,
    length=depth,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )


class TransformerBlock(nn.Module):
  """Self-attention with normalised queries and keys, then a GELU network of four times the width.

  Attributes:
    heads: attention heads; they divide the width.
    dtype: compute dtype.
  """

  heads: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Array]:
    """Returns the new tokens twice: as what the scan carries and as what it collects."""
    width = x.shape[-1]
    y = LayerNorm(name="attention_norm")(x)
    y = dense(3 * width, "embed", "heads", dtype=self.dtype, name="query_key_value")(y)
    q, k, v = rearrange(y, "b n (t h d) -> t b n h d", t=3, h=self.heads)
    q, k = (
      RMSNorm(axis_name=None, name="query_norm")(q),
      RMSNorm(axis_name=None, name="key_norm")(k),
    )
    y = rearrange(attention(q, k, v, tokens="tokens"), "b n h d -> b n (h d)")
    x = x + dense(width, "heads", "embed", dtype=self.dtype, name="attention_out")(y)

    y = LayerNorm(name="mlp_norm")(x)
    y = jax.nn.gelu(dense(4 * width, "embed", "mlp", dtype=self.dtype, name="mlp_in")(y))
    x = x + dense(width, "mlp", "embed", dtype=self.dtype, name="mlp_out")(y)
    x = constrain(x, "batch", "tokens", None)
    return x, x


class Transformer(nn.Module):
  """A stack of identical blocks and a last normalisation.

  Attributes:
    depth: number of blocks.
    heads: attention heads; they divide the width.
    dtype: compute dtype.
    remat: recompute the inside of a block in the backward pass instead of storing it.
  """

  depth: int
  heads: int
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"]
  ) -> tuple[Float[Array, "b n d"], Float[Array, "depth b n d"]]:
    """Returns the normalised tokens and, not normalised, the tokens after each block."""
    if x.shape[-1] % self.heads:
      raise ValueError(f"{self.heads} heads don't divide a width of {x.shape[-1]}.")
    stack = scan_blocks(TransformerBlock, self.depth, inputs=0, remat=self.remat)
    x, hidden = stack(self.heads, self.dtype, name="blocks")(x.astype(self.dtype))
    return LayerNorm(name="norm")(x), hidden
