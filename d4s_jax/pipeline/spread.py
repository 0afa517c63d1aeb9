"""Pictures and latents cut by rows and columns over the devices that the parameters lie on.

Convolutions, and what is computed for each pixel, are then computed for its own rows by each
device; XLA's partitioner has neighbours exchange their borders.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float


def devices_of(params: Any) -> Any:
  """The devices that arrays lie on, in the order of their mesh; empty for those without one."""
  sharding = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
  return sharding.mesh.devices.flatten() if isinstance(sharding, NamedSharding) else ()


def spread(
  x: Float[Array, "b ... h w c"], params: Any, grid: tuple[int, int]
) -> Float[Array, "b ... h w c"]:
  """Cuts rows, and columns where rows are not enough, over the devices of the parameters.

  Args:
    x: pictures or latents.
    params: arrays that lie on a mesh; on others, or on one device, `x` stays as it is.
    grid: rows and columns of the latents: the parts of a picture are those of whole latents.
  """
  devices = devices_of(params)
  if len(devices) < 2:
    return x
  rows = math.gcd(grid[0], len(devices))
  columns = math.gcd(grid[1], len(devices) // rows)
  mesh = Mesh(devices.reshape(rows, columns, -1), ("rows", "columns", "copies"))
  spec = PartitionSpec(*[None] * (x.ndim - 3), "rows", "columns")
  return jax.device_put(x, NamedSharding(mesh, spec))
