"""The video transformer of Wan: latents at a noise level, text and cameras to a velocity."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.layers.attention import attention
from d4s_jax.layers.convolution import PatchConv3d
from d4s_jax.layers.embeddings import apply_rotary, rotary_3d, sinusoidal
from d4s_jax.layers.linear import dense
from d4s_jax.layers.normalization import LayerNorm, RMSNorm, layer_norm, modulate, over_tokens
from d4s_jax.layers.partitioning import constrain, partitioned
from d4s_jax.layers.transformer import scan_blocks
from d4s_jax.models.camera_adapter import CameraEmbedding

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
    strides: frames, rows, columns of camera map a latent.
    dtype: compute dtype.
    remat: recompute the inside of a block in the backward pass instead of storing it.
  """

  dim: int
  ffn_dim: int
  heads: int
  depth: int
  out_channels: int = 16
  patch: tuple[int, int, int] = (1, 2, 2)
  freq_dim: int = 256
  strides: tuple[int, int, int] = (4, 8, 8)
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b f h w c"],
    timestep: Float[Array, "b"] | Float[Array, "b k"],
    text: Float[Array, "b l t"],
    camera_maps: Float[Array, "b F H W m"] | None = None,
  ) -> Float[Array, "b f h w {self.out_channels}"]:
    """Predicts the velocity.

    Args:
      latents: noisy latents.
      timestep: 1000 times the noise level: one a sample, or k a sample, each for n / k consecutive
        tokens (k = the latent frames, or k = n, one a token, as in Wan2.2-TI2V).
      text: embeddings of the prompt, zero beyond its end.
      camera_maps: Plücker or flat maps of every frame; None for no camera.

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

    timestep = timestep if timestep.ndim == 2 else timestep[:, None]
    time, modulation = TimeEmbedding(self.dim, self.freq_dim, self.dtype, name="time")(timestep)
    text = TextEmbedding(self.dim, self.dtype, name="text")(text)
    rotary = rotary_3d(f, h, w, self.dim // self.heads)

    stack = scan_blocks(WanBlock, self.depth, inputs=3, remat=self.remat)
    stack = stack(self.heads, self.ffn_dim, self.dtype, name="blocks")
    x, _ = stack(x, text, modulation, rotary)

    table = modulation_table(self, 2, self.dim)
    shift, scale = rearrange(time[:, :, None] + table, "b k s d -> s b k d")
    x = modulate(layer_norm(x), shift, scale).astype(self.dtype)
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
    first: Float[Array, "b 1 h w c"] | None,
  ) -> Float[Array, "b f h w {self.out_channels}"]:
    """Velocity at noise level `sigma`; a clean `first` frame replaces its latents, at level 0."""
    timestep = TIMESTEPS * sigma
    if first is not None:
      latents = jnp.concatenate([first.astype(latents.dtype), latents[:, 1:]], axis=1)
      later = jnp.arange(latents.shape[1]) > 0
      timestep = timestep[:, None] * later[None, :]
    return self(latents, timestep, text, camera_maps)


class WanBlock(nn.Module):
  """Self-attention and a feed-forward network, both modulated by time; cross-attention between.

  Attributes:
    heads: attention heads.
    ffn_dim: inner width of the feed-forward network.
    dtype: compute dtype.
  """

  heads: int
  ffn_dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    text: Float[Array, "b l d"],
    modulation: Float[Array, "b k 6 d"],
    rotary: tuple[Float[Array, "n r"], Float[Array, "n r"]],
  ) -> tuple[Float[Array, "b n d"], None]:
    """Returns what the scan carries, and nothing to collect."""
    dim = x.shape[-1]
    modulation = modulation.astype(jnp.float32) + modulation_table(self, 6, dim)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = rearrange(modulation, "b k s d -> s b k d")

    y = modulate(layer_norm(x), shift, scale).astype(self.dtype)
    y = WanAttention(self.heads, self.dtype, name="self_attention")(y, y, rotary)
    x = (x + y * over_tokens(gate, x)).astype(self.dtype)

    y = LayerNorm(name="cross_norm")(x)
    x = x + WanAttention(self.heads, self.dtype, name="cross_attention")(y, text)

    y = modulate(layer_norm(x), mlp_shift, mlp_scale).astype(self.dtype)
    y = jax.nn.gelu(dense(self.ffn_dim, "embed", "mlp", dtype=self.dtype, name="mlp_in")(y))
    y = dense(dim, "mlp", "embed", dtype=self.dtype, name="mlp_out")(y)
    x = (x + y * over_tokens(mlp_gate, x)).astype(self.dtype)
    return constrain(x, "batch", "tokens", None), None


class WanAttention(nn.Module):
  """Attention whose queries and keys are normalised over all heads together."""

  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    context: Float[Array, "b m d"],
    rotary: tuple[Float[Array, "n r"], Float[Array, "n r"]] | None = None,
  ) -> Float[Array, "b n d"]:
    """Attends from `x` to `context`; `rotary` turns queries and keys by their grid positions."""
    dim = x.shape[-1]

    def project(tokens, name):
      return dense(dim, "embed", "heads", dtype=self.dtype, name=name)(tokens)

    q = RMSNorm(axis_name="heads", name="query_norm")(project(x, "query"))
    k = RMSNorm(axis_name="heads", name="key_norm")(project(context, "key"))
    v = project(context, "value")
    q, k, v = (rearrange(a, "b n (h d) -> b n h d", h=self.heads) for a in (q, k, v))
    if rotary is not None:
      q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
    y = rearrange(attention(q, k, v), "b n h d -> b n (h d)")
    return dense(dim, "heads", "embed", dtype=self.dtype, name="out")(y)


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


def modulation_table(module: nn.Module, rows: int, dim: int) -> Float[Array, "1 1 rows dim"]:
  """The learnt offset that a module adds to its modulations."""
  init = partitioned(nn.initializers.normal(dim**-0.5), None, "embed")
  return module.param("modulation", init, (rows, dim)).reshape(1, 1, rows, dim)
