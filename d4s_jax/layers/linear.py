"""Linear layers that know the logical names of their axes."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import divides, partitioned, platform

XAVIER = nn.initializers.xavier_uniform()


def dense(
  features: int,
  *axes: str | None,
  name: str,
  dtype: DTypeLike = jnp.float32,
  use_bias: bool = True,
  kernel_init: Callable = XAVIER,
) -> nn.Dense:
  """A Linen dense layer; `axes` are the logical names of its input and of its output."""
  return nn.Dense(
    features,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=partitioned(kernel_init, *axes),
    bias_init=partitioned(nn.initializers.zeros, axes[-1]),
    name=name,
  )


class ToHeads(nn.Module):
  """A dense layer whose output lies apart in heads; parameters and values are those of `dense`.

  The product itself has an axis of heads: an accelerator can write it head by head, as attention
  reads it, where a reshaped product has to be copied.

  Attributes:
    features: of all heads together.
    heads: how many.
    dtype: compute dtype.
  """

  features: int
  heads: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n h e"]:
    """Maps tokens to heads.

    Raises:
      ValueError: the heads don't divide the features.
    """
    if self.features % self.heads:
      raise ValueError(f"{self.heads} heads don't divide a width of {self.features}.")
    x, kernel, bias = _parameters(self, x, "embed", "heads")
    if _may_be_apart(self.heads):
      y = jnp.einsum("bnd,dhe->bnhe", x, kernel.reshape(kernel.shape[0], self.heads, -1))
    else:
      y = (x @ kernel).reshape(*x.shape[:2], self.heads, -1)
    return y + bias.reshape(1, 1, self.heads, -1)


class FromHeads(nn.Module):
  """A dense layer over all heads together; see `ToHeads`.

  Attributes:
    features: of the output.
    dtype: compute dtype.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n h e"]) -> Float[Array, "b n d"]:
    """Maps heads to tokens."""
    heads, size = x.shape[2:]
    joined = x.reshape(*x.shape[:2], -1)
    joined, kernel, bias = _parameters(self, joined, "heads", "embed")
    if _may_be_apart(heads):
      y = jnp.einsum("bnhe,hed->bnd", x.astype(self.dtype), kernel.reshape(heads, size, -1))
    else:
      y = joined @ kernel
    return y + bias.reshape(1, 1, -1)


def _may_be_apart(heads: int) -> bool:
  """Whether a product should have an axis of heads.

  On a CPU a product and its reshape lie alike, and one over two axes takes 4% of a training step.
  Where the devices that share heads don't divide them, the kernel can't be cut by heads and would
  be gathered.
  """
  return platform() != "cpu" and divides("heads", heads)


def _parameters(
  layer: ToHeads | FromHeads, x: Float[Array, "b n d"], *axes: str
) -> tuple[Array, Array, Array]:
  """Input, kernel and bias of a layer in its compute dtype; `axes` as of `dense`."""
  kernel = layer.param("kernel", partitioned(XAVIER, *axes), (x.shape[-1], layer.features))
  zeros = partitioned(nn.initializers.zeros, axes[-1])
  bias = layer.param("bias", zeros, (layer.features,))
  x, kernel, bias = (y.astype(layer.dtype) for y in (x, kernel, bias))
  return x, kernel, bias
