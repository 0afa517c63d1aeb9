"""Where parameters lie, and pictures and latents cut over the same devices."""

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
  return x if mesh is None else jax.device_put(x, tiles(mesh, x.ndim, grid))


def tiles(mesh: Mesh, axes: int, grid: tuple[int, ...]) -> NamedSharding:
  """How `spread` lays out an array of that many axes.

  On the mesh of the parameters: programs with kernels of their own take arrays of one mesh only.
  """
  rows: tuple[str, ...] = ()
  columns: tuple[str, ...] = ()
  left = list(grid)
  for axis in mesh.axis_names:
    size = mesh.shape[axis]
    if left[0] % size == 0:
      rows, left[0] = (*rows, axis), left[0] // size
    elif left[1] % size == 0:
      columns, left[1] = (*columns, axis), left[1] // size
  return NamedSharding(mesh, PartitionSpec(*[None] * (axes - 3), rows or None, columns or None))
