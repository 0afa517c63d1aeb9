"""Structural similarity of images (Wang et al., 2004)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The window of the paper: 11 x 11 pixels, a Gaussian of 1.5; constants for a range of 1.
_SIDE, _SIGMA = 11, 1.5
_FIRST, _SECOND = 0.01**2, 0.03**2


def ssim(image: Float[Array, "*b h w 3"], target: Float[Array, "*b h w 3"]) -> Float[Array, "*b"]:
  """Mean SSIM of RGB in [0, 1], over the pixels whose whole window is in the picture.

  Raises:
    ValueError: a side is shorter than the window.
  """
  *batch, height, width, _ = image.shape
  if min(height, width) < _SIDE:
    raise ValueError(f"Images of {height}x{width}; SSIM needs {_SIDE} pixels a side.")
  x, y = (a.astype(jnp.float32).reshape(-1, height, width, 3) for a in (image, target))
  moments = _blurred(jnp.concatenate([x, y, x * x, y * y, x * y], axis=-1))
  mean_x, mean_y, xx, yy, xy = jnp.split(moments, 5, axis=-1)
  covariance = xy - mean_x * mean_y
  spread = xx - mean_x**2 + yy - mean_y**2
  ratio = (2 * mean_x * mean_y + _FIRST) * (2 * covariance + _SECOND)
  ratio = ratio / ((mean_x**2 + mean_y**2 + _FIRST) * (spread + _SECOND))
  return jnp.mean(ratio, axis=(1, 2, 3)).reshape(batch)


def _blurred(x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
  """Weighted means over the window, along columns and then along rows."""
  offset = np.arange(_SIDE) - _SIDE // 2
  window = np.exp(-(offset**2) / (2 * _SIGMA**2))
  window = (window / window.sum()).tolist()
  # Sums of slices: XLA's grouped convolutions are slow on a CPU, their gradients most of all.
  for axis in (1, 2):
    kept = x.shape[axis] - _SIDE + 1
    slices = (jax.lax.slice_in_dim(x, i, i + kept, axis=axis) for i in range(_SIDE))
    x = functools.reduce(jnp.add, (w * part for w, part in zip(window, slices)))
  return x
