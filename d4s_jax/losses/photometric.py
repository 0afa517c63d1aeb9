"""Colour error of rendered views."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def photometric(
  image: Float[Array, "*b h w 3"], target: Float[Array, "*b h w 3"]
) -> Float[Array, ""]:
  """Mean squared error of RGB in [0, 1] (Diff4Splat, first part of L_photo)."""
  return jnp.mean(jnp.square(image.astype(jnp.float32) - target.astype(jnp.float32)))
