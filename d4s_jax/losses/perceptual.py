"""Perceptual error of rendered views."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from d4s_jax.losses import lpips


def perceptual(
  image: Float[Array, "*b h w 3"],
  target: Float[Array, "*b h w 3"],
  weights: lpips.Weights,
  *,
  net: str = "vgg",
) -> Float[Array, ""]:
  """Mean LPIPS of RGB in [0, 1] (Diff4Splat, second part of L_photo); see `lpips.distance`."""
  return jnp.mean(lpips.distance(image, target, weights, net=net))
