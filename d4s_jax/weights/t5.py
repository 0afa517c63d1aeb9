"""T5 and umT5 encoders of transformers: names of their tensors, meaning of their configurations."""

from collections.abc import Mapping
from typing import Any

from d4s_jax.models.t5 import T5Encoder
from d4s_jax.weights.configs import DEEP, TRANSFORMERS, WIDE, Reader
from d4s_jax.weights.rules import Rule, dense

_BIAS = "SelfAttention.relative_attention_bias.weight"

ENCODER = (
  Rule("shared.weight", "embedding"),
  Rule("encoder.block.{layer}.layer.0.layer_norm.weight", "blocks/attention_norm/scale"),
  *dense("encoder.block.{layer}.layer.0.SelfAttention.q", "blocks/query", bias=False),
  *dense("encoder.block.{layer}.layer.0.SelfAttention.k", "blocks/key", bias=False),
  *dense("encoder.block.{layer}.layer.0.SelfAttention.v", "blocks/value", bias=False),
  *dense("encoder.block.{layer}.layer.0.SelfAttention.o", "blocks/attention_out", bias=False),
  # umT5 has a bias in every block, T5 one for all, which it keeps in the first block.
  Rule(f"encoder.block.{{layer}}.layer.0.{_BIAS}", "blocks/bias/table"),
  Rule(f"encoder.block.0.layer.0.{_BIAS}", "bias/table"),
  Rule("encoder.block.{layer}.layer.1.layer_norm.weight", "blocks/mlp_norm/scale"),
  *dense("encoder.block.{layer}.layer.1.DenseReluDense.wi_0", "blocks/mlp_gate", bias=False),
  *dense("encoder.block.{layer}.layer.1.DenseReluDense.wi_1", "blocks/mlp_in", bias=False),
  *dense("encoder.block.{layer}.layer.1.DenseReluDense.wo", "blocks/mlp_out", bias=False),
  Rule("encoder.final_layer_norm.weight", "norm/scale"),
)

# Another name of the same tensor, which some files have beside or in place of the first.
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of our `T5Encoder` for the config.json of a T5EncoderModel or UMT5EncoderModel."""
  read = Reader(config)
  read.only("feed_forward_proj", "gated-gelu")
  # In a file these two have the last word.
  read.only("dense_act_fn", "gelu_new")
  read.only("is_gated_act", True)
  read.only("layer_norm_epsilon", 1e-6)
  read.only("model_type", "umt5", "t5")
  fields = {
    "vocabulary": read.size("vocab_size"),
    "dim": read.size("d_model"),
    "depth": read.size("num_layers", DEEP),
    "heads": read.size("num_heads", WIDE),
    "head_dim": read.size("d_kv", WIDE),
    "ffn_dim": read.size("d_ff"),
    "per_layer_bias": config.get("model_type") != "t5",
    "buckets": read.size("relative_attention_num_buckets", default=32),
    "max_distance": read.size("relative_attention_max_distance", default=128),
  }
  # Those of the decoder, of an older T5, and of another program.
  decoder = ("num_decoder_layers", "scale_decoder_outputs")
  read.rest(*TRANSFORMERS, *decoder, "n_positions", "scalable_attention")
  read.check()
  return fields


def encoder_config(encoder: T5Encoder, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """The config.json of a T5EncoderModel or UMT5EncoderModel for our `T5Encoder`."""
  del shapes
  name, kind = ("UMT5", "umt5") if encoder.per_layer_bias else ("T5", "t5")
  return {
    "architectures": [f"{name}EncoderModel"],
    "model_type": kind,
    "vocab_size": encoder.vocabulary,
    "d_model": encoder.dim,
    "num_layers": encoder.depth,
    "num_heads": encoder.heads,
    "d_kv": encoder.head_dim,
    "d_ff": encoder.ffn_dim,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": encoder.buckets,
    "relative_attention_max_distance": encoder.max_distance,
  }
