"""Normalisations, all of them computed in float32 and returned in the dtype of their input."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import partitioned


def layer_norm(x: Float[Array, "*b d"], epsilon: float = 1e-6) -> Float[Array, "*b d"]:
  """Zero mean and unit variance over the last axis, without parameters; returns float32."""
  x = x.astype(jnp.float32)
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + epsilon)


def modulate(
  x: Float[Array, "b n d"],
  shift: Float[Array, "b k d"],
  scale: Float[Array, "b k d"],
  ends: tuple[int, ...] = (),
) -> Float[Array, "b n d"]:
  """Scales by 1 + `scale`, then shifts, by the rows of `over_tokens`."""
  shift, scale = (over_tokens(rows, ends, x.shape[1]) for rows in (shift, scale))
  return x * (1.0 + scale) + shift


def over_tokens(
  rows: Float[Array, "b k d"], ends: tuple[int, ...], tokens: int
) -> Float[Array, "b _ d"]:
  """The row of each token, for k runs of tokens; a single row is returned, and broadcasts.

  As many rows as tokens are one for each, and returned as they are.

  They are chosen and not repeated: a choice is computed where it is read, but repeated rows, as
  large as the tokens, went through memory on TPUs.

  Args:
    rows: one for each run.
    ends: the first token after each run but the last, in their order.
    tokens: how many there are.

  Raises:
    ValueError: there are not as many rows as runs.
  """
  if rows.shape[1] == tokens:
    return rows
  if rows.shape[1] != len(ends) + 1:
    raise ValueError(
      f"{rows.shape[1]} modulations for {tokens} tokens in {len(ends) + 1} runs; expected one for"
      f" each token or each run, of which all but the last end: at {ends}."
    )
  place = jnp.arange(tokens)[None, :, None]
  chosen = rows[:, -1:]
  for i, end in reversed(list(enumerate(ends))):
    chosen = jnp.where(place < end, rows[:, i : i + 1], chosen)
  return chosen


def timestep_runs(
  timestep: Float[Array, "b *n"], clean_tokens: int
) -> tuple[Float[Array, "b k"], tuple[int, ...]]:
  """Timesteps of the runs of tokens, and their ends as `over_tokens` takes them.

  Args:
    timestep: of each sample, or of each of its tokens.
    clean_tokens: how many tokens, the first ones, are at timestep 0 instead.

  Raises:
    ValueError: there are clean tokens beside a timestep for each.
  """
  if timestep.ndim == 2:
    if clean_tokens:
      raise ValueError(
        f"{clean_tokens} clean tokens beside a timestep for each token; give them timestep 0 there."
      )
    return timestep, ()
  if not clean_tokens:
    return timestep[:, None], ()
  return jnp.stack([jnp.zeros_like(timestep), timestep], axis=1), (clean_tokens,)


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis with a learnt scale and bias."""

  epsilon: float = 1e-6
  axis_name: str | None = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Normalises; the result has the dtype of `x`."""
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    scale = self.param("scale", partitioned(nn.initializers.ones, self.axis_name), x.shape[-1:])
    bias = self.param("bias", partitioned(nn.initializers.zeros, self.axis_name), x.shape[-1:])
    normal = layer_norm(x, self.epsilon)
    return (normal * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + epsilon) * scale over the last axes.

  Attributes:
    epsilon: keeps the root from zero.
    axis_name: logical name of the scale's axis.
    axes: how many of the last axes are normalised together; their scale is one flat parameter.
  """

  epsilon: float = 1e-6
  axis_name: str | None = "embed"
  axes: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Normalises; the result has the dtype of `x`."""
    own = x.shape[-self.axes :]
    ones = partitioned(nn.initializers.ones, self.axis_name)
    scale = self.param("scale", ones, (math.prod(own),))
    wide = x.astype(jnp.float32)
    over = tuple(range(-self.axes, 0))
    mean_square = jnp.mean(jnp.square(wide), axis=over, keepdims=True)
    normal = wide * jax.lax.rsqrt(mean_square + self.epsilon)
    return (normal * scale.reshape((1,) * (x.ndim - self.axes) + own)).astype(x.dtype)


class ChannelNorm(nn.Module):
  """x / |x| * sqrt(c) * scale over the channels: the normalisation of the Wan autoencoder."""

  @nn.compact
  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Normalises; the result has the dtype of `x`."""
    channels = x.shape[-1]
    scale = self.param("scale", partitioned(nn.initializers.ones, "channels"), (channels,))
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    # The floor is that of |x| >= 1e-12; as a maximum it keeps the gradient finite at x = 0.
    shorter = jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * channels**0.5
    # In the dtype of x: float32 copies of whole videos would be half of what an encoder moves.
    normal = x * shorter.astype(x.dtype)
    return normal * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
