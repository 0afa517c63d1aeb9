"""What the blocks of the Wan transformer are told: time, text and image at their width."""

import flax.linen as nn
import jax
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.embeddings import sinusoidal
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm


class TimeEmbedding(nn.Module):
  """Timesteps to an embedding and to the six modulations of every block."""

  dim: int
  freq_dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, timestep: Float[Array, "b k"]
  ) -> tuple[Float[Array, "b k d"], Float[Array, "b k 6 d"]]:
    """Embeds in float32: bfloat16 can't tell neighbouring timesteps apart."""
    x = dense(self.dim, None, "embed", name="in")(sinusoidal(timestep, self.freq_dim))
    x = dense(self.dim, "embed", None, name="out")(jax.nn.silu(x))
    modulation = dense(6 * self.dim, "embed", None, dtype=self.dtype, name="modulation")
    return x, rearrange(modulation(jax.nn.silu(x)), "b k (s d) -> b k s d", s=6)


class TextEmbedding(nn.Module):
  """Text embeddings to the width of the transformer."""

  dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, text: Float[Array, "b l t"]) -> Float[Array, "b l {self.dim}"]:
    """Two dense layers around a tanh GELU."""
    x = dense(self.dim, None, "embed", dtype=self.dtype, name="in")(text)
    return dense(self.dim, "embed", None, dtype=self.dtype, name="out")(jax.nn.gelu(x))


class ImageEmbedding(nn.Module):
  """Embeddings of the image to the width of the transformer."""

  dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, image: Float[Array, "b m t"]) -> Float[Array, "b m {self.dim}"]:
    """Two dense layers around a GELU, normalised before and after."""
    x = LayerNorm(epsilon=1e-5, axis_name=None, name="norm_in")(image.astype(self.dtype))
    x = dense(image.shape[-1], None, "embed", dtype=self.dtype, name="in")(x)
    x = jax.nn.gelu(x, approximate=False)
    x = dense(self.dim, "embed", None, dtype=self.dtype, name="out")(x)
    return LayerNorm(epsilon=1e-5, name="norm_out")(x)
