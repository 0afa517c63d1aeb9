"""The CogVideoX models of diffusers: names of their tensors, meaning of their configurations."""

from collections.abc import Mapping
from typing import Any

from d4s_jax.models.cogvideox.autoencoder import CogVideoXAutoencoder
from d4s_jax.models.cogvideox.transformer import CogVideoXTransformer
from d4s_jax.weights.configs import DEEP, LEVELS, MOST_BLOCKS, WIDE, Reader
from d4s_jax.weights.rules import Rule, convolution, dense, norm

_BLOCK = "transformer_blocks.{layer}"
_SCALES = {"spatial_interpolation_scale": 1.875, "temporal_interpolation_scale": 1.0}

TRANSFORMER = (
  # A convolution over each frame in 1.0, a product with flattened patches of two frames in 1.5.
  Rule("patch_embed.proj.weight", "patch_embedding/kernel", "o i r s -> 1 r s i o"),
  Rule(
    *("patch_embed.proj.weight", "patch_embedding/kernel", "o (i t r s) -> t r s i o"),
    lengths={"t": 2},
  ),
  Rule("patch_embed.proj.bias", "patch_embedding/bias"),
  *dense("patch_embed.text_proj", "text"),
  Rule("patch_embed.pos_embedding", "positions/table", "1 n d -> n d"),
  *dense("time_embedding.linear_1", "time/in"),
  *dense("time_embedding.linear_2", "time/out"),
  *dense("ofs_embedding.linear_1", "offset/in"),
  *dense("ofs_embedding.linear_2", "offset/out"),
  *dense(f"{_BLOCK}.norm1.linear", "blocks/attention_norm/modulation"),
  *norm(f"{_BLOCK}.norm1.norm", "blocks/attention_norm/norm"),
  *dense(f"{_BLOCK}.attn1.to_q", "blocks/attention/query"),
  *dense(f"{_BLOCK}.attn1.to_k", "blocks/attention/key"),
  *dense(f"{_BLOCK}.attn1.to_v", "blocks/attention/value"),
  *dense(f"{_BLOCK}.attn1.to_out.0", "blocks/attention/out"),
  *norm(f"{_BLOCK}.attn1.norm_q", "blocks/attention/query_norm"),
  *norm(f"{_BLOCK}.attn1.norm_k", "blocks/attention/key_norm"),
  *dense(f"{_BLOCK}.norm2.linear", "blocks/mlp_norm/modulation"),
  *norm(f"{_BLOCK}.norm2.norm", "blocks/mlp_norm/norm"),
  *dense(f"{_BLOCK}.ff.net.0.proj", "blocks/mlp_in"),
  *dense(f"{_BLOCK}.ff.net.2", "blocks/mlp_out"),
  *norm("norm_final", "norm"),
  *dense("norm_out.linear", "head_modulation"),
  *norm("norm_out.norm", "head_norm"),
  *dense("proj_out", "head"),
)


def _told_norm(torch: str, flax: str) -> list[Rule]:
  """A normalisation that the latents steer."""
  return [
    *norm(f"{torch}.norm_layer", f"{flax}/norm"),
    *convolution(f"{torch}.conv_y.conv", f"{flax}/scale"),
    *convolution(f"{torch}.conv_b.conv", f"{flax}/shift"),
  ]


