"""The specification: dense, sorted, differentiated by JAX.

Every pixel looks at every splat, front to back. One image row at a time is in memory, forward and
backward, so that a few thousand Gaussians are practical; works in float64 as well.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from d4s_jax.render import projection
from d4s_jax.render.projection import Splats
from d4s_jax.types import Cameras, Gaussians


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
    gaussians: one set for each camera.
    cameras: one for each set.
    capacity: unused: nothing here can overflow.
    antialiased: as in `projection.project`.
    blur: likewise.

  Returns:
    Colour, depth and 1, each summed with the weights of alpha compositing, and a zero for each
    view.
  """
  del capacity
  splats = projection.project(gaussians, cameras, antialiased=antialiased, blur=blur)
  layers = jax.lax.map(lambda view: _draw(view, cameras.height, cameras.width), splats)
  return layers, jnp.zeros(len(layers), jnp.int32)


def _draw(splats: Splats, height: int, width: int) -> Float[Array, "h w 5"]:
  """Composites the splats [n] of one view."""
  order = jnp.argsort(splats.depths, stable=True)
  splats = jax.tree.map(lambda x: x[order], splats)
  ones = jnp.ones_like(splats.opacities)
  values = jnp.concatenate([splats.colours, jnp.stack([splats.depths, ones], -1)], -1)
  columns = jnp.arange(width, dtype=values.dtype) + 0.5

  # Without checkpoint, autodiff would keep a number for each pixel and splat.
  @jax.checkpoint
  def row(y):
    weights = _weights(_alphas(splats, columns, y))
    return jnp.einsum("wn,nc->wc", weights, values, precision="highest")

  return jax.lax.map(row, jnp.arange(height, dtype=values.dtype) + 0.5)


def _alphas(splats, columns, y) -> Float[Array, "w n"]:
  """Opacity of each splat at each pixel centre (x, y) of a row; 0 where it is skipped."""
  dx = rearrange(splats.means[:, 0], "n -> 1 n") - rearrange(columns, "w -> w 1")
  dy = rearrange(splats.means[:, 1] - y, "n -> 1 n")
  a, b, c = rearrange(splats.conics, "n abc -> abc 1 n")
  sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
  alphas = rearrange(splats.opacities, "n -> 1 n") * jnp.exp(-jnp.maximum(sigma, 0.0))
  seen = (sigma >= 0) & (alphas >= projection.MIN_ALPHA)
  return jnp.where(seen, jnp.minimum(alphas, projection.MAX_ALPHA), 0.0)


def _weights(alphas: Float[Array, "w n"]) -> Float[Array, "w n"]:
  """Share of each splat in each pixel: its alpha times what the nearer ones let through.

  A splat that would bring the transmittance to MIN_TRANSMITTANCE or below is left out, and all
  behind it: the running product only falls, so that comparing it covers them too.
  """
  after = jnp.cumprod(1 - alphas, axis=-1)
  before = jnp.concatenate([jnp.ones_like(after[:, :1]), after[:, :-1]], axis=-1)
  return jnp.where(after > projection.MIN_TRANSMITTANCE, before * alphas, 0.0)
