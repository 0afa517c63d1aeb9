"""Normalisations, all of them computed in float32 and returned in the dtype of their input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat
from jaxtyping import Array, Float

from d4s_jax.layers.partitioning import partitioned


def layer_norm(x: Float[Array, "*b d"], epsilon: float = 1e-6) -> Float[Array, "*b d"]:
  """Zero mean and unit variance over the last axis, without parameters; returns float32."""
  x = x.astype(jnp.float32)
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + epsilon)


def modulate(
  x: Float[Array, "b n d"], shift: Float[Array, "b k d"], scale: Float[Array, "b k d"]
) -> Float[Array, "b n d"]:
  """Scales by 1 + `scale`, then shifts; each of k equal runs of tokens has its own row."""
  return x * (1.0 + over_tokens(scale, x)) + over_tokens(shift, x)


def over_tokens(x: Float[Array, "b k d"], like: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
  """Repeats each of k rows over n / k consecutive tokens, so that it fits `like`."""
  tokens, rows = like.shape[1], x.shape[1]
  if tokens % rows:
    raise ValueError(
      f"{rows} modulations don't divide {tokens} tokens; expected one a sample, frame or token."
    )
  return repeat(x, "b k d -> b (k m) d", m=tokens // rows)


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
  """x / sqrt(mean(x^2) + epsilon) * scale over the last axis."""

  epsilon: float = 1e-6
  axis_name: str | None = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Normalises; the result has the dtype of `x`."""
    scale = self.param("scale", partitioned(nn.initializers.ones, self.axis_name), x.shape[-1:])
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normal = wide * jax.lax.rsqrt(mean_square + self.epsilon)
    return (normal * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


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
