"""Displacement of tracked points."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

FORMS = ("paper", "huber")
# Inside the square root, in square metres: a displacement error of a micrometre is none.
EPSILON = 1e-12


def motion(
  predicted: Float[Array, "*b n 3"],
  true: Float[Array, "*b n 3"],
  valid: Bool[Array, "*b n"],
  *,
  form: str = "paper",
  data_weight: float = 2.0,
  transition: float = 0.25,
) -> Float[Array, ""]:
  """Error of the predicted displacement of tracked points (Diff4Splat, L_motion).

  "paper": the mean over valid points of lambda_m ||predicted - true||_2 + ||predicted||_1. Its
  minimum over static and moving points together is near their median, no motion, and training
  leaves that slowly.

  "huber", to start training from: lambda_m times the mean of a Huber function of the error's norm,
  e^2 / 2t below the transition t and e - t/2 above, and no shrinkage. Point j weighs
  1 + ||true_j|| / mean ||true||, so moving points, few as they are, carry half of the weight and
  more. As t goes to 0 this approaches the first term of "paper".

  Args:
    predicted: displacement in metres.
    true: displacement in metres; anything where `valid` is False.
    valid: points that count; the loss is 0 without any.
    form: "paper" or "huber".
    data_weight: lambda_m, weight of the error against the shrinkage.
    transition: t in metres.

  Raises:
    ValueError: if `form` is unknown.
  """
  if form not in FORMS:
    raise ValueError(f"Unknown form of the motion loss {form!r}; expected one of {FORMS}.")
  predicted = jnp.where(valid[..., None], predicted.astype(jnp.float32), 0.0)
  true = jnp.where(valid[..., None], true.astype(jnp.float32), 0.0)
  error = _norm(predicted - true)
  if form == "paper":
    # Not jnp.abs: its slope at 0, where an untrained head stands, is 1.
    absolute = predicted * jax.lax.stop_gradient(jnp.sign(predicted))
    shrinkage = jnp.sum(absolute, axis=-1)
    return _mean(data_weight * error + shrinkage, valid.astype(jnp.float32))
  huber = jnp.where(
    error < transition, jnp.square(error) / (2 * transition), error - transition / 2
  )
  return data_weight * _mean(huber, _motion_weights(true, valid))


def _motion_weights(true, valid):
  """1 + the length of the true displacement relative to the mean of all valid points."""
  length = jnp.linalg.norm(true, axis=-1)
  mean = _mean(length, valid.astype(jnp.float32))
  relative = jnp.where(mean > 0, length / jnp.where(mean > 0, mean, 1.0), 0.0)
  return jax.lax.stop_gradient(jnp.where(valid, 1.0 + relative, 0.0))


def _norm(x):
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) + EPSILON)


def _mean(x, weights):
  return jnp.sum(x * weights) / jnp.maximum(jnp.sum(weights), 1.0)
