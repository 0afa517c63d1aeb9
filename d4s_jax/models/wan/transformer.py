"""The video transformer of Wan: latents at a noise level, text, image and cameras to a velocity."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.attention import attention
from d4s_jax.layers.convolution import PatchConv3d
from d4s_jax.layers.embeddings import apply_rotary, rotary_3d
from d4s_jax.layers.linear import FromHeads, ToHeads, dense
from d4s_jax.layers.normalization import (
  LayerNorm,
  RMSNorm,
  layer_norm,
  modulate,
  over_tokens,
  timestep_runs,
)
from d4s_jax.layers.partitioning import constrain, partitioned
from d4s_jax.layers.reuse import reusable
from d4s_jax.layers.transformer import scan_blocks
from d4s_jax.models.camera_adapter import CameraEmbedding
from d4s_jax.models.condition import Condition
from d4s_jax.models.wan.embeddings import ImageEmbedding, TextEmbedding, TimeEmbedding

# The timestep that noise level 1 was published as.
TIMESTEPS = 1000.0


class WanTransformer(nn.Module):
  """Patch embedding, identical blocks, modulated head.

  Attributes:
    dim: width.
    ffn_dim: inner width of the feed-forward networks.
    heads: attention heads.
    depth: number of blocks.
    out_channels: channels of the velocity.
    patch: frames, rows, columns of latents a token.
    freq_dim: width of the sinusoidal embedding of the timestep.
    takes_image: whether blocks attend to embeddings of the image and latents of it lie beside the
      noisy ones (Wan2.1-I2V).
    strides: frames, rows, columns of camera map a latent.
    dtype: compute dtype.
    remat: what of a block the backward pass computes again, a name in `layers.transformer.REMAT`.
  """

  dim: int
  ffn_dim: int
  heads: int
  depth: int
  out_channels: int = 16
  patch: tuple[int, int, int] = (1, 2, 2)
  freq_dim: int = 256
  takes_image: bool = False
  strides: tuple[int, int, int] = (4, 8, 8)
  dtype: DTypeLike = jnp.float32
  remat: str = "products"

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b f h w c"],
    timestep: Float[Array, "b *n"],
    text: Float[Array, "b l t"],
    camera_maps: Float[Array, "b F H W m"] | None = None,
    image: Float[Array, "b p i"] | None = None,
    clean: int = 0,
  ) -> Float[Array, "b f h w {self.out_channels}"]:
    """Predicts the velocity.

    Args:
      latents: noisy latents; with `takes_image`, a mask and the image's beside them.
      timestep: 1000 times the noise level of each sample, or of each of its tokens (frames, rows,
        columns), whose modulations then take as much memory as 6 times the tokens.
      text: embeddings of the prompt, zero beyond its end.
      camera_maps: Plücker or flat maps of every frame; None for no camera.
      image: embeddings of the image; only with `takes_image`.
      clean: how many of the first frames of tokens are at timestep 0 (Wan2.2-TI2V: 1); costs
        nothing, and is for a timestep of each sample.

    Returns:
      The velocity in float32.
    """
    x = PatchConv3d(self.dim, self.patch, self.dtype, name="patch_embedding")(latents)
    if camera_maps is not None:
      x = x + CameraEmbedding(self.dim, self.patch, self.strides, self.dtype, name="camera")(
        camera_maps
      )
    f, h, w = x.shape[1:4]
    x = constrain(rearrange(x, "b f h w d -> b (f h w) d"), "batch", "tokens", None)

    timestep, ends = timestep_runs(timestep, clean * h * w)
    time, modulation = TimeEmbedding(self.dim, self.freq_dim, self.dtype, name="time")(timestep)
    text = TextEmbedding(self.dim, self.dtype, name="text")(text)
    if image is not None:
      image = ImageEmbedding(self.dim, self.dtype, name="image")(image)
    rotary = rotary_3d(f, h, w, self.dim // self.heads)

    stack = scan_blocks(WanBlock, self.depth, inputs=4, remat=self.remat)
    stack = stack(self.heads, self.ffn_dim, ends, self.dtype, name="blocks")
    x = reusable(self, lambda x: stack(x, text, image, modulation, rotary)[0], x)

    table = modulation_table(self, 2, self.dim)
    shift, scale = rearrange(time[:, :, None] + table, "b k s d -> s b k d")
    x = modulate(layer_norm(x), shift, scale, ends).astype(self.dtype)
    pixels = self.patch[0] * self.patch[1] * self.patch[2]
    head = dense(
      pixels * self.out_channels,
      *("embed", None),
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="head",
    )
    pf, ph, pw = self.patch
    return rearrange(
      head(x).astype(jnp.float32),
      "b (f h w) (pf ph pw c) -> b (f pf) (h ph) (w pw) c",
      **dict(f=f, h=h, w=w, pf=pf, ph=ph, pw=pw),
    )

  def denoise(
    self,
    latents: Float[Array, "b f h w c"],
    sigma: Float[Array, "b"],
    text: Float[Array, "b l t"],
    camera_maps: Float[Array, "b F H W m"] | None,
    condition: Condition | None,
  ) -> Float[Array, "b f h w {self.out_channels}"]:
    """Velocity at noise level `sigma`, given a photograph.

    An image-to-video model attends to its embeddings and takes its latents beside the noisy ones.
    In the others it replaces the noisy first frame, whose tokens then are at timestep 0.

    Raises:
      ValueError: an image-to-video model is given no photograph, or without embeddings.
    """
    timestep, clean = TIMESTEPS * sigma, 0
    if self.takes_image:
      if condition is None or condition.video is None or condition.image is None:
        raise ValueError(
          "This model generates from a photograph, and got"
          f" {'none' if condition is None else 'only its latents'}; `Backbone.condition` makes what"
          " it takes."
        )
      latents = beside(latents, condition.video, self.strides[0])
      return self(latents, timestep, text, camera_maps, condition.image)
    if condition is not None:
      known = condition.first.shape[1]
      latents = jnp.concatenate([condition.first.astype(latents.dtype), latents[:, known:]], axis=1)
      clean = known // self.patch[0]
    return self(latents, timestep, text, camera_maps, clean=clean)


class WanBlock(nn.Module):
  """Self-attention and a feed-forward network, both modulated by time; cross-attention between.

  Attributes:
    heads: attention heads.
    ffn_dim: inner width of the feed-forward network.
    ends: of the runs of tokens that share a modulation; see `over_tokens`.
    dtype: compute dtype.
  """

  heads: int
  ffn_dim: int
  ends: tuple[int, ...]
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    text: Float[Array, "b l d"],
    image: Float[Array, "b m d"] | None,
    modulation: Float[Array, "b k 6 d"],
    rotary: tuple[Float[Array, "n r"], Float[Array, "n r"]],
  ) -> tuple[Float[Array, "b n d"], None]:
    """Returns what the scan carries, and nothing to collect."""
    dim = x.shape[-1]
    modulation = modulation.astype(jnp.float32) + modulation_table(self, 6, dim)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = rearrange(modulation, "b k s d -> s b k d")

    y = modulate(layer_norm(x), shift, scale, self.ends).astype(self.dtype)
    y = WanAttention(self.heads, self.dtype, name="self_attention")(y, y, rotary)
    x = (x + y * over_tokens(gate, self.ends, x.shape[1])).astype(self.dtype)

    y = LayerNorm(name="cross_norm")(x)
    x = x + WanAttention(self.heads, self.dtype, name="cross_attention")(y, text, image=image)

    y = modulate(layer_norm(x), mlp_shift, mlp_scale, self.ends).astype(self.dtype)
    y = jax.nn.gelu(dense(self.ffn_dim, "embed", "mlp", dtype=self.dtype, name="mlp_in")(y))
    y = dense(dim, "mlp", "embed", dtype=self.dtype, name="mlp_out")(y)
    x = (x + y * over_tokens(mlp_gate, self.ends, x.shape[1])).astype(self.dtype)
    return constrain(x, "batch", "tokens", None), None


class WanAttention(nn.Module):
  """Attention whose queries and keys are normalised over all heads together."""

  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    context: Float[Array, "b l d"],
    rotary: tuple[Float[Array, "n r"], Float[Array, "n r"]] | None = None,
    image: Float[Array, "b m d"] | None = None,
  ) -> Float[Array, "b n d"]:
    """Attends from `x` to `context`, and by the same queries but on its own to `image`.

    `rotary` turns queries and keys by their grid positions.
    """
    dim = x.shape[-1]

    def project(tokens, name):
      return ToHeads(dim, self.heads, self.dtype, name=name)(tokens)

    def normalised(tokens, name):
      return RMSNorm(axis_name="heads", axes=2, name=f"{name}_norm")(project(tokens, name))

    q, k = normalised(x, "query"), normalised(context, "key")
    if rotary is not None:
      q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
    y = attention(q, k, project(context, "value"), tokens="tokens")
    if image is not None:
      value = project(image, "image_value")
      y = y + attention(q, normalised(image, "image_key"), value, tokens="tokens")
    return FromHeads(dim, self.dtype, name="out")(y)


def modulation_table(module: nn.Module, rows: int, dim: int) -> Float[Array, "1 1 rows dim"]:
  """The learnt offset that a module adds to its modulations."""
  init = partitioned(nn.initializers.normal(dim**-0.5), None, "embed")
  return module.param("modulation", init, (rows, dim)).reshape(1, 1, rows, dim)


def beside(
  latents: Float[Array, "b f h w c"], video: Float[Array, "b f h w d"], stride: int
) -> Float[Array, "b f h w e"]:
  """Noisy latents, a mask, and those of the photograph followed by grey frames, as channels.

  The mask is 1 where a frame of the video, `stride` of them a latent, is the photograph; the first
  latent, which stands for one frame, counts as that frame repeated.
  """
  known = jnp.arange(latents.shape[1]) == 0
  mask = jnp.broadcast_to(known.reshape(1, -1, 1, 1, 1), (*latents.shape[:-1], stride))
  return jnp.concatenate([latents, mask.astype(latents.dtype), video.astype(latents.dtype)], -1)
