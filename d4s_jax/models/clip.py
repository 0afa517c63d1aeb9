"""The two encoders of CLIP: of pictures of any size (OpenCLIP ViT-H/14 in Wan2.1-I2V), of text."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from d4s_jax.layers.attention import attention
from d4s_jax.layers.convolution import PatchConv3d
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm
from d4s_jax.layers.partitioning import constrain, partitioned
from d4s_jax.layers.transformer import scan_blocks

# Of the pixels that CLIP was trained on.
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
_STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
_EPSILON = 1e-5
ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  # OpenAI's own models.
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def preprocess(image: Float[Array, "b h w 3"], size: int) -> Float[Array, "b {size} {size} 3"]:
  """The square in the middle of an image in [0, 1], with the mean and deviation of CLIP's pixels.

  The shorter side is resized to `size` by bicubic interpolation with antialiasing, in float32.
  `CLIPImageProcessor` rounds and clips to 8 bits after each of rows and columns, in an order that
  depends on the version of Pillow; beside edges from black to white this shows.
  """
  height, width = image.shape[1:3]
  short = min(height, width)
  height, width = height * size // short, width * size // short
  image = jax.image.resize(image, (len(image), height, width, 3), "cubic").clip(0.0, 1.0)
  top, left = (height - size) // 2, (width - size) // 2
  image = image[:, top : top + size, left : left + size]
  return (image - MEAN.reshape(1, 1, 1, 3)) / _STD.reshape(1, 1, 1, 3)


class CLIPVision(nn.Module):
  """Patch embedding, identical blocks over the patches and a class token.

  Attributes:
    dim: width.
    ffn_dim: inner width of the feed-forward networks.
    heads: attention heads.
    depth: number of blocks.
    size: pixels a side of the square it looks at.
    patch: pixels a side of a patch.
    projection_dim: width of the projected embedding; None for a model without projection.
    dtype: compute dtype.
    activation: of the feed-forward networks, a key of ACTIVATIONS.
  """

  dim: int
  ffn_dim: int
  heads: int
  depth: int
  size: int = 224
  patch: int = 14
  projection_dim: int | None = None
  dtype: DTypeLike = jnp.float32
  activation: str = "gelu"

  @nn.compact
  def __call__(
    self, image: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b n {self.dim}"], Float[Array, "b e"]]:
    """Embeds images in [0, 1].

    Returns:
      The tokens before the last block, class token first, which say the most about the picture's
      parts; and one embedding of the picture as a whole, projected if the model does that.
    """
    if self.size % self.patch:
      raise ValueError(
        f"An image of {self.size} pixels a side has no whole patches of {self.patch}; choose a size"
        " that the patch divides."
      )
    pixels = preprocess(image, self.size)[:, None]
    shape = (1, self.patch, self.patch)
    patches = PatchConv3d(self.dim, shape, self.dtype, use_bias=False, name="patch_embedding")
    x = rearrange(patches(pixels), "b 1 h w d -> b (h w) d")
    first = self._table("class_embedding", "embed", shape=(self.dim,)).reshape(1, 1, -1)
    x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.dim)), x], axis=1)
    positions = self._table("positions", None, "embed", shape=x.shape[1:])
    x = LayerNorm(epsilon=_EPSILON, name="norm_in")(x + positions[None])

    stack = scan_blocks(CLIPBlock, self.depth, inputs=0, remat="products")
    stack = stack(self.heads, self.ffn_dim, self.dtype, self.activation, name="blocks")
    (before_last, x), _ = stack((x, x))
    embedding = LayerNorm(epsilon=_EPSILON, name="norm")(x[:, 0])
    if self.projection_dim is not None:
      project = dense(
        self.projection_dim, "embed", None, dtype=self.dtype, use_bias=False, name="projection"
      )
      embedding = project(embedding)
    return before_last, embedding

  def _table(self, name: str, *axes: str | None, shape: tuple[int, ...]) -> Array:
    init = partitioned(nn.initializers.normal(self.dim**-0.5), *axes)
    return self.param(name, init, shape).astype(self.dtype)


class CLIPText(nn.Module):
  """Blocks over tokens, each of which sees those before it; the last one stands for the text.

  Attributes:
    vocabulary: number of token ids; the highest ends a text.
    length: most tokens.
    dim: width.
    ffn_dim: inner width of the feed-forward networks.
    heads: attention heads.
    depth: number of blocks.
    projection_dim: width of the embedding.
    activation: of the feed-forward networks, a key of ACTIVATIONS.
  """

  vocabulary: int
  length: int
  dim: int
  ffn_dim: int
  heads: int
  depth: int
  projection_dim: int
  activation: str = "quick_gelu"

  @nn.compact
  def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b {self.projection_dim}"]:
    """One embedding of each text; what follows its end doesn't count."""
    table = partitioned(nn.initializers.normal(0.02), "mlp", "embed")
    table = self.param("tokens", table, (self.vocabulary, self.dim))
    positions = partitioned(nn.initializers.normal(0.01), None, "embed")
    positions = self.param("positions", positions, (self.length, self.dim))
    length = tokens.shape[1]
    x = jnp.take(table, tokens, axis=0) + positions[None, :length]
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
    stack = scan_blocks(CLIPBlock, self.depth, inputs=1, remat="products")
    stack = stack(self.heads, self.ffn_dim, jnp.float32, self.activation, name="blocks")
    (_, x), _ = stack((x, x), mask)
    x = LayerNorm(epsilon=_EPSILON, name="norm")(x)
    last = jnp.argmax(tokens, axis=1)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    return dense(self.projection_dim, "embed", None, use_bias=False, name="projection")(x)


class CLIPBlock(nn.Module):
  """Self-attention and a feed-forward network, both normalised before."""

  heads: int
  ffn_dim: int
  dtype: DTypeLike
  activation: str = "gelu"
  epsilon: float = _EPSILON

  @nn.compact
  def __call__(
    self,
    carry: tuple[Float[Array, "b n d"], Float[Array, "b n d"]],
    mask: Bool[Array, "1 1 n n"] | None = None,
  ) -> tuple[tuple[Float[Array, "b n d"], Float[Array, "b n d"]], None]:
    """The scan carries the tokens before and after the last block, and collects nothing.

    Where the mask is False a token (row) doesn't see another (column).
    """
    before = x = carry[1]
    dim = x.shape[-1]

    def project(tokens, name):
      y = dense(dim, "embed", "heads", dtype=self.dtype, name=name)(tokens)
      return rearrange(y, "b n (h d) -> b n h d", h=self.heads)

    y = LayerNorm(epsilon=self.epsilon, name="attention_norm")(x)
    y = attention(*(project(y, name) for name in ("query", "key", "value")), mask=mask)
    y = rearrange(y, "b n h d -> b n (h d)")
    x = x + dense(dim, "heads", "embed", dtype=self.dtype, name="attention_out")(y)

    y = LayerNorm(epsilon=self.epsilon, name="mlp_norm")(x)
    y = dense(self.ffn_dim, "embed", "mlp", dtype=self.dtype, name="mlp_in")(y)
    y = ACTIVATIONS[self.activation](y)
    x = x + dense(dim, "mlp", "embed", dtype=self.dtype, name="mlp_out")(y)
    return (before, constrain(x, "batch", "text", None)), None
