"""Rendering of Gaussians: `render` is the one entry, backends are rows of a table."""

import functools
import math
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d4s_jax.geometry.cameras import MODELS
from d4s_jax.layers import partitioning
from d4s_jax.render import cpu, cuda, reference, tiled
from d4s_jax.render.backend import BackendUnavailable
from d4s_jax.render.projection import BLUR
from d4s_jax.types import Cameras, Gaussians, Rendering

# Each draws Gaussians [v n] into cameras [v] and returns colour, depth and 1 summed with the
# weights of alpha compositing ([v h w 5]) and the number of dropped intersections ([v]).
BACKENDS = {
  "reference": reference.rasterize,
  "tiled": tiled.rasterize,
  "cpu": cpu.rasterize,
  "cuda": cuda.rasterize,
}
# The native backends count tiles in 16 bits.
_LONGEST_SIDE = 2**16
# What "auto" takes on a platform if it can be had, and the function that raises if it can't.
_NATIVE = {
  "cpu": ("cpu", cpu.library.load),
  "gpu": ("cuda", cuda.library.ensure),
  "cuda": ("cuda", cuda.library.ensure),
}


def render(
  gaussians: Gaussians,
  cameras: Cameras,
  *,
  backend: str = "auto",
  background: Sequence[float] | Float[Array, "*#b 3"] = (0.0, 0.0, 0.0),
  capacity: int | None = None,
  antialiased: bool = False,
  blur: float = BLUR,
) -> Rendering:
  """Draws Gaussians into cameras, all views and times in one call; differentiable.

  The leading axes of `gaussians` and `cameras` broadcast against each other: Gaussians [b 1 n]
  with cameras [b v] are one scene seen from v views, [b v n] has other Gaussians for each view (for
  times). Differentiable in the Gaussians, the poses, the intrinsics and the background.

  Semantics are gsplat's classic mode: 0.3 square pixels of blur, near plane at 0.01 m, opacity at a
  pixel capped at 0.999 and skipped below 1/255, a pixel finished before its transmittance would
  fall to 1e-4, splats ordered by the depth of their centres. A Gaussian with a number that is not
  finite is not drawn.

  Args:
    gaussians: what to draw; an opacity below 1/255 makes a slot free.
    cameras: the views; the image size is theirs.
    backend: a name in BACKENDS, or "auto": the native one of the platform, else "tiled". The
      platform is that of the mesh in use or of JAX's default device.
    background: RGB behind everything, one for all views or one for each.
    capacity: the most Gaussian-tile intersections of one view that there is room for; those of the
      farthest Gaussians are dropped and counted in `Rendering.overflow`. By default `tiled` and
      `cuda` have room for about 16 times the number of Gaussians, `cpu` takes what it needs.
      Tiles are 32 x 16 pixels in `cpu`, 16 x 16 in `cuda`, and 8 x 8 in small images or 16 x 16 in
      `tiled`; `cuda` drops a Gaussian whole, the others as many of its intersections as needed.
    antialiased: gsplat's mode of that name: splats smaller than a pixel are fainter instead of
      wider than they are.
    blur: variance in square pixels that is added to every splat, gsplat's eps2d. A picture n times
      as large as the one that Gaussians were fitted to shows the same with 0.3 n^2, where 0.3 opens
      gaps between splats that were narrower than a pixel.

  Raises:
    BackendUnavailable: the backend can't be had here; says why, and what to do.
    ValueError: the backend or the camera model is unknown, the capacity or the blur is not
      positive, a picture is too large, or the leading axes don't broadcast.
  """
  if backend not in ("auto", *BACKENDS):
    raise ValueError(f"Unknown backend {backend!r}; expected 'auto' or one of {sorted(BACKENDS)}.")
  if capacity is not None and capacity < 1:
    raise ValueError(f"capacity is {capacity}; expected at least 1 intersection for each view.")
  if not blur > 0:
    raise ValueError(f"blur is {blur}; expected a positive number of square pixels.")
  if cameras.model not in MODELS:
    raise ValueError(f"Unknown camera model {cameras.model!r}; expected one of {MODELS}.")
  if max(cameras.height, cameras.width) > _LONGEST_SIDE:
    raise ValueError(
      f"Pictures of {cameras.width} x {cameras.height} pixels; expected at most {_LONGEST_SIDE} on"
      " each side."
    )
  if backend == "cpu" and partitioning.platform() != "cpu":
    raise BackendUnavailable(
      f"The cpu renderer can't draw on {partitioning.platform()!r}; use 'auto'."
    )
  gaussians, cameras = jax.tree.map(_single, (gaussians, cameras))
  leading = _leading_axes(gaussians, cameras)
  flat_gaussians = _flatten(gaussians, gaussians.means.ndim - 2, leading)
  flat_cameras = _flatten(cameras, cameras.intrinsics.ndim - 2, leading)
  rasterize = BACKENDS[_automatic() if backend == "auto" else backend]
  rasterize = functools.partial(rasterize, capacity=capacity, antialiased=antialiased, blur=blur)
  layers, overflow = partitioning.per_device(rasterize, flat_gaussians, flat_cameras, axis="views")

  layers = layers.reshape(*leading, *layers.shape[1:])
  colour, depth, alpha = layers[..., :3], layers[..., 3], layers[..., 4]
  covered = alpha > 0
  background = jnp.asarray(background, layers.dtype)
  background = jnp.broadcast_to(background, (*leading, 3))[..., None, None, :]
  return Rendering(
    image=colour + (1 - alpha)[..., None] * background,
    depth=jnp.where(covered, depth / jnp.where(covered, alpha, 1.0), 0.0),
    alpha=alpha,
    overflow=overflow.reshape(leading),
  )


def _automatic() -> str:
  """The backend for the platform that is traced for."""
  if partitioning.platform() not in _NATIVE:
    return "tiled"
  name, load = _NATIVE[partitioning.platform()]
  try:
    load()
  except BackendUnavailable as error:
    _note(f"note: drawing with the slower tiled renderer. {error}")
    return "tiled"
  return name


def _single(array):
  """Half precision as float32; what is float32 or float64 stays."""
  array = jnp.asarray(array)
  return array.astype(jnp.float32) if array.dtype in (jnp.bfloat16, jnp.float16) else array


@functools.cache
def _note(text: str) -> None:
  """Says something once."""
  print(text, file=sys.stderr)


def _leading_axes(gaussians, cameras):
  ours, theirs = gaussians.means.shape[:-2], cameras.intrinsics.shape[:-2]
  try:
    return jnp.broadcast_shapes(ours, theirs)
  except ValueError as error:
    raise ValueError(
      f"Gaussians with leading axes {ours} and cameras with {theirs} don't broadcast; for one scene"
      " seen from many views use Gaussians [b 1 n] and cameras [b v]."
    ) from error


def _flatten(tree, rank, leading):
  """Broadcasts the first `rank` axes of every array to `leading` and makes one axis of them."""

  def flatten(array):
    inner = array.shape[rank:]
    # Not -1: there may be no Gaussians.
    return jnp.broadcast_to(array, (*leading, *inner)).reshape(math.prod(leading), *inner)

  return jax.tree.map(flatten, tree)
