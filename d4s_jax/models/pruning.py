"""Which Gaussians of a map are kept: a fixed number, so that shapes stay static."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from d4s_jax.layers.partitioning import per_device

# Gaussians below this opacity are switched off, in training and inference (Diff4Splat, pruning).
OPACITY_THRESHOLD = 0.005


def select(
  opacities: Float[Array, "b n"],
  count: int,
  *,
  key: PRNGKeyArray | None = None,
  random_share: float = 0.25,
) -> Int[Array, "b {count}"]:
  """Indices, all different, of the `count` Gaussians to keep.

  Args:
    opacities: of all Gaussians of the map.
    count: the budget M.
    key: None keeps the most opaque ones. With a key, as in training, only a share of
      1 - random_share are the most opaque; the rest is drawn evenly from the others, so that
      Gaussians that are not among the most opaque still get gradients. (Below OPACITY_THRESHOLD
      none does.)
    random_share: the share that is drawn.

  Raises:
    ValueError: the budget is larger than the map.
  """
  total = opacities.shape[-1]
  if count > total:
    raise ValueError(
      f"A budget of {count} Gaussians exceeds the {total} of the map; lower `gaussians` or "
      "enlarge the map."
    )
  opacities = jax.lax.stop_gradient(opacities)
  if key is None:
    return per_device(lambda x: jax.lax.top_k(x, count)[1], opacities)
  drawn = round(random_share * count)

  def pick(opacities, scores):
    # The most opaque get scores above 1 and the others random ones below.
    ranked = jax.lax.top_k(opacities, count - drawn)[1]
    scores = jax.vmap(lambda score, index: score.at[index].set(2.0))(scores, ranked)
    return jax.lax.top_k(scores, count)[1]

  return per_device(pick, opacities, jax.random.uniform(key, opacities.shape))


def switch_off(opacities: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Sets opacities below the threshold to zero; the slots stay."""
  return jnp.where(opacities < OPACITY_THRESHOLD, 0.0, opacities)
