"""Training losses: arrays in, one float32 scalar out.

The whole objective is a weighted sum of the terms in `LOSSES` (Diff4Splat, section "Losses"):
flow matching 1; MSE 1 and LPIPS 0.5, which together are L_photo; geometry 0.5; motion 2.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from d4s_jax.losses.flow_matching import flow_matching
from d4s_jax.losses.geometric import geometric, log_depth
from d4s_jax.losses.moments import moments
from d4s_jax.losses.motion import motion
from d4s_jax.losses.perceptual import perceptual
from d4s_jax.losses.photometric import photometric

# In the order in which a step computes them.
LOSSES = {
  "flow_matching": flow_matching,
  "photometric": photometric,
  "perceptual": perceptual,
  "geometric": geometric,
  "moments": moments,
  "depth": log_depth,
  "motion": motion,
}


def total(weights: Mapping[str, float], terms: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
  """The weighted sum of the terms; `terms` itself is what gets logged.

  Args:
    weights: weight of each term.
    terms: value of each term, exactly those that have a weight.

  Raises:
    ValueError: if a term has no weight or a weight has no term.
  """
  if set(weights) != set(terms) or not terms:
    raise ValueError(
      f"Loss weights {sorted(weights)} and loss terms {sorted(terms)} must name the same terms; "
      f"give each term a weight (of {sorted(LOSSES)}) and drop weights of terms not computed."
    )
  return jnp.sum(jnp.stack([weights[name] * terms[name] for name in sorted(terms)]))
