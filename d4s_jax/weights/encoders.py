"""CLIP and DINO as transformers publishes them, read as they are: what evaluation looks with.

Folders hold config.json and model.safetensors, CLIP's also tokenizer.json.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from d4s_jax.formats import checked, parts, shards
from d4s_jax.models.clip import ACTIVATIONS, CLIPText, CLIPVision
from d4s_jax.models.dino import DINO
from d4s_jax.weights import clip
from d4s_jax.weights.configs import DEEP, TRANSFORMERS, WIDE, Reader
from d4s_jax.weights.parts import check_tensors
from d4s_jax.weights.rules import Rule, dense, norm, pairs

_TEXT = "text_model.encoder.layers.{layer}"
TEXT = (
  Rule("text_model.embeddings.token_embedding.weight", "tokens"),
  Rule("text_model.embeddings.position_embedding.weight", "positions"),
  *norm(f"{_TEXT}.layer_norm1", "blocks/attention_norm"),
  *dense(f"{_TEXT}.self_attn.q_proj", "blocks/query"),
  *dense(f"{_TEXT}.self_attn.k_proj", "blocks/key"),
  *dense(f"{_TEXT}.self_attn.v_proj", "blocks/value"),
  *dense(f"{_TEXT}.self_attn.out_proj", "blocks/attention_out"),
  *norm(f"{_TEXT}.layer_norm2", "blocks/mlp_norm"),
  *dense(f"{_TEXT}.mlp.fc1", "blocks/mlp_in"),
  *dense(f"{_TEXT}.mlp.fc2", "blocks/mlp_out"),
  *norm("text_model.final_layer_norm", "norm"),
  *dense("text_projection", "projection", bias=False),
)
_VIT = "encoder.layer.{layer}"
VIT = (
  Rule("embeddings.cls_token", "class_embedding", "1 1 d -> d"),
  Rule("embeddings.position_embeddings", "positions", "1 n d -> n d"),
  Rule(
    "embeddings.patch_embeddings.projection.weight",
    *("patch_embedding/kernel", "o i r s -> 1 r s i o"),
  ),
  Rule("embeddings.patch_embeddings.projection.bias", "patch_embedding/bias"),
  *norm(f"{_VIT}.layernorm_before", "blocks/attention_norm"),
  *dense(f"{_VIT}.attention.attention.query", "blocks/query"),
  *dense(f"{_VIT}.attention.attention.key", "blocks/key"),
  *dense(f"{_VIT}.attention.attention.value", "blocks/value"),
  *dense(f"{_VIT}.attention.output.dense", "blocks/attention_out"),
  *norm(f"{_VIT}.layernorm_after", "blocks/mlp_norm"),
  *dense(f"{_VIT}.intermediate.dense", "blocks/mlp_in"),
  *dense(f"{_VIT}.output.dense", "blocks/mlp_out"),
  *norm("layernorm", "norm"),
)
# What files may hold that an embedding doesn't depend on.
_IGNORED = ("logit_scale", "position_ids", "pooler.dense.weight", "pooler.dense.bias")
_MOST_TOKENIZER = 32 * 2**20
_STEM, _TOKENIZER = "model", "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A network with its parameters.

  Attributes:
    module: the network.
    params: its parameters.
  """

  module: nn.Module
  params: Any


@dataclasses.dataclass(frozen=True)
class CLIP:
  """Both encoders of a CLIP.

  Attributes:
    vision: of pictures.
    text: of token ids.
    tokenizer: contents of tokenizer.json; None if there is none.
    length: most tokens of a text.
  """

  vision: Encoder
  text: Encoder
  tokenizer: bytes | None
  length: int


def read_clip(folder: pathlib.Path) -> CLIP:
  """A folder of transformers' CLIPModel.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: it is another model, or damaged; lists every tensor that doesn't fit.
  """
  config = parts.read_config(folder)
  _check_kind(folder, config, "CLIPModel")
  vision, text, size = _clip_modules(folder, config)
  stored = _stored(folder)
  of_text = ("text_model.", "text_projection.")
  groups = [
    {name for name in stored.specs if name.startswith(of_text) is of_one}
    for of_one in (False, True)
  ]
  pixels = jax.ShapeDtypeStruct((1, vision.size, vision.size, 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, size), jnp.int32)
  tokenizer = folder / _TOKENIZER
  return CLIP(
    vision=_read(folder, stored, groups[0], vision, clip.ENCODER, pixels),
    text=_read(folder, stored, groups[1], text, TEXT, tokens),
    tokenizer=checked.read_bytes(tokenizer, _MOST_TOKENIZER, "tokenizer")
    if tokenizer.is_file()
    else None,
    length=size,
  )


