"""Linear layers that know the logical names of their axes."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import partitioned

XAVIER = nn.initializers.xavier_uniform()

# Collection of the low-rank adapters, beside the parameters; see `models.adapter`.
ADAPTER = "adapter"


class Dense(nn.Dense):
  """A Linen dense layer that adds the adapter laid beside it, if there is one.

  It is applied to the tokens, x down up, never formed as a matrix of the kernel's size: see
  `models.adapter`.
  """

  @nn.compact
  def __call__(self, inputs: Float[Array, "*b i"]) -> Float[Array, "*b {self.features}"]:
    """The layer, and what its adapter adds."""
    y = super().__call__(inputs)
    if not self.has_variable(ADAPTER, "down"):
      return y
    down, up = (self.get_variable(ADAPTER, name).astype(y.dtype) for name in ("down", "up"))
    return y + inputs.astype(y.dtype) @ down @ up


def dense(
  features: int,
  *axes: str | None,
  name: str,
  dtype: DTypeLike = jnp.float32,
  use_bias: bool = True,
  kernel_init: Callable = XAVIER,
) -> Dense:
  """A dense layer; `axes` are the logical names of its input and of its output."""
  return Dense(
    features,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=partitioned(kernel_init, *axes),
    bias_init=partitioned(nn.initializers.zeros, axes[-1]),
    name=name,
  )
