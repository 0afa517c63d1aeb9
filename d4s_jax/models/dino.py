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
# PyTorch's bicubic interpolation.
_CUBIC = -0.75
# What DINO's own code, which VBench loads, adds to the numbers of rows and columns before it
# interpolates positions, of pictures that aren't square.
_SHIFT = 0.1


class DINO(nn.Module):
  """Patch embedding, a class token and identical blocks; the class token is the embedding.

  Attributes:
    dim: width.
    ffn_dim: inner width of the feed-forward networks.
    heads: attention heads.
    depth: number of blocks.
    size: pixels of the shorter side of what it looks at; the side of what it was trained on.
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
    """Embeds images in [0, 1], resized by their shorter side; the aspect is kept.

    What is left beside whole patches on the right and below isn't seen. As VBench does it, with
    DINO's own code, but for its rounding to 8 bits after resizing.
    """
    height, width = image.shape[1:3]
    short = min(height, width)
    size = height * self.size // short, width * self.size // short
    rows, columns = (side // self.patch for side in size)
    shape = (len(image), *size, 3)
    pixels = jax.image.resize(image.astype(jnp.float32), shape, "linear", antialias=False)
    pixels = pixels[:, : rows * self.patch, : columns * self.patch]
    pixels = (pixels - MEAN.reshape(1, 1, 1, 3)) / _STD.reshape(1, 1, 1, 3)
    patches = PatchConv3d(self.dim, (1, self.patch, self.patch), name="patch_embedding")
    x = rearrange(patches(pixels[:, None]), "b 1 h w d -> b (h w) d")
    init = nn.initializers.normal(0.02)
    first = self.param("class_embedding", partitioned(init, "embed"), (self.dim,))
    first = jnp.broadcast_to(first.reshape(1, 1, -1), (len(x), 1, self.dim))
    x = jnp.concatenate([first, x], axis=1)
    side = self.size // self.patch
    positions = self.param("positions", partitioned(init, None, "embed"), (1 + side**2, self.dim))
    grid = rearrange(positions[1:], "(i j) d -> i j d", i=side)
    shift = _SHIFT if size[0] != size[1] else 0.0
    ways = [_resize(side, new, new + shift) for new in (rows, columns)]
    grid = jnp.einsum("ijd,ai,bj->abd", grid, *ways)
    x = x + jnp.concatenate([positions[:1], grid.reshape(-1, self.dim)])[None]
    stack = scan_blocks(CLIPBlock, self.depth, inputs=0, remat="products")
    stack = stack(self.heads, self.ffn_dim, jnp.float32, epsilon=self.epsilon, name="blocks")
    (_, x), _ = stack((x, x))
    return LayerNorm(epsilon=self.epsilon, name="norm")(x[:, 0])


def _resize(old: int, new: int, length: float) -> Float[np.ndarray, "{new} {old}"]:
  """The matrix of PyTorch's bicubic interpolation of `old` numbers as if there were `length` new.

  Those at the ends repeat.
  """
  places = (np.arange(new) + 0.5) * old / length - 0.5
  start = np.floor(places).astype(int)
  matrix = np.zeros((new, old), np.float32)
  for step in (-1, 0, 1, 2):
    far = np.abs(places - start - step)
    near = (_CUBIC + 2) * far**3 - (_CUBIC + 3) * far**2 + 1
    away = _CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
    column = (start + step).clip(0, old - 1)
    np.add.at(matrix, (np.arange(new), column), np.where(far <= 1, near, away))
  return matrix