def read_dino(folder: pathlib.Path) -> Encoder:
  """A folder of transformers' ViTModel, as `facebook/dino-vitb16`.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: it is another model, or damaged; lists every tensor that doesn't fit.
  """
  config = parts.read_config(folder)
  _check_kind(folder, config, "ViTModel")
  read = Reader(config)
  read.only("hidden_act", "gelu")
  read.only("num_channels", 3)
  read.only("qkv_bias", True)
  fields: dict[str, Any] = clip.sizes(read) | {"epsilon": read.number("layer_norm_eps")}
  # Those of a head that we don't have, and of masked training.
  read.rest(*TRANSFORMERS, "pooler_output_size", "pooler_act", "encoder_stride")
  _checked(folder, read.check)
  stored = _stored(folder)
  pixels = jax.ShapeDtypeStruct((1, fields["size"], fields["size"], 3), jnp.float32)
  return _read(folder, stored, set(stored.specs), DINO(**fields), VIT, pixels)


def identity(folder: pathlib.Path) -> str:
  """The first 16 digits of the SHA-256 of each file that an encoder is read from."""
  names = (f"{_STEM}*.safetensors*", parts.CONFIG, _TOKENIZER)
  told = []
  for path in (path for name in names for path in sorted(folder.glob(name))):
    with path.open("rb") as file:
      told.append(f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}")
  return " ".join(told)


def _clip_modules(
  folder: pathlib.Path, config: Mapping[str, Any]
) -> tuple[CLIPVision, CLIPText, int]:
  found = [config.get(name) for name in ("vision_config", "text_config")]
  sections = [section for section in found if isinstance(section, dict)]
  if len(sections) < len(found):
    raise ValueError(f"{folder}: config.json without vision_config and text_config.")
  # Where a file doesn't say, OpenAI's ViT-B/32 is meant, as in transformers.
  defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
  see, read = (Reader(defaults | section) for section in sections)
  whole = Reader(config)
  projection = whole.size("projection_dim", WIDE)
  # Old files say some of it twice.
  for name, section in zip(("vision_config", "text_config"), sections):
    again = config.get(f"{name}_dict")
    same = {x: (defaults | section).get(x) for x in again} if isinstance(again, dict) else {}
    whole.only(f"{name}_dict", None, same)

  def common(reader: Reader) -> dict[str, Any]:
    reader.only("hidden_act", *ACTIVATIONS)
    reader.only("layer_norm_eps", 1e-5)
    return {
      "dim": reader.size("hidden_size", WIDE),
      "ffn_dim": reader.size("intermediate_size"),
      "heads": reader.size("num_attention_heads", WIDE),
      "depth": reader.size("num_hidden_layers", DEEP),
      "projection_dim": projection,
    }

  seen, said = common(see), common(read)
  see.only("num_channels", 3)
  size, patch = see.size("image_size", WIDE), see.size("patch_size", DEEP)
  vocabulary = read.size("vocab_size")
  length = read.size("max_position_embeddings", WIDE, 77)
  whole.rest(*TRANSFORMERS, "logit_scale_init_value", "text_config", "vision_config")
  for section in (see, read):
    section.rest(*TRANSFORMERS, "projection_dim")
  for reader in (whole, see, read):
    _checked(folder, reader.check)
  acts = [(defaults | section)["hidden_act"] for section in sections]
  vision = CLIPVision(**seen, size=size, patch=patch, activation=acts[0])
  text = CLIPText(**said, vocabulary=vocabulary, length=length, activation=acts[1])
  return vision, text, length


def _check_kind(folder: pathlib.Path, config: Mapping[str, Any], kind: str) -> None:
  if parts.class_name(config) != kind:
    raise ValueError(
      f"{folder} holds a {parts.class_name(config)!r:.60}; expected a {kind} of transformers."
    )


def _checked(folder: pathlib.Path, check: Callable[[], None]) -> None:
  try:
    check()
  except ValueError as error:
    raise ValueError(f"{folder / parts.CONFIG}: {error}") from error


def _stored(folder: pathlib.Path) -> shards.Shards:
  stored = shards.Shards(folder, _STEM)
  stored.specs = {name: spec for name, spec in stored.specs.items() if not name.endswith(_IGNORED)}
  parts.check_floats(folder, stored.specs)
  return stored


def _read(
  folder: pathlib.Path,
  stored: shards.Shards,
  names: set[str],
  module: nn.Module,
  rules: Sequence[Rule],
  *inputs: jax.ShapeDtypeStruct,
) -> Encoder:
  """The tensors of a file that are these names, all of which the network must have, as float32."""
  try:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    flat: Any = traverse_util.flatten_dict(nn.unbox(shapes), sep="/")
    table = pairs(rules, {path: x.shape for path, x in flat.items()})
  except (TypeError, ValueError, ArithmeticError, LookupError) as error:
    raise ValueError(f"{folder}: its config.json describes no model ({error}).") from error
  expected = {pair.torch: pair.torch_shape for pair in table}
  check_tensors(folder, expected, {name: stored.specs[name] for name in names})
  rows: dict[str, list[np.ndarray]] = {}
  for pair in table:
    rows.setdefault(pair.flax, []).append(pair.to_flax(parts.as_float32(stored, pair.torch)))
  stacked = {pair.flax for pair in table if pair.row is not None}
  arrays = {path: jnp.asarray(np.stack(x) if path in stacked else x[0]) for path, x in rows.items()}
  return Encoder(module, traverse_util.unflatten_dict(arrays, sep="/"))
