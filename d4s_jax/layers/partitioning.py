"""Logical axis names: how models say which axis is which without knowing the mesh.

`training.sharding` maps these names to mesh axes. Outside a mesh both functions change nothing.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

# views: pictures that are drawn; gathered, spread_heads: tokens and heads inside self-attention.
AXES = ("batch", "views", "frames", "tokens", "gathered", "text", "embed", "mlp", "heads")
AXES += ("spread_heads", "channels", "layers")
# Mesh axis along which the two passes of guidance lie side by side, where a mesh has it.
BRANCH = "branch"


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


@contextlib.contextmanager
def laid_out(mesh: Mesh | None, **axes: Any) -> Iterator[None]:
  """Within it, logical axes lie along the axes of `mesh` that are named for them, others whole.

  Args:
    mesh: the devices; None changes nothing.
    **axes: mesh axis, or several, of a logical axis.
  """
  if mesh is None:
    yield
    return
  _check(tuple(axes))
  rules = [(axis, axes.get(axis)) for axis in AXES]
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield


def platform() -> str:
  """Of the mesh in use or of JAX's default device."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def dividing(name: str, size: int, *, strict: bool = False) -> tuple[str, ...]:
  """The axes of the mesh in use along which an array's axis of that size can be cut.

  Args:
    name: the logical axis.
    size: its length.
    strict: all of the axes must divide it; else the first ones that do are taken.

  Raises:
    ValueError: they don't.
  """
  devices = _devices(name)
  taken: tuple[str, ...] = ()
  for axis, count in devices.items():
    if size % (math.prod(devices[x] for x in taken) * count) == 0:
      taken = (*taken, axis)
    elif strict:
      sizes = " x ".join(f"{axis} {count}" for axis, count in devices.items())
      raise ValueError(
        f"{size} {name} can't be cut over mesh axes {sizes}; expected a multiple of their product:"
        " change these axes, or the size of the clip or of the model."
      )
  return taken


def divides(name: str, size: int) -> bool:
  """Whether all devices of a logical axis divide an array's axis of that size."""
  return size % math.prod(_devices(name).values()) == 0


def _devices(name: str) -> dict[str, int]:
  """The axes of the mesh in use that a logical axis is cut along, and their devices, above 1."""
  mesh = jax.sharding.get_abstract_mesh()
  (found,) = nn.spmd.logical_to_mesh_axes((name,)) or (None,)
  found = (found,) if isinstance(found, str) else found or ()
  return {} if mesh.empty else {axis: mesh.shape[axis] for axis in found if mesh.shape[axis] > 1}


def per_device(function: Callable[..., Any], *trees: Any, axis: str = "batch") -> Any:
  """Calls `function` on every device's own part of arrays that lie along a logical axis.

  For code that the partitioner cannot cut, such as one sort over all views, and would gather for.
  Outside a mesh, on one device, or where no devices divide the first axis, it is one call on whole
  arrays.

  Args:
    function: of pytrees of arrays, to pytrees of arrays; each row of the first axis of its results
      depends on the same row of its inputs alone.
    trees: its inputs.
    axis: logical name of their first axis.
  """
  axes = dividing(axis, jax.tree.leaves(trees)[0].shape[0])
  if not axes:
    return function(*trees)
  spec = PartitionSpec(axes)
  return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(*trees)
