"""Logical axis names: how models say which axis is which without knowing the mesh.

`training.sharding` maps these names to mesh axes. Outside a mesh both functions change nothing.
"""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array

AXES = ("batch", "frames", "tokens", "text", "embed", "mlp", "heads", "channels", "layers")


def _check(axes: tuple[str | None, ...]) -> None:
  unknown = [axis for axis in axes if axis is not None and axis not in AXES]
  if unknown:
    raise ValueError(f"Unknown logical axes {unknown}; expected names from {AXES} or None.")
  named = [axis for axis in axes if axis is not None]
  if len(named) > len(set(named)):
    raise ValueError(f"Logical axes {axes} name one axis twice; leave all but one of them None.")


def partitioned(init: Callable, *axes: str | None) -> Callable:
  """An initialiser whose parameter remembers the logical name of each axis."""
  _check(axes)
  return nn.with_logical_partitioning(init, axes)


def constrain(x: Array, *axes: str | None) -> Array:
  """Asks the partitioner to lay `x` out by these logical axes."""
  _check(axes)
  return nn.spmd.with_logical_constraint(x, axes, fallback=nn.spmd.RulesFallback.RAISE_ERROR)
