"""Logical axis names: how models say which axis is which without knowing the mesh.

`training.sharding` maps these names to mesh axes. Outside a mesh both functions change nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
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


def per_device(function: Callable[..., Any], *trees: Any) -> Any:
  """Calls `function` on every device's own part of arrays that lie along the "batch" axis.

  For code that the partitioner cannot cut, such as one sort over all views, and would gather for.
  Outside a mesh, on one device, or where the devices do not divide the first axis, it is one call
  on whole arrays.

  Args:
    function: of pytrees of arrays, to pytrees of arrays; each row of the first axis of its results
      depends on the same row of its inputs alone.
    trees: its inputs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  (axes,) = nn.spmd.logical_to_mesh_axes(("batch",)) or (None,)
  if mesh.empty or axes is None:
    return function(*trees)
  axes = (axes,) if isinstance(axes, str) else tuple(axes)
  devices = math.prod(mesh.shape[axis] for axis in axes)
  if devices == 1 or jax.tree.leaves(trees)[0].shape[0] % devices:
    return function(*trees)
  spec = PartitionSpec(axes)
  return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(*trees)