def _coder(name: str) -> list[Rule]:
  """The encoder, or the decoder, whose normalisations hear the latents."""
  way = {"encoder": "down", "decoder": "up"}[name]
  normalise = {"encoder": norm, "decoder": _told_norm}[name]

  def residual(torch: str, flax: str) -> list[Rule]:
    return [
      *normalise(f"{torch}.norm1", f"{flax}/norm1"),
      *convolution(f"{torch}.conv1.conv", f"{flax}/conv1"),
      *normalise(f"{torch}.norm2", f"{flax}/norm2"),
      *convolution(f"{torch}.conv2.conv", f"{flax}/conv2"),
    ]

  blocks, level = f"{name}.{way}_blocks.{{i}}", f"{name}/{way}_{{i}}"
  return [
    *convolution(f"{name}.conv_in.conv", f"{name}/conv_in"),
    *residual(f"{blocks}.resnets.{{block}}", f"{level}_block_{{block}}"),
    *convolution(f"{blocks}.resnets.{{block}}.conv_shortcut", f"{level}_block_{{block}}/shortcut"),
    *convolution(f"{blocks}.{way}samplers.0.conv", f"{level}_resample", "o i r s -> r s i o"),
    *residual(f"{name}.mid_block.resnets.{{block}}", f"{name}/middle_block_{{block}}"),
    *normalise(f"{name}.norm_out", f"{name}/norm_out"),
    *convolution(f"{name}.conv_out.conv", f"{name}/conv_out"),
  ]


AUTOENCODER = (*_coder("encoder"), *_coder("decoder"))


