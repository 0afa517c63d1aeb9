"""Where parameters lie, and pictures and latents cut over the same devices."""

import math
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import BRANCH, laid_out


def mesh_of(params: Any) -> Mesh | None:
  """The mesh of several devices that arrays lie on; None if they don't."""
  sharding = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
  mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
  return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def shares(mesh: Mesh | None) -> tuple[str, ...]:
  """The axes of a mesh along which parameters are cut: all but that of the passes of guidance."""
  return tuple(axis for axis in mesh.axis_names if axis != BRANCH) if mesh else ()


def beside(params: Any) -> AbstractContextManager[None]:
  """Within it, heads and inner widths of layers are computed where their parameters lie."""
  mesh = mesh_of(params)
  return laid_out(mesh, heads=shares(mesh), mlp=shares(mesh))


def spread(
  x: Float[Array, "b ... h w c"], params: Any, grid: tuple[int, ...]
) -> Float[Array, "b ... h w c"]:
  """Cuts rows, and columns where rows are not enough, over the devices of the parameters.

  Convolutions, and what is computed for each pixel, are then computed for its own part by each
  device; XLA's partitioner has neighbours exchange their borders.

  Args:
    x: pictures or latents.
    params: arrays that lie on a mesh; on others, or on one device, `x` stays as it is.
    grid: rows and columns of the latents: the parts of a picture are those of whole latents.
  """
  mesh = mesh_of(params)
  if mesh is None:
    return x
  devices = mesh.devices.flatten()
  rows = math.gcd(grid[0], len(devices))
  columns = math.gcd(grid[1], len(devices) // rows)
  mesh = Mesh(devices.reshape(rows, columns, -1), ("rows", "columns", "copies"))
  spec = PartitionSpec(*[None] * (x.ndim - 3), "rows", "columns")
  return jax.device_put(x, NamedSharding(mesh, spec))
