"""The image encoder of DINO (Caron et al., 2021): a plain vision transformer, ViT-B/16."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from d4s_jax.layers.convolution import PatchConv3d
from d4s_jax.layers.normalization import LayerNorm
from d4s_jax.layers.partitioning import partitioned
from d4s_jax.layers.transformer import scan_blocks
from d4s_jax.models.clip import CLIPBlock

# Of ImageNet's pixels.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)


class DINO(nn.Module):
  """Patch embedding, a class token and identical blocks; the class token is the embedding.

  Attributes:
    dim: width.
    ffn_dim: inner width of the feed-forward networks.
    heads: attention heads.
    depth: number of blocks.
    size: pixels a side of the square it looks at.
    patch: pixels a side of a patch.
    epsilon: of the normalisations.
  """

  dim: int
  ffn_dim: int
  heads: int
  depth: int
  size: int = 224
  patch: int = 16
  epsilon: float = 1e-12

  @nn.compact
  def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b {self.dim}"]:
    """Embeds images in [0, 1], stretched to the square it looks at."""
    shape = (len(image), self.size, self.size, 3)
    # Bilinear without antialiasing, as VBench does it for frames that are square.
    pixels = jax.image.resize(image.astype(jnp.float32), shape, "linear", antialias=False)
    pixels = (pixels - MEAN.reshape(1, 1, 1, 3)) / _STD.reshape(1, 1, 1, 3)
    patches = PatchConv3d(self.dim, (1, self.patch, self.patch), name="patch_embedding")
    x = rearrange(patches(pixels[:, None]), "b 1 h w d -> b (h w) d")
    init = nn.initializers.normal(0.02)
    first = self.param("class_embedding", partitioned(init, "embed"), (self.dim,))
    first = jnp.broadcast_to(first.reshape(1, 1, -1), (len(x), 1, self.dim))
    x = jnp.concatenate([first, x], axis=1)
    positions = self.param("positions", partitioned(init, None, "embed"), x.shape[1:])
    x = x + positions[None]
    stack = scan_blocks(CLIPBlock, self.depth, inputs=0, remat="products")
    stack = stack(self.heads, self.ffn_dim, jnp.float32, epsilon=self.epsilon, name="blocks")
    (_, x), _ = stack((x, x))
    return LayerNorm(epsilon=self.epsilon, name="norm")(x[:, 0])
