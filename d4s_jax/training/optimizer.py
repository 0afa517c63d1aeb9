"""AdamW over flat parameters: warm-up and cosine, clipping, learning-rate groups by path."""

import re
from collections.abc import Sequence

import jax.numpy as jnp
import optax

from d4s_jax.training.stages import split_by_path


def learning_rate(peak: float, warmup: int, steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, then a cosine to 1% of it at `steps`."""
  if not 0 <= warmup < steps:
    raise ValueError(
      f"optimizer.warmup is {warmup}; expected at least 0 and less than {steps=}. For a short run,"
      f" set for example --config.optimizer.warmup={max(steps, 0) // 4}."
    )
  return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end_value=0.01 * peak)


def scale_by_path(groups: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
  """Multiplies the update of each path by the factor of the first group whose pattern matches."""

  def multiplier(path: str) -> float:
    return next((factor for pattern, factor in groups if re.search(pattern, path)), 1.0)

  def update(updates, params=None):
    del params
    return {path: value * multiplier(path) for path, value in updates.items()}

  return optax.stateless(update)


def make_optimizer(
  *,
  peak: float,
  warmup: int,
  steps: int,
  betas: tuple[float, float],
  weight_decay: float,
  clip: float,
  groups: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
  """The optimizer of all stages.

  Args:
    peak: highest learning rate.
    warmup: steps of linear warm-up.
    steps: length of the run, the end of the cosine.
    betas: decay rates of the first and second moment.
    weight_decay: decoupled decay of kernels and embeddings; vectors (biases, norms) have none.
    clip: largest global norm of the gradient.
    groups: (path pattern, learning-rate factor); the first match counts.
  """

  def decayed(params):
    return {path: jnp.ndim(value) > 1 for path, value in params.items()}

  return optax.chain(
    optax.clip_by_global_norm(clip),
    optax.scale_by_adam(*betas),
    optax.add_decayed_weights(weight_decay, decayed),
    optax.scale_by_learning_rate(learning_rate(peak, warmup, steps)),
    scale_by_path(groups),
  )


def check_groups(paths: list[str], groups: Sequence[tuple[str, float]]) -> None:
  """Raises ValueError if a group's pattern matches none of the parameters, trained or frozen."""
  if groups:
    split_by_path(paths, tuple(pattern for pattern, _ in groups))
