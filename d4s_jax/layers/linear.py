"""Linear layers that know the logical names of their axes."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import partitioned, platform

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
    heads: they divide the features.
    dtype: compute dtype.
  """

  features: int
  heads: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n h e"]:
    """Maps tokens to heads."""
    kernel, bias = _parameters(self, x.shape[-1], "embed", "heads")
    x, kernel, bias = (y.astype(self.dtype) for y in (x, kernel, bias))
    y = jnp.einsum("bnd,dhe->bnhe", x, kernel.reshape(kernel.shape[0], self.heads, -1))
    return y + bias.reshape(1, 1, self.heads, -1)


class FromHeads(nn.Module):
  """A dense layer over all heads together; see `ToHeads`."""

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n h e"]) -> Float[Array, "b n d"]:
    """Maps heads to tokens."""
    heads = x.shape[2:]
    kernel, bias = _parameters(self, math.prod(heads), "heads", "embed")
    x, kernel, bias = (y.astype(self.dtype) for y in (x, kernel, bias))
    if platform() == "cpu":
      # Nothing is copied there, and with two axes a training step takes 4% longer.
      y = x.reshape(*x.shape[:2], -1) @ kernel
    else:
      y = jnp.einsum("bnhe,hed->bnd", x, kernel.reshape(*heads, -1))
    return y + bias.reshape(1, 1, -1)


def _parameters(layer: ToHeads | FromHeads, width: int, *axes: str) -> tuple[Array, Array]:
  """Kernel and bias of a layer of `width` inputs; `axes` as of `dense`."""
  kernel = layer.param("kernel", partitioned(XAVIER, *axes), (width, layer.features))
  zeros = partitioned(nn.initializers.zeros, axes[-1])
  return kernel, layer.param("bias", zeros, (layer.features,))
