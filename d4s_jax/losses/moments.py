"""Keeps latents at mean 0 and deviation 1, as a noise schedule expects them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def moments(latents: Float[Array, "b f h w c"]) -> Float[Array, ""]:
  """Squared deviation of each channel's mean from 0 and of its standard deviation from 1.

  Takes the place of the Kullback-Leibler term of a variational autoencoder: ours trains without
  sampling, and its latents must come out normalised (ours; the paper uses a published autoencoder).
  """
  latents = latents.astype(jnp.float32)
  mean = jnp.mean(latents, axis=(0, 1, 2, 3))
  deviation = jnp.sqrt(jnp.var(latents, axis=(0, 1, 2, 3)) + 1e-6)
  return jnp.mean(jnp.square(mean) + jnp.square(deviation - 1))
