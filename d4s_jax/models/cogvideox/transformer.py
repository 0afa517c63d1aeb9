"""The video transformer of CogVideoX 1.0 and 1.5: text and video tokens in one sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.diffusion.v_prediction import LEVELS
from d4s_jax.layers.attention import attention
from d4s_jax.layers.convolution import PatchConv3d
from d4s_jax.layers.embeddings import apply_rotary, sinusoidal
from d4s_jax.layers.linear import FromHeads, ToHeads, dense
from d4s_jax.layers.normalization import LayerNorm, modulate, over_tokens, timestep_runs
from d4s_jax.layers.partitioning import constrain
from d4s_jax.layers.reuse import reusable
from d4s_jax.layers.transformer import scan_blocks
from d4s_jax.models.camera_adapter import CameraEmbedding
from d4s_jax.models.cogvideox.positions import (
  LearnedPositions,
  grid_positions,
  rotary_positions,
  sine_positions,
)
from d4s_jax.models.condition import Condition

# The second scalar condition of 1.5-5B-I2V; published as "ofs" and never anything else.
_OFFSET = 2.0


class CogVideoXTransformer(nn.Module):
  """Patch embedding, identical blocks over text and video together, modulated head.

  Attributes:
    heads: attention heads.
    head_dim: width of a head.
    depth: number of blocks.
    out_channels: channels of the velocity.
    patch: frames, rows, columns of latents a token: two frames in 1.5.
    time_dim: width of the embedding of the timestep.
    positions: "rotary", "sine" (2B), or "learned": rotary and a learnt table (5B-I2V).
    grid: frames, rows, columns of tokens that positions were trained on; frames matter to "learned"
      alone. None: positions count tokens (1.5, 2B).
    text_length: most tokens of text that "learned" has positions for.
    takes_image: whether clean latents of the first frame are concatenated to the noisy ones (I2V).
    image_scale: factor on those clean latents: 1.5-5B-I2V was trained with another than the noisy
      ones.
    offset: whether there is a second scalar condition, always the same (1.5-5B-I2V).
    strides: frames, rows, columns of camera map a latent.
    dtype: compute dtype.
    remat: what of a block the backward pass computes again, a name in `layers.transformer.REMAT`.
  """

  heads: int
  head_dim: int
  depth: int
  out_channels: int = 16
  patch: tuple[int, int, int] = (1, 2, 2)
  time_dim: int = 512
  positions: str = "rotary"
  grid: tuple[int, int, int] | None = None
  text_length: int = 226
  takes_image: bool = False
  image_scale: float = 1.0
  offset: bool = False
  strides: tuple[int, int, int] = (4, 8, 8)
  dtype: DTypeLike = jnp.float32
  remat: str = "products"

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b f h w c"],
    timestep: Float[Array, "b"],
    text: Float[Array, "b l t"],
    camera_maps: Float[Array, "b F H W m"] | None = None,
    clean: int = 0,
  ) -> Float[Array, "b f h w {self.out_channels}"]:
    """Predicts the velocity.

    Args:
      latents: noisy latents; with `takes_image`, the image's beside them.
      timestep: of each sample.
      text: embeddings of the prompt.
      camera_maps: Plücker or flat maps of every frame; None for no camera.
      clean: how many of the first frames of tokens are at timestep 0.

    Returns:
      The velocity in float32.
    """
    dim = self.heads * self.head_dim
    x = PatchConv3d(dim, self.patch, self.dtype, name="patch_embedding")(latents)
    if camera_maps is not None:
      x = x + CameraEmbedding(dim, self.patch, self.strides, self.dtype, name="camera")(camera_maps)
    f, h, w = x.shape[1:4]
    x = rearrange(x, "b f h w d -> b (f h w) d")
    text = dense(dim, None, "embed", dtype=self.dtype, name="text")(text)
    x, text, rotary = self._placed(x, text, (f, h, w))

    timestep, video_ends = timestep_runs(timestep, clean * h * w)
    time = ScalarEmbedding(dim, self.time_dim, name="time")(timestep)
    if self.offset:
      embed = ScalarEmbedding(self.time_dim, self.time_dim, name="offset")
      time = time + embed(jnp.full((1, 1), _OFFSET))
    time = jax.nn.silu(time).astype(self.dtype)

    length = text.shape[1]
    stack = scan_blocks(CogVideoXBlock, self.depth, inputs=2, remat=self.remat)
    # Text is the first run: a modulation of its own, at the last timestep.
    ends = (length, *(length + end for end in video_ends))
    stack = stack(self.heads, ends, self.dtype, name="blocks")
    x = constrain(jnp.concatenate([text, x], axis=1), "batch", "tokens", None)
    x = reusable(self, lambda x: stack(x, time, rotary)[0], x)

    x = LayerNorm(epsilon=1e-5, name="norm")(x[:, length:])
    modulation = dense(2 * dim, None, "embed", dtype=self.dtype, name="head_modulation")(time)
    shift, scale = jnp.split(modulation, 2, axis=-1)
    x = LayerNorm(epsilon=1e-5, name="head_norm")(x)
    x = modulate(x, shift, scale, video_ends).astype(self.dtype)
    pf, ph, pw = self.patch
    x = dense(
      pf * ph * pw * self.out_channels,
      *("embed", None),
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="head",
    )(x)
    return rearrange(
      x.astype(jnp.float32),
      "b (f h w) (c pf ph pw) -> b (f pf) (h ph) (w pw) c",
      **dict(f=f, h=h, w=w, pf=pf, ph=ph, pw=pw),
    )

  def _placed(
    self, x: Float[Array, "b n d"], text: Float[Array, "b l d"], grid: tuple[int, int, int]
  ) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Video and text tokens with positions added, and the rotary angles of both together."""
    trained = None if self.grid is None else self.grid[1:]
    axes, dim, length = grid_positions(*grid, trained), x.shape[-1], text.shape[1]
    if self.positions == "sine":
      return x + sine_positions(axes, dim).astype(x.dtype)[None], text, None
    if self.positions == "learned":
      if self.grid is None:
        raise ValueError("Learnt positions need the grid that they were trained on.")
      table = LearnedPositions(self.text_length, self.grid, dim, name="positions")
      of_text, of_video = table(axes, length)
      x, text = x + of_video.astype(x.dtype), text + of_text.astype(x.dtype)
    elif self.positions != "rotary":
      raise ValueError(f"Positions {self.positions!r}; expected 'rotary', 'sine' or 'learned'.")
    cos, sin = rotary_positions(axes, self.head_dim)
    # Text is not turned.
    cos = jnp.pad(cos, ((length, 0), (0, 0)), constant_values=1.0)
    return x, text, (cos, jnp.pad(sin, ((length, 0), (0, 0))))

  def denoise(
    self,
    latents: Float[Array, "b f h w c"],
    sigma: Float[Array, "b"],
    text: Float[Array, "b l t"],
    camera_maps: Float[Array, "b F H W m"] | None,
    condition: Condition | None,
  ) -> Float[Array, "b f h w {self.out_channels}"]:
    """Velocity at noise level `sigma`, given clean latents of the first frame.

    An image-to-video model takes them beside the noisy latents, zeros standing for later frames;
    with padding in front they lie beside the padding, as diffusers has it. In a text-to-video model
    they replace the noisy first frame, and padding, whose tokens then are at timestep 0; a token
    that spans a later frame too keeps the timestep of that one.
    """
    # Level 0 has no timestep of its own.
    timestep = jnp.maximum(jnp.round(LEVELS * sigma) - 1.0, 0.0)
    clean = 0
    if self.takes_image:
      image = jnp.zeros_like(latents)
      if condition is not None:
        first = condition.first[:, :1].astype(latents.dtype)
        image = image.at[:, :1].set(self.image_scale * first)
      latents = jnp.concatenate([latents, image], axis=-1)
    elif condition is not None:
      known = condition.first.shape[1]
      latents = jnp.concatenate([condition.first.astype(latents.dtype), latents[:, known:]], axis=1)
      clean = known // self.patch[0]
    return self(latents, timestep, text, camera_maps, clean=clean)


