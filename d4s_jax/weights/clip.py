"""CLIP image encoders of transformers: names of their tensors, meaning of their configurations."""

from collections.abc import Mapping
from typing import Any

from d4s_jax.models.clip import CLIPVision
from d4s_jax.weights.configs import DEEP, TRANSFORMERS, WIDE, Reader
from d4s_jax.weights.rules import Rule, dense, norm

# Old files of a model without projection have it, new ones don't.
PREFIX = "vision_model."
_PROJECTED = "CLIPVisionModelWithProjection"
_LAYER = f"{PREFIX}encoder.layers.{{layer}}"


ENCODER = (
  Rule(f"{PREFIX}embeddings.class_embedding", "class_embedding"),
  Rule(
    f"{PREFIX}embeddings.patch_embedding.weight",
    *("patch_embedding/kernel", "o i r s -> 1 r s i o"),
  ),
  Rule(f"{PREFIX}embeddings.position_embedding.weight", "positions"),
  *norm(f"{PREFIX}pre_layrnorm", "norm_in"),
  *norm(f"{_LAYER}.layer_norm1", "blocks/attention_norm"),
  *dense(f"{_LAYER}.self_attn.q_proj", "blocks/query"),
  *dense(f"{_LAYER}.self_attn.k_proj", "blocks/key"),
  *dense(f"{_LAYER}.self_attn.v_proj", "blocks/value"),
  *dense(f"{_LAYER}.self_attn.out_proj", "blocks/attention_out"),
  *norm(f"{_LAYER}.layer_norm2", "blocks/mlp_norm"),
  *dense(f"{_LAYER}.mlp.fc1", "blocks/mlp_in"),
  *dense(f"{_LAYER}.mlp.fc2", "blocks/mlp_out"),
  *norm(f"{PREFIX}post_layernorm", "norm"),
  *dense("visual_projection", "projection", bias=False),
)


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of our `CLIPVision` for the config.json of a CLIPVisionModel, with projection or not."""
  # Not said means another activation than ours.
  read = Reader({"hidden_act": "quick_gelu", **config})
  read.only("hidden_act", "gelu")
  read.only("layer_norm_eps", 1e-5)
  read.only("num_channels", 3)
  projected = config.get("architectures") == [_PROJECTED]
  fields = sizes(read) | {
    "projection_dim": read.size("projection_dim", WIDE) if projected else None,
  }
  read.rest(*TRANSFORMERS, "projection_dim")
  read.check()
  return fields


def sizes(read: Reader) -> dict[str, Any]:
  """Fields that every transformer over the patches of a picture has, of its config.json."""
  return {
    "dim": read.size("hidden_size", WIDE),
    "ffn_dim": read.size("intermediate_size"),
    "heads": read.size("num_attention_heads", WIDE),
    "depth": read.size("num_hidden_layers", DEEP),
    "size": read.size("image_size", WIDE),
    "patch": read.size("patch_size", DEEP),
  }


def encoder_config(encoder: CLIPVision, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """The config.json of a CLIPVisionModel, with projection or not, for our `CLIPVision`."""
  del shapes
  projection = encoder.projection_dim
  config = {
    "architectures": ["CLIPVisionModel" if projection is None else _PROJECTED],
    "model_type": "clip_vision_model",
    "hidden_size": encoder.dim,
    "intermediate_size": encoder.ffn_dim,
    "num_attention_heads": encoder.heads,
    "num_hidden_layers": encoder.depth,
    "num_channels": 3,
    "image_size": encoder.size,
    "patch_size": encoder.patch,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
  }
  return config if projection is None else config | {"projection_dim": projection}
