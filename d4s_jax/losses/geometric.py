"""Shape of rendered depth: correlation with the truth, and smoothness.

Both parts are blind to the scale of depth. Depths are divided by their detached mean first, which
changes neither value nor gradient of the correlation and makes every threshold below relative.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Squared relative deviation: depth that varies by less than 0.1% of its mean is flat. Bounds the
# gradient of the correlation of a nearly flat rendering.
EPSILON = 1e-6
MIN_ALPHA = 0.5


def geometric(
  rendered: Float[Array, "*b h w"],
  alpha: Float[Array, "*b h w"],
  depth: Float[Array, "*b h w"],
  *,
  smoothness: float = 0.1,
) -> Float[Array, ""]:
  """1 - correlation of rendered and true depth, plus total variation (Diff4Splat, L_geo).

  Args:
    rendered: expected z-depth, normalised by alpha.
    alpha: accumulated opacity; pixels at 0.5 and below are not part of any surface.
    depth: true z-depth; 0 where it is unknown.
    smoothness: weight of the total variation. The paper states none; 0.1 keeps it below the
      correlation early in training.
  """
  covered = alpha > MIN_ALPHA
  correlation = correlation_distance(rendered, depth, covered & (depth > 0))
  return correlation + smoothness * total_variation(rendered, covered)


def log_depth(
  predicted: Float[Array, "*b f H W"], depth: Float[Array, "*b f h w"]
) -> Float[Array, ""]:
  """Mean |log(predicted / true)| over the cells of a map whose true depth is known.

  Args:
    predicted: positive z-depth of each cell.
    depth: true z-depth, 0 where it is unknown; `h` and `w` are multiples of `H` and `W`. A cell's
      is that of the pixel at its centre, the lower right one of four.
  """
  rows, columns = (there // here for there, here in zip(depth.shape[-2:], predicted.shape[-2:]))
  depth = depth[..., rows // 2 :: rows, columns // 2 :: columns]
  known = depth > 0
  ratio = jnp.log(jnp.where(known, predicted, 1.0)) - jnp.log(jnp.where(known, depth, 1.0))
  return jnp.sum(_absolute(ratio)) / jnp.maximum(jnp.sum(known), 1)


def correlation_distance(
  rendered: Float[Array, "*b h w"],
  depth: Float[Array, "*b h w"],
  mask: Bool[Array, "*b h w"],
) -> Float[Array, ""]:
  """1 - Pearson correlation over the masked pixels of each view, averaged over views.

  Views without any variation in the true depth say nothing and are left out; 0 if all are.
  A flat rendering has correlation 0 and a finite gradient.
  """
  x, y = _deviation(rendered, mask), _deviation(depth, mask)
  covariance = _masked_mean(x * y, mask)
  x_variance, y_variance = _masked_mean(x * x, mask), _masked_mean(y * y, mask)
  correlation = covariance / jnp.sqrt((x_variance + EPSILON) * (y_variance + EPSILON))
  informative = y_variance > EPSILON
  distances = jnp.where(informative, 1 - correlation, 0.0)
  return jnp.sum(distances) / jnp.maximum(jnp.sum(informative), 1)


def total_variation(
  rendered: Float[Array, "*b h w"], mask: Bool[Array, "*b h w"]
) -> Float[Array, ""]:
  """Mean absolute difference to the right and lower neighbour, relative to the mean depth.

  Only pairs of masked pixels count: an outline against nothing isn't roughness.
  """
  depth, mean = _masked(rendered, mask)
  right = _absolute(depth[..., :, 1:] - depth[..., :, :-1])
  lower = _absolute(depth[..., 1:, :] - depth[..., :-1, :])
  right = _masked_mean(right, mask[..., :, 1:] & mask[..., :, :-1])
  lower = _masked_mean(lower, mask[..., 1:, :] & mask[..., :-1, :])
  return jnp.mean((right + lower) / mean)


def _masked(depth, mask):
  """Depth, 0 outside the mask so that nothing there reaches a gradient, and its detached mean."""
  depth = jnp.where(mask, depth.astype(jnp.float32), 0.0)
  return depth, jnp.maximum(jax.lax.stop_gradient(_masked_mean(depth, mask)), EPSILON)


def _deviation(depth, mask):
  """Deviation of depth from its mean, relative to that mean; 0 outside the mask."""
  depth, mean = _masked(depth, mask)
  relative = depth / mean[..., None, None]
  return jnp.where(mask, relative - _masked_mean(relative, mask)[..., None, None], 0.0)


def _masked_mean(x, mask):
  count = jnp.sum(mask, axis=(-2, -1))
  return jnp.sum(jnp.where(mask, x, 0.0), axis=(-2, -1)) / jnp.maximum(count, 1)


def _absolute(x):
  """|x| with slope 0 at 0, where jnp.abs has slope 1."""
  return x * jax.lax.stop_gradient(jnp.sign(x))