class CogVideoXBlock(nn.Module):
  """Attention and a feed-forward network over all tokens; text and video have their own modulation.

  Attributes:
    heads: attention heads.
    ends: of the runs of tokens that share a modulation, of which text is the first; see
      `over_tokens`.
    dtype: compute dtype.
  """

  heads: int
  ends: tuple[int, ...]
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    time: Float[Array, "b k s"],
    rotary: tuple[Float[Array, "n r"], Float[Array, "n r"]] | None,
  ) -> tuple[Float[Array, "b n d"], None]:
    """Returns what the scan carries, and nothing to collect."""
    dim = x.shape[-1]
    y, gate = ExpertNorm(self.ends, self.dtype, name="attention_norm")(x, time)
    x = x + gate * CogVideoXAttention(self.heads, self.dtype, name="attention")(y, rotary)

    y, gate = ExpertNorm(self.ends, self.dtype, name="mlp_norm")(x, time)
    y = jax.nn.gelu(dense(4 * dim, "embed", "mlp", dtype=self.dtype, name="mlp_in")(y))
    x = x + gate * dense(dim, "mlp", "embed", dtype=self.dtype, name="mlp_out")(y)
    return constrain(x, "batch", "tokens", None), None


class ExpertNorm(nn.Module):
  """One layer normalisation, then a shift and a scale of its own for text and for video."""

  ends: tuple[int, ...]
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], time: Float[Array, "b k s"]
  ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
    """The modulated tokens, and the gate for what is made of them."""
    dim = x.shape[-1]
    y = LayerNorm(epsilon=1e-5, name="norm")(x)
    modulation = dense(6 * dim, None, "embed", dtype=self.dtype, name="modulation")(time)
    video, text = jnp.split(modulation, 2, axis=-1)
    rows = jnp.concatenate([text[:, -1:], video], axis=1)
    shift, scale, gate = jnp.split(rows, 3, axis=-1)
    return modulate(y, shift, scale, self.ends), over_tokens(gate, self.ends, y.shape[1])


class CogVideoXAttention(nn.Module):
  """Self-attention whose queries and keys are layer-normalised in each head."""

  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    rotary: tuple[Float[Array, "n r"], Float[Array, "n r"]] | None,
  ) -> Float[Array, "b n d"]:
    """Attends over all tokens; `rotary` turns queries and keys by their grid positions."""
    dim = x.shape[-1]

    def project(name):
      return ToHeads(dim, self.heads, self.dtype, name=name)(x)

    q = LayerNorm(axis_name=None, name="query_norm")(project("query"))
    k = LayerNorm(axis_name=None, name="key_norm")(project("key"))
    if rotary is not None:
      q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
    y = attention(q, k, project("value"), tokens="tokens")
    return FromHeads(dim, self.dtype, name="out")(y)


class ScalarEmbedding(nn.Module):
  """Sines and cosines of a scalar, then two dense layers, all in float32.

  bfloat16 can't tell neighbouring timesteps apart.
  """

  freq_dim: int
  features: int

  @nn.compact
  def __call__(self, scalar: Float[Array, "b k"]) -> Float[Array, "b k {self.features}"]:
    """Embeds each scalar."""
    x = dense(self.features, "embed", None, name="in")(sinusoidal(scalar, self.freq_dim))
    return dense(self.features, None, None, name="out")(jax.nn.silu(x))
