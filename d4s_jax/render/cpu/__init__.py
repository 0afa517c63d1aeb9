"""The renderer for CPUs: C++ kernels called through XLA's foreign-function interface.

Projection is XLA's (`render.projection`), as in `tiled`; listing and compositing splats, and their
gradient, are in `csrc`. Tiles share XLA's threads, eight pixels share an instruction, and of each
row of a tile only the pixels are looked at that a splat's ellipse reaches. Equal inputs give equal
bits, whatever the number of threads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d4s_jax.render import projection
from d4s_jax.render.cpu import library
from d4s_jax.render.projection import Splats
from d4s_jax.types import Cameras, Gaussians

# Without a capacity, memory is the limit.
_UNLIMITED = 2**31 - 1


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
    capacity: the most Gaussian-tile intersections of one view; unlimited if None.
    antialiased: as in `projection.project`.
    blur: likewise.

  Returns:
    Colour, depth and 1, each summed with the weights of alpha compositing, and the number of
    intersections of each view that were dropped for want of capacity.

  Raises:
    BackendUnavailable: the library was not built.
    ValueError: the numbers are not float32.
  """
  library.load()
  splats = projection.project(gaussians, cameras, antialiased=antialiased, blur=blur)
  for array in jax.tree.leaves(splats):
    if array.dtype != jnp.float32:
      raise ValueError(f"The cpu renderer draws float32, not {array.dtype}; use reference.")
  return _composite(cameras.height, cameras.width, capacity or _UNLIMITED, splats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _composite(height: int, width: int, capacity: int, splats: Splats):
  layers, _, _, overflow = _draw(height, width, capacity, splats, traced=False)
  return layers, overflow


def _composite_forward(height, width, capacity, splats):
  layers, transmittance, last, overflow = _draw(height, width, capacity, splats, traced=True)
  return (layers, overflow), (splats, transmittance, last)


def _composite_backward(height, width, capacity, residuals, gradients):
  del height, width
  splats, transmittance, last = residuals
  like = [splats.means, splats.conics, splats.depths, splats.opacities, splats.colours]
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like]
  call = jax.ffi.ffi_call(library.TRANSPOSE, shapes, vmap_method="broadcast_all")
  means, conics, depths, opacities, colours = call(
    *_inputs(splats), transmittance, last, gradients[0], capacity=np.int64(capacity)
  )
  return (
    Splats(
      means=means,
      conics=conics,
      extents=jnp.zeros_like(splats.extents),
      depths=depths,
      opacities=opacities,
      colours=colours,
    ),
  )


_composite.defvjp(_composite_forward, _composite_backward)


def _draw(height: int, width: int, capacity: int, splats: Splats, *, traced: bool) -> Any:
  """Layers, overflow, and what the backward pass needs, which is empty unless `traced`."""
  views = splats.depths.shape[0]
  trace = (views, height, width) if traced else (0,)
  shapes = (
    jax.ShapeDtypeStruct((views, height, width, 5), jnp.float32),
    jax.ShapeDtypeStruct(trace, jnp.float32),
    jax.ShapeDtypeStruct(trace, jnp.int32),
    jax.ShapeDtypeStruct((views,), jnp.int32),
  )
  call = jax.ffi.ffi_call(library.DRAW, shapes, vmap_method="broadcast_all")
  return call(*_inputs(splats), capacity=np.int64(capacity))


def _inputs(splats: Splats):
  return (
    splats.means,
    splats.conics,
    splats.extents,
    splats.depths,
    splats.opacities,
    splats.colours,
  )
