"""The objective of the video model."""

import einops
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def flow_matching(
  prediction: Float[Array, "b f h w c"],
  target: Float[Array, "b f h w c"],
  *,
  mask: Bool[Array, "b f"] | None = None,
) -> Float[Array, ""]:
  """Mean squared error of the predicted velocity (Diff4Splat, L_FM).

  Args:
    prediction: predicted velocity.
    target: true velocity, noise minus clean latents.
    mask: latent frames that count; a clean conditioning frame has nothing to predict. None: all.
  """
  squared = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
  frames = einops.reduce(squared, "b f h w c -> b f", "mean")
  mask = jnp.ones(frames.shape, bool) if mask is None else mask
  kept = jnp.where(mask, frames, 0.0)
  samples = jnp.sum(kept, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
  return jnp.mean(samples)
