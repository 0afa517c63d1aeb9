"""A plain pre-norm transformer, compiled as one scanned block."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.attention import attention
from d4s_jax.layers.linear import FromHeads, ToHeads, dense
from d4s_jax.layers.normalization import LayerNorm, RMSNorm
from d4s_jax.layers.partitioning import constrain

# Collection of the low-rank adapters, beside "params"; see `models.adapter`.
ADAPTER = "adapter"


# What the backward pass of a block computes again, by name: all of it; what lies between the
# products with its weights, whose results are kept, on the device or by the host; nothing.
_PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_OFFLOADED = jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host")
REMAT: dict[str, Any] = {
  "all": None,
  "products": _PRODUCTS,
  "offload": _OFFLOADED,
  "none": jax.checkpoint_policies.everything_saveable,
}


def scan_blocks(block: type[nn.Module], depth: int, inputs: int, remat: str) -> type[nn.Module]:
  """Stacks `depth` copies of a block whose call is (carry, *inputs) -> (carry, output).

  The parameters of all copies lie along a first axis named "layers"; the outputs are stacked.

  Args:
    block: the module class; its parameters depend on nothing but its fields and input shapes.
    depth: number of copies.
    inputs: how many inputs, the same for every copy, follow the carry.
    remat: a name in REMAT. "products" takes less time than "none", which moves more memory.

  Raises:
    ValueError: the name is unknown.
  """
  if remat not in REMAT:
    raise ValueError(f"remat is {remat!r}; expected one of {sorted(REMAT)}.")
  every_copy: Any = (nn.broadcast,) * inputs
  block = nn.remat(block, prevent_cse=False, policy=REMAT[remat])
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
    y = ToHeads(3 * width, 3 * self.heads, self.dtype, name="query_key_value")(y)
    q, k, v = jnp.split(y, 3, axis=2)
    q, k = (
      RMSNorm(axis_name=None, name="query_norm")(q),
      RMSNorm(axis_name=None, name="key_norm")(k),
    )
    y = attention(q, k, v, tokens="tokens")
    x = x + FromHeads(width, self.dtype, name="attention_out")(y)

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
    remat: what the backward pass computes again, a name in REMAT.
  """

  depth: int
  heads: int
  dtype: DTypeLike = jnp.float32
  remat: str = "products"

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
