"""The Wan models of diffusers: names of their tensors, meaning of their configurations."""

from collections.abc import Mapping
from typing import Any

from d4s_jax.models.wan.autoencoder import WanAutoencoder
from d4s_jax.models.wan.transformer import WanTransformer
from d4s_jax.weights.configs import DEEP, LEVELS, MOST_BLOCKS, WIDE, Reader
from d4s_jax.weights.rules import Rule, convolution, dense, norm

_CONV2D = "o i r s -> r s i o"
_POINTWISE = "o i 1 1 -> i o"


def _attention(torch: str, flax: str) -> list[Rule]:
  return [
    *dense(f"{torch}.to_q", f"{flax}/query"),
    *dense(f"{torch}.to_k", f"{flax}/key"),
    *dense(f"{torch}.to_v", f"{flax}/value"),
    *dense(f"{torch}.to_out.0", f"{flax}/out"),
    Rule(f"{torch}.norm_q.weight", f"{flax}/query_norm/scale"),
    Rule(f"{torch}.norm_k.weight", f"{flax}/key_norm/scale"),
  ]


_IMAGE, _CROSS = "condition_embedder.image_embedder", "blocks.{layer}.attn2"


TRANSFORMER = (
  *convolution("patch_embedding", "patch_embedding"),
  *dense("condition_embedder.time_embedder.linear_1", "time/in"),
  *dense("condition_embedder.time_embedder.linear_2", "time/out"),
  *dense("condition_embedder.time_proj", "time/modulation"),
  *dense("condition_embedder.text_embedder.linear_1", "text/in"),
  *dense("condition_embedder.text_embedder.linear_2", "text/out"),
  *norm(f"{_IMAGE}.norm1", "image/norm_in"),
  *dense(f"{_IMAGE}.ff.net.0.proj", "image/in"),
  *dense(f"{_IMAGE}.ff.net.2", "image/out"),
  *norm(f"{_IMAGE}.norm2", "image/norm_out"),
  Rule("blocks.{layer}.scale_shift_table", "blocks/modulation", "1 s d -> s d"),
  *_attention("blocks.{layer}.attn1", "blocks/self_attention"),
  *norm("blocks.{layer}.norm2", "blocks/cross_norm"),
  *_attention(_CROSS, "blocks/cross_attention"),
  *dense(f"{_CROSS}.add_k_proj", "blocks/cross_attention/image_key"),
  *dense(f"{_CROSS}.add_v_proj", "blocks/cross_attention/image_value"),
  Rule(f"{_CROSS}.norm_added_k.weight", "blocks/cross_attention/image_key_norm/scale"),
  *dense("blocks.{layer}.ffn.net.0.proj", "blocks/mlp_in"),
  *dense("blocks.{layer}.ffn.net.2", "blocks/mlp_out"),
  Rule("scale_shift_table", "modulation", "1 s d -> s d"),
  *dense("proj_out", "head"),
)

# The published I2V files have these too: as many zeros as the norm of the keys has numbers.
UNREAD = {f"{_CROSS}.norm_added_q.weight": "blocks/cross_attention/image_key_norm/scale"}


def _norm(torch: str, flax: str) -> Rule:
  return Rule(f"{torch}.gamma", f"{flax}/scale", "c 1 1 1 -> c")


def _residual(torch: str, flax: str) -> list[Rule]:
  return [
    _norm(f"{torch}.norm1", f"{flax}/norm1"),
    *convolution(f"{torch}.conv1", f"{flax}/conv1"),
    _norm(f"{torch}.norm2", f"{flax}/norm2"),
    *convolution(f"{torch}.conv2", f"{flax}/conv2"),
    *convolution(f"{torch}.conv_shortcut", f"{flax}/shortcut"),
  ]


def _resample(torch: str, flax: str) -> list[Rule]:
  return [
    *convolution(f"{torch}.resample.1", f"{flax}/space", _CONV2D),
    *convolution(f"{torch}.time_conv", f"{flax}/time"),
  ]


def _coder(name: str) -> list[Rule]:
  """What the encoder and the decoder have in common."""
  torch, flax = f"{name}.mid_block", f"{name}/middle"
  return [
    *convolution(f"{name}.conv_in", f"{name}/conv_in"),
    *_residual(f"{torch}.resnets.{{block}}", f"{flax}/block_{{block}}"),
    Rule(f"{torch}.attentions.0.norm.gamma", f"{flax}/attention/norm/scale", "c 1 1 -> c"),
    *convolution(f"{torch}.attentions.0.to_qkv", f"{flax}/attention/query_key_value", _POINTWISE),
    *convolution(f"{torch}.attentions.0.proj", f"{flax}/attention/out", _POINTWISE),
    _norm(f"{name}.norm_out", f"{name}/norm_out"),
    *convolution(f"{name}.conv_out", f"{name}/conv_out"),
  ]


