"""gsplat's kernels as JAX functions with gradients: project, list by tile, composite."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from d4s_jax.geometry import poses
from d4s_jax.render import projection
from d4s_jax.render.binning import Grid
from d4s_jax.types import Cameras, Gaussians


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Projected:
  """Splats as gsplat keeps them; all zero where a Gaussian is not seen.

  Attributes:
    radii: half width and half height of the splat's box, whole pixels.
    means: centres, pixels.
    depths: z-depth of the centres, metres.
    conics: (a, b, c) of the inverse covariance [[a, b], [b, c]].
    compensations: what the opacity is multiplied with when antialiased, else 0.
  """

  radii: Int[Array, "v n 2"]
  means: Float[Array, "v n 2"]
  depths: Float[Array, "v n"]
  conics: Float[Array, "v n 3"]
  compensations: Float[Array, "v n"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TileLists:
  """The splats of each tile of each view, front to back.

  There is one row of tiles below the image; it holds the free slots.

  Attributes:
    splats: view * n + splat, one tile after the other; every view has the same room.
    starts: where each tile's splats begin.
    inside: whether a tile is in the image.
    overflow: intersections of each view that found no room.
  """

  splats: Int[Array, "slots"]
  starts: Int[Array, "v rows columns"]
  inside: Bool[Array, "v rows columns"]
  overflow: Int[Array, "v"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def project(antialiased: bool, blur: float, gaussians: Gaussians, cameras: Cameras) -> Projected:
  """Projects Gaussians [v n] into cameras [v]; n is a multiple of 32. Colours play no part.

  gsplat has no gradient to the intrinsics; it is that of `render.projection`. Where it is not asked
  for, XLA drops the computation.
  """
  return _project_forward(antialiased, blur, gaussians, cameras)[0]


def _project_forward(antialiased, blur, gaussians, cameras):
  v, n = gaussians.opacities.shape
  radii, means, depths, conics, compensations = _call(
    "project_forward",
    [_ints(v, n, 2), _floats(v, n, 2), _floats(v, n), _floats(v, n, 3), _floats(v, n)],
    *_geometry(gaussians),
    gaussians.opacities,
    poses.invert(cameras.world_from_camera),
    cameras.intrinsics,
    near_plane=np.float32(projection.NEAR),
    **_camera_attributes(cameras, antialiased, blur),
  )
  # An overflow in the determinant leaves infinite or no conics; reading one would spoil pixels.
  drawable = (conics[..., 0] > 0) & (conics[..., 2] > 0) & jnp.all(jnp.isfinite(conics), axis=-1)
  projected = Projected(
    radii=jnp.where(drawable[..., None], radii, 0),
    means=means,
    depths=depths,
    conics=conics,
    compensations=jnp.where(drawable, compensations, 0),
  )
  return projected, (gaussians, cameras, projected)


def _project_backward(antialiased, blur, residuals, gradients):
  gaussians, cameras, projected = residuals
  camera_from_world, invert_transposed = jax.vjp(poses.invert, cameras.world_from_camera)
  means, quaternions, scales, view = _call(
    "project_backward",
    [_floats(*x.shape) for x in (*_geometry(gaussians), camera_from_world)],
    *_geometry(gaussians),
    camera_from_world,
    cameras.intrinsics,
    projected.radii,
    projected.conics,
    projected.compensations,
    gradients.means,
    gradients.depths,
    gradients.conics,
    gradients.compensations,
    **_camera_attributes(cameras, antialiased, blur),
  )
  (world_from_camera,) = invert_transposed(view)
  return (
    Gaussians(
      means=means,
      quaternions=quaternions,
      scales=scales,
      opacities=jnp.zeros_like(gaussians.opacities),
      harmonics=jnp.zeros_like(gaussians.harmonics),
    ),
    dataclasses.replace(
      cameras,
      world_from_camera=world_from_camera,
      intrinsics=_intrinsics_gradient(
        *(antialiased, blur, gaussians, cameras, projected, gradients)
      ),
    ),
  )


project.defvjp(_project_forward, _project_backward)


def _intrinsics_gradient(
  antialiased: bool,
  blur: float,
  gaussians: Gaussians,
  cameras: Cameras,
  projected: Projected,
  gradients: Any,
) -> Float[Array, "v 3 3"]:
  """Pulls the gradients of splats back to the intrinsics, through our own projection."""
  # With opacity 1 the opacity of a splat is the compensation.
  opaque = dataclasses.replace(gaussians, opacities=jnp.ones_like(gaussians.opacities))

  def splats(intrinsics):
    moved = dataclasses.replace(cameras, intrinsics=intrinsics)
    drawn = projection.project(opaque, moved, antialiased=antialiased, blur=blur)
    return drawn.means, drawn.conics, drawn.opacities

  _, transposed = jax.vjp(splats, cameras.intrinsics)
  seen = projected.radii[..., 0] > 0
  means, conics, compensations = (
    jnp.where(seen.reshape(*seen.shape, *(1,) * (x.ndim - 2)), x, 0)
    for x in (gradients.means, gradients.conics, gradients.compensations)
  )
  return transposed((means, conics, compensations))[0]


def tile_lists(projected: Projected, grid: Grid, capacity: int) -> TileLists:
  """Lists the splats of every tile; no gradient.

  Where a view has more intersections than `capacity`, its farthest splats are dropped, so that the
  others fit.
  """
  projected = jax.lax.stop_gradient(projected)
  views = len(projected.depths)
  tiles = (views, grid.rows + 1, grid.columns)
  splats, starts, overflow = _call(
    "intersect",
    [_ints(views * capacity), _ints(*tiles), _ints(views)],
    projected.means,
    projected.radii,
    projected.depths,
    tile=np.int32(grid.tile),
  )
  inside = jnp.broadcast_to((jnp.arange(grid.rows + 1) < grid.rows)[None, :, None], tiles)
  return TileLists(splats=splats, starts=starts, inside=inside, overflow=overflow)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def composite(
  grid: Grid,
  means: Float[Array, "v n 2"],
  conics: Float[Array, "v n 3"],
  features: Float[Array, "v n 4"],
  opacities: Float[Array, "v n"],
  lists: TileLists,
) -> tuple[Float[Array, "v h w 4"], Float[Array, "v h w 1"]]:
  """Features summed with the weights of alpha compositing, and the sum of the weights."""
  return _composite_forward(grid, means, conics, features, opacities, lists)[0]


def _composite_forward(grid, means, conics, features, opacities, lists):
  splats = (means, conics, features, opacities)
  pixels = (len(means), grid.height, grid.width)
  image, alphas, last = _call(
    "rasterize_forward",
    [_floats(*pixels, features.shape[-1]), _floats(*pixels, 1), _ints(*pixels)],
    *splats,
    lists.splats,
    lists.starts,
    **_grid_attributes(grid),
  )
  return (image, alphas), (splats, lists, alphas, last)


def _composite_backward(grid, residuals, gradients):
  splats, lists, alphas, last = residuals
  gradients = _call(
    "rasterize_backward",
    [_floats(*x.shape) for x in splats],
    *splats,
    lists.splats,
    lists.starts,
    lists.inside,
    alphas,
    last,
    *gradients,
    **_grid_attributes(grid),
  )
  return (*gradients, None)


composite.defvjp(_composite_forward, _composite_backward)


def _geometry(gaussians):
  return gaussians.means, gaussians.quaternions, gaussians.scales


def _camera_attributes(cameras, antialiased, blur):
  # XLA decodes attributes by their exact types.
  return dict(
    width=np.int32(cameras.width),
    height=np.int32(cameras.height),
    blur=np.float32(blur),
    orthographic=np.bool_(cameras.model == "orthographic"),
    antialiased=np.bool_(antialiased),
  )


def _grid_attributes(grid):
  return dict(width=np.int32(grid.width), height=np.int32(grid.height), tile=np.int32(grid.tile))


def _floats(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _ints(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def _call(name, outputs, *arguments, **attributes):
  call = jax.ffi.ffi_call(f"d4s_jax_gsplat_{name}", outputs, vmap_method="sequential")
  return call(*arguments, **attributes)
