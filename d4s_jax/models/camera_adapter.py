"""Camera maps to features at latent resolution, and to what they add to the tokens of a DiT."""

import flax.linen as nn
import jax.numpy as jnp
from einops import repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.convolution import PatchConv3d
from d4s_jax.layers.partitioning import partitioned


class CameraAdapter(nn.Module):
  """One causal strided convolution and a group normalisation with a single group.

  The recipe of Diff4Splat's released code: kernel = stride = the strides of the autoencoder, the
  first frame repeated in front, so that it falls on the first latent frame alone.

  Attributes:
    strides: frames, rows, columns a latent.
    features: channels of the output.
    dtype: compute dtype.
  """

  strides: tuple[int, int, int]
  features: int = 48
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, maps: Float[Array, "b F H W c"]) -> Float[Array, "b f h w {self.features}"]:
    """Embeds the maps (Plücker, 6 channels, or flat poses, 12) of all 1 + 4k frames."""
    past = repeat(maps[:, 0], "b h w c -> b p h w c", p=self.strides[0] - 1)
    maps = jnp.concatenate([past, maps], axis=1)
    axes = (None, "channels")
    x = PatchConv3d(self.features, self.strides, self.dtype, axes=axes, name="conv")(maps)
    return nn.GroupNorm(
      num_groups=1,
      epsilon=1e-5,
      dtype=self.dtype,
      use_fast_variance=False,
      scale_init=partitioned(nn.initializers.ones, "channels"),
      bias_init=partitioned(nn.initializers.zeros, "channels"),
      name="norm",
    )(x)


class CameraEmbedding(nn.Module):
  """What the cameras add to the patch embedding: nothing before training, to the last bit.

  Adding a projection of the features is the same as concatenating them to the latents before the
  patch embedding; its new half starts at zero. A sample whose maps are all zero has no camera and
  gets nothing added.
  """

  dim: int
  patch: tuple[int, int, int]
  strides: tuple[int, int, int]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, maps: Float[Array, "b F H W m"]) -> Float[Array, "b f h w {self.dim}"]:
    """Embeds the camera maps of all frames."""
    x = CameraAdapter(self.strides, dtype=self.dtype, name="adapter")(maps)
    x = PatchConv3d(
      self.dim,
      self.patch,
      self.dtype,
      use_bias=False,
      kernel_init=nn.initializers.zeros,
      name="projection",
    )(x)
    return x * jnp.any(maps != 0, axis=(1, 2, 3, 4), keepdims=True)
