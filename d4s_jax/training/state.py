"""The training state, and parameters as a flat dictionary from path to array.

Flat paths ("ldrm/trunk/blocks/attention/query/kernel") make freezing, learning-rate groups and
checkpoints plain dictionary work. Frozen parameters are kept apart, so they have no gradient, no
optimizer moments and no moving average.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Int

from d4s_jax.training.stages import split_by_path

Flat = dict[str, Any]

# How the paths of large arrays end.
_LARGE = ("/kernel", "/embedding")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run needs to go on.

  Attributes:
    step: updates made so far.
    trainable: parameters that the stage trains, by path.
    frozen: the others, by path.
    average: exponential moving average of `trainable`.
    optimizer: state of the optimizer over `trainable`.
    usual_norm: moving average of the gradient's norm; 0 before the first update.
  """

  step: Int[Array, ""]
  trainable: Flat
  frozen: Flat
  average: Flat
  optimizer: Any
  usual_norm: Float[Array, ""]


def flatten(params: Any) -> Flat:
  """Nested parameters to a dictionary by path."""
  flat: Any = traverse_util.flatten_dict(params, sep="/")
  return flat


def unflatten(*parts: Flat) -> Any:
  """The nested parameters of one or more flat dictionaries."""
  merged = {path: value for part in parts for path, value in part.items()}
  return traverse_util.unflatten_dict(merged, sep="/")


def create(
  params: Any,
  patterns: tuple[str, ...],
  optimizer: optax.GradientTransformation,
  frozen_dtype: str = "float32",
) -> TrainState:
  """The state of a run that starts from `params` and trains the paths that match `patterns`.

  Frozen kernels and embeddings are kept in `frozen_dtype`. In bfloat16 they take half the memory,
  and layers that compute in bfloat16 give the same output: they round their kernels anyway. What is
  small (biases, norms, tables) stays float32.
  """
  if frozen_dtype not in ("float32", "bfloat16"):
    raise ValueError(f"frozen_dtype is {frozen_dtype!r}; expected 'float32' or 'bfloat16'.")
  flat = flatten(params)
  trained, kept = split_by_path(sorted(flat), patterns)
  trainable = {path: flat[path] for path in trained}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    frozen={
      path: flat[path].astype(frozen_dtype) if path.endswith(_LARGE) else flat[path]
      for path in kept
    },
    average=jax.tree.map(jnp.copy, trainable),
    optimizer=optimizer.init(trainable),
    usual_norm=jnp.zeros((), jnp.float32),
  )


def averaged_params(state: TrainState) -> Any:
  """Nested parameters with the moving average in place of the trained ones: what a run is for."""
  return unflatten(state.frozen, state.average)
