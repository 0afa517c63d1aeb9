"""The renderer for NVIDIA GPUs: gsplat's own kernels, called by XLA.

`third_party/gsplat_ffi` has the handlers between XLA and the kernels, and says how they are built.
Gradients are sums of atomic additions: on a GPU equal inputs give equal pixels, but gradients that
differ in their last bits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d4s_jax.geometry import rotations
from d4s_jax.render import binning, projection
from d4s_jax.render.binning import Grid
from d4s_jax.render.cuda import library, operations
from d4s_jax.types import Cameras, Gaussians

# gsplat's.
_TILE = 16
# gsplat's kernel for the gradient of the cameras takes the Gaussians of a view in groups of this.
_GROUP = 32
# Centres (metres) and scales beyond this would overflow float32, as in `projection`.
_LARGEST = 1e6
# The kernels count pixels, splats and slots in 32 bits.
_MOST_SPLATS, _MOST_PIXELS, _MOST_SLOTS = 2**29, 2**29, 2**31


def rasterize(
  gaussians: Gaussians,
  cameras: Cameras,
  *,
  capacity: int | None = None,
  antialiased: bool = False,
  blur: float = projection.BLUR,
) -> tuple[Float[Array, "v h w 5"], Int[Array, "v"]]:
  """Draws Gaussians [v n] into cameras [v].

  Args:
    gaussians: one set for each camera; float32.
    cameras: one for each set.
    capacity: the most Gaussian-tile intersections of one view; `binning.default_capacity` if None.
    antialiased: whether opacities make up for the blur, as in Mip-Splatting.
    blur: as in `projection.project`.

  Returns:
    Colour, depth and 1, each summed with the weights of alpha compositing, and the number of
    intersections of each view that were dropped for want of room.

  Raises:
    BackendUnavailable: there is no GPU, or the kernels can't be compiled; a ValueError.
    ValueError: the numbers are not float32, or there are too many of them for one call.
  """
  library.ensure()
  grid = Grid(height=cameras.height, width=cameras.width, tile=_TILE)
  views, count = gaussians.opacities.shape
  room = max(1, min(capacity or binning.default_capacity(count, grid), count * grid.tiles))
  _check(gaussians, cameras, room)

  gaussians = _drawable(gaussians)
  projected: Any = operations.project(antialiased, blur, gaussians, cameras)
  # Only the colours are used; XLA drops the rest of this projection.
  colours = projection.project(gaussians, cameras).colours
  features = jnp.concatenate([colours, projected.depths[..., None]], -1)
  opacities = gaussians.opacities
  if antialiased:
    opacities = opacities * projected.compensations
  lists = operations.tile_lists(projected, grid, room)
  layers: Any = operations.composite(
    grid, projected.means, projected.conics, features, opacities, lists
  )
  return jnp.concatenate(layers, -1), lists.overflow


def _check(gaussians, cameras, room):
  for array in jax.tree.leaves((gaussians, cameras)):
    if array.dtype != jnp.float32:
      raise ValueError(f"The backend 'cuda' draws float32 arrays; one is {array.dtype}.")
  views, count = gaussians.opacities.shape
  sizes = {
    "Gaussians": (views * count, _MOST_SPLATS),
    "pixels": (views * cameras.height * cameras.width, _MOST_PIXELS),
    "intersections (views times capacity)": (views * room, _MOST_SLOTS),
  }
  for name, (size, most) in sizes.items():
    if size >= most:
      raise ValueError(f"{size} {name} in one call; the kernels count to {most}. Use fewer views.")


def _drawable(gaussians: Gaussians) -> Gaussians:
  """Transparent stand-ins for what can't be drawn, and for slots up to a multiple of 32."""
  usable = jnp.isfinite(jnp.sum(gaussians.quaternions, -1) + gaussians.opacities)
  usable &= jnp.all(jnp.isfinite(gaussians.harmonics), axis=(-2, -1))
  for array in (gaussians.means, gaussians.scales):
    usable &= jnp.all(jnp.abs(array) < _LARGEST, axis=-1)  # False for NaN
  extra = -usable.shape[1] % _GROUP or (_GROUP if usable.shape[1] == 0 else 0)

  def clean(array, stand_in=0.0):
    array = jnp.where(usable.reshape(*usable.shape, *(1,) * (array.ndim - 2)), array, stand_in)
    return jnp.pad(array, ((0, 0), (0, extra), *((0, 0),) * (array.ndim - 2)))

  return dataclasses.replace(
    gaussians,
    means=clean(gaussians.means),
    quaternions=_unit(clean(gaussians.quaternions)),
    scales=clean(gaussians.scales, 1.0),
    opacities=clean(gaussians.opacities),
    harmonics=clean(gaussians.harmonics),
  )


def _unit(quaternions):
  """Unit quaternions; no rotation for those of length 0, which gsplat would divide by."""
  unit = rotations.normalize(quaternions)
  zero = jnp.sum(unit * unit, axis=-1, keepdims=True) < 0.5
  return jnp.where(zero, jnp.asarray([1.0, 0, 0, 0], unit.dtype), unit)