def transformer_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of our `CogVideoXTransformer` for the config.json of a CogVideoXTransformer3DModel."""
  read = Reader(config)
  channels, time_dim = read.size("out_channels", WIDE), read.size("time_embed_dim")
  taken = read.size("in_channels", WIDE)
  # The latents of an image lie beside those of the video.
  read.only("in_channels", channels, 2 * channels)
  old = config.get("patch_size_t") is None
  read.only("patch_size_t", None, 2)
  space = read.size("patch_size", LEVELS)
  read.only("ofs_embed_dim", None, time_dim)
  _check_built_in(read, old)
  fields = {
    "heads": read.size("num_attention_heads", WIDE),
    "head_dim": read.size("attention_head_dim", WIDE),
    "depth": read.size("num_layers", DEEP),
    "out_channels": channels,
    "patch": (1 if old else 2, space, space),
    "time_dim": time_dim,
    "takes_image": taken == 2 * channels,
    "offset": config.get("ofs_embed_dim") is not None,
    **_position_fields(read, space, old),
  }
  read.size("text_embed_dim")
  # Where nothing asked for them, positions don't depend on them.
  scales = ("temporal_compression_ratio", *_SCALES)
  read.rest("dropout", *scales)
  read.check()
  return fields


def _check_built_in(read: Reader, old: bool) -> None:
  """What all published models have in common."""
  read.only("activation_fn", "gelu-approximate")
  read.only("timestep_activation_fn", "silu")
  read.only("attention_bias", True)
  read.only("norm_elementwise_affine", True)
  read.only("norm_eps", 1e-5)
  read.only("flip_sin_to_cos", True)
  read.only("freq_shift", 0)
  # diffusers has a bias in 1.5 whatever is said here.
  read.only("patch_bias", True, *([] if old else [False]))


def _position_fields(read: Reader, space: int, old: bool) -> dict[str, Any]:
  """Kind of positions, and the grid of tokens that they were trained on where it matters."""
  learned = read.flag("use_learned_positional_embeddings")
  rotary = read.flag("use_rotary_positional_embeddings")
  if learned:
    # They are added to tokens that are turned too.
    read.only("use_rotary_positional_embeddings", True)
  frames, rows, columns, length = (
    read.size(name, most=2**12, default=default)
    for name, default in (
      ("sample_frames", 49),
      ("sample_height", 60),
      ("sample_width", 90),
      ("max_text_seq_length", 226),
    )
  )
  kind = "learned" if learned else "rotary" if rotary else "sine"
  if learned or kind == "sine":
    for name, value in _SCALES.items():
      read.only(name, value)
  if learned:
    read.only("temporal_compression_ratio", 4)
  if kind == "sine" or (kind == "rotary" and not old):
    return {"positions": kind, "grid": None}
  grid = (1 + (frames - 1) // 4, rows // space, columns // space)
  # The published one has 13 x 30 x 45.
  read.product("sample_frames, sample_height and sample_width", grid, 2**18)
  return {"positions": kind, "grid": grid} | ({"text_length": length} if learned else {})


def transformer_config(
  transformer: CogVideoXTransformer, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """The config.json of a CogVideoXTransformer3DModel for our `CogVideoXTransformer`."""
  time, space, _ = transformer.patch
  old = time == 1
  # Without a grid the sizes are only those that the published models were meant for.
  frames, rows, columns = transformer.grid or ((13, 30, 45) if old else (21, 150, 150))
  return {
    "_class_name": "CogVideoXTransformer3DModel",
    "num_attention_heads": transformer.heads,
    "attention_head_dim": transformer.head_dim,
    "in_channels": shapes["patch_embedding/kernel"][-2],
    "out_channels": transformer.out_channels,
    "time_embed_dim": transformer.time_dim,
    "ofs_embed_dim": transformer.time_dim if transformer.offset else None,
    "text_embed_dim": shapes["text/kernel"][0],
    "num_layers": transformer.depth,
    "sample_frames": 1 + 4 * (frames - 1),
    "sample_height": rows * space,
    "sample_width": columns * space,
    "patch_size": space,
    "patch_size_t": None if old else time,
    "patch_bias": old,
    "max_text_seq_length": transformer.text_length,
    "use_rotary_positional_embeddings": transformer.positions != "sine",
    "use_learned_positional_embeddings": transformer.positions == "learned",
  }


def autoencoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of our `CogVideoXAutoencoder` for the config.json of an AutoencoderKLCogVideoX."""
  read = Reader(config)
  widths = read.sizes("block_out_channels", most=WIDE)
  levels = len(widths)
  times = [2**i for i in range(levels)]
  read.only("temporal_compression_ratio", *sorted(times, key=lambda ratio: ratio != 4))
  read.only("down_block_types", ["CogVideoXDownBlock3D"] * levels)
  read.only("up_block_types", ["CogVideoXUpBlock3D"] * levels)
  read.only("act_fn", "silu")
  read.only("norm_eps", 1e-6)
  for name in ("in_channels", "out_channels"):
    read.only(name, 3)
  for name in ("shift_factor", "latents_mean", "latents_std"):
    read.only(name, None)
  for name in ("use_quant_conv", "use_post_quant_conv"):
    read.only(name, False)
  ratio = config.get("temporal_compression_ratio", 4)
  fields = {
    "widths": widths,
    "z_dim": read.size("latent_channels", WIDE),
    "num_res_blocks": read.size("layers_per_block", LEVELS),
    "temporal_levels": times.index(ratio) if ratio in times else 0,
    "groups": read.size("norm_num_groups", WIDE),
    "scale": read.number("scaling_factor"),
    "inverted": read.flag("invert_scale_latents"),
  }
  blocks = fields["num_res_blocks"]
  read.product("block_out_channels and layers_per_block", (levels, blocks), MOST_BLOCKS)
  # What sizes it was trained on, and whether to compute in float32.
  read.rest("sample_size", "sample_height", "sample_width", "force_upcast")
  read.check()
  return fields


def autoencoder_config(
  autoencoder: CogVideoXAutoencoder, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """The config.json of an AutoencoderKLCogVideoX for our `CogVideoXAutoencoder`."""
  del shapes
  levels = len(autoencoder.widths)
  return {
    "_class_name": "AutoencoderKLCogVideoX",
    "block_out_channels": list(autoencoder.widths),
    "down_block_types": ["CogVideoXDownBlock3D"] * levels,
    "up_block_types": ["CogVideoXUpBlock3D"] * levels,
    "latent_channels": autoencoder.z_dim,
    "layers_per_block": autoencoder.num_res_blocks,
    "norm_num_groups": autoencoder.groups,
    "temporal_compression_ratio": autoencoder.strides[0],
    "scaling_factor": autoencoder.scale,
    "invert_scale_latents": autoencoder.inverted,
  }
