"""Linear layers that know the logical names of their axes."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from d4s_jax.layers.partitioning import partitioned

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