AUTOENCODER = (
  *_coder("encoder"),
  *_residual("encoder.down_blocks.{i}", "encoder/down_{i}"),
  *_resample("encoder.down_blocks.{i}", "encoder/down_{i}"),
  *convolution("quant_conv", "quant_conv"),
  *convolution("post_quant_conv", "post_quant_conv"),
  *_coder("decoder"),
  *_residual("decoder.up_blocks.{i}.resnets.{block}", "decoder/up_{i}_block_{block}"),
  *_resample("decoder.up_blocks.{i}.upsamplers.0", "decoder/up_{i}_resample"),
  # Wan 2.2.
  *_residual("encoder.down_blocks.{i}.resnets.{block}", "encoder/down_{i}_block_{block}"),
  *_resample("encoder.down_blocks.{i}.downsampler", "encoder/down_{i}_halve"),
  *_resample("decoder.up_blocks.{i}.upsampler", "decoder/up_{i}_double"),
)


def transformer_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of our `WanTransformer` for the config.json of a WanTransformer3DModel."""
  read = Reader(config)
  heads, head_dim = (
    read.size(name, WIDE) for name in ("num_attention_heads", "attention_head_dim")
  )
  read.only("qk_norm", "rms_norm_across_heads")
  read.only("cross_attn_norm", True)
  read.only("eps", 1e-6)
  takes_image = config.get("image_dim") is not None
  if takes_image:
    read.size("image_dim", WIDE)
  # The embeddings of the image reach the blocks at the width of the model.
  read.only("added_kv_proj_dim", heads * head_dim if takes_image else None)
  read.only("pos_embed_seq_len", None, others="models of the first and the last frame")
  fields = {
    "dim": heads * head_dim,
    "ffn_dim": read.size("ffn_dim"),
    "heads": heads,
    "depth": read.size("num_layers", DEEP),
    "out_channels": read.size("out_channels"),
    "patch": read.sizes("patch_size", 3),
    "freq_dim": read.size("freq_dim"),
    "takes_image": takes_image,
  }
  for name in ("in_channels", "text_dim"):
    read.size(name)
  # No window: all tokens see all others. Our positions go as far as is asked for.
  read.only("window_size", [-1, -1])
  read.rest("rope_max_seq_len")
  read.check()
  return fields


def autoencoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of our `WanAutoencoder` for the config.json of an AutoencoderKLWan."""
  # What diffusers takes where a file doesn't say; the first files had no such keys.
  read = Reader({"scale_factor_temporal": 4, "scale_factor_spatial": 8, **config})
  patch = 1 if config.get("patch_size") is None else read.size("patch_size", LEVELS)
  widths = read.sizes("dim_mult")
  channels = read.size("z_dim", WIDE)
  read.only("attn_scales", [])
  of_decoder = config.get("decoder_base_dim")
  for name in ("in_channels", "out_channels"):
    read.only(name, 3 * patch**2, *([None] if patch == 1 else []))
  fields = {
    "base_dim": read.size("base_dim", WIDE),
    "z_dim": channels,
    "dim_mult": widths,
    "num_res_blocks": read.size("num_res_blocks", LEVELS),
    "temporal_downsample": read.flags("temperal_downsample", len(widths) - 1),
    "latents_mean": read.numbers("latents_mean", channels),
    "latents_std": read.numbers("latents_std", channels, positive=True),
    "patch": patch,
    "decoder_base_dim": None if of_decoder is None else read.size("decoder_base_dim", WIDE),
    "residual": read.flag("is_residual"),
  }
  read.product("dim_mult and num_res_blocks", (len(widths), fields["num_res_blocks"]), MOST_BLOCKS)
  read.only("scale_factor_temporal", 2 ** sum(fields["temporal_downsample"]))
  read.only("scale_factor_spatial", patch * 2 ** (len(widths) - 1))
  read.rest("dropout")
  read.check()
  return fields


def transformer_config(
  transformer: WanTransformer, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """The config.json of a WanTransformer3DModel for our `WanTransformer`."""
  image = shapes.get("image/in/kernel")
  return {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": transformer.heads,
    "attention_head_dim": transformer.dim // transformer.heads,
    "ffn_dim": transformer.ffn_dim,
    "num_layers": transformer.depth,
    "in_channels": shapes["patch_embedding/kernel"][-2],
    "out_channels": transformer.out_channels,
    "patch_size": list(transformer.patch),
    "freq_dim": transformer.freq_dim,
    "text_dim": shapes["text/in/kernel"][0],
    "image_dim": image and image[0],
    "added_kv_proj_dim": image and transformer.dim,
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "eps": 1e-6,
  }


def autoencoder_config(
  autoencoder: WanAutoencoder, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """The config.json of an AutoencoderKLWan for our `WanAutoencoder`."""
  del shapes
  channels, patch = autoencoder.z_dim, autoencoder.patch
  return {
    "_class_name": "AutoencoderKLWan",
    "base_dim": autoencoder.base_dim,
    "decoder_base_dim": autoencoder.decoder_base_dim,
    "is_residual": autoencoder.residual,
    "z_dim": channels,
    "dim_mult": list(autoencoder.dim_mult),
    "num_res_blocks": autoencoder.num_res_blocks,
    "temperal_downsample": list(autoencoder.temporal_downsample),
    "latents_mean": list(autoencoder.latents_mean) or [0.0] * channels,
    "latents_std": list(autoencoder.latents_std) or [1.0] * channels,
    "in_channels": 3 * patch**2,
    "out_channels": 3 * patch**2,
    "patch_size": None if patch == 1 else patch,
    "scale_factor_temporal": autoencoder.strides[0],
    "scale_factor_spatial": autoencoder.strides[1],
  }
