"""The published models that we have a counterpart of, by the name of their PyTorch class."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from d4s_jax.models.clip import CLIPVision
from d4s_jax.models.cogvideox.autoencoder import CogVideoXAutoencoder
from d4s_jax.models.cogvideox.transformer import CogVideoXTransformer
from d4s_jax.models.t5 import T5Encoder
from d4s_jax.models.wan.autoencoder import WanAutoencoder
from d4s_jax.models.wan.transformer import WanTransformer
from d4s_jax.weights import clip, cogvideox, t5, wan
from d4s_jax.weights.rules import Rule

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Component:
  """A kind of published model.

  Attributes:
    part: which part of our system it is.
    stem: how the names of its files begin.
    rules: names of its tensors.
    fields: config.json to the fields of `module`; raises ValueError for what we don't have.
    config: a `module`, and the shapes of its parameters by path, to a config.json.
    module: our class.
    inputs: shapes of inputs that fix the shapes of all parameters, from config.json and fields.
    aliases: other names of tensors that files may use.
    prefix: beginning of names that files may leave out, of all of them together.
    unread: patterns of names of tensors that files may have and no model reads, and the parameter
      whose shape they have.
  """

  part: str
  stem: str
  rules: Sequence[Rule]
  fields: Callable[[Mapping[str, Any]], Fields]
  config: Callable[[Any, Mapping[str, tuple[int, ...]]], dict[str, Any]]
  module: type[nn.Module]
  inputs: Callable[[Mapping[str, Any], Fields], tuple[Any, ...]]
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  prefix: str = ""
  unread: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def shapes(self, config: Mapping[str, Any], fields: Fields) -> dict[str, tuple[int, ...]]:
    """Shape of each of our parameters, by path; nothing is computed.

    Raises:
      ValueError: the sizes don't go together.
    """
    try:
      module, inputs = self.module(**fields), self.inputs(config, fields)
      params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    except (TypeError, ValueError, ArithmeticError) as error:
      reason = str(error).strip().splitlines() or [type(error).__name__]
      raise ValueError(f"the configuration describes no model ({reason[0]:.200})") from error
    flat: Any = traverse_util.flatten_dict(nn.unbox(params), sep="/")
    return {path: x.shape for path, x in flat.items()}


def _transformer_inputs(config: Mapping[str, Any], fields: Fields) -> tuple[Any, ...]:
  latents = _float(1, *fields["patch"], config["in_channels"])
  image = _float(1, 1, config["image_dim"]) if fields["takes_image"] else None
  return latents, _float(1), _float(1, 1, config["text_dim"]), None, image


def _cogvideox_inputs(config: Mapping[str, Any], fields: Fields) -> tuple[Any, ...]:
  latents = _float(1, *fields["patch"], config["in_channels"])
  return latents, _float(1), _float(1, 1, config["text_embed_dim"])


def _autoencoder_inputs(
  module: type[WanAutoencoder] | type[CogVideoXAutoencoder],
) -> Callable[[Mapping[str, Any], Fields], tuple[Any, ...]]:
  def inputs(config, fields):
    del config
    time, rows, columns = module(**fields).strides
    return (_float(1, 1 + time, rows, columns, 3),)

  return inputs


def _encoder_inputs(config: Mapping[str, Any], fields: Fields) -> tuple[Any, ...]:
  del config, fields
  return jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.bool_)


def _image_inputs(config: Mapping[str, Any], fields: Fields) -> tuple[Any, ...]:
  del config
  return (_float(1, fields["size"], fields["size"], 3),)


def _float(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


_ENCODER = Component(
  part="text_encoder",
  stem="model",
  rules=t5.ENCODER,
  fields=t5.encoder_fields,
  config=t5.encoder_config,
  module=T5Encoder,
  inputs=_encoder_inputs,
  aliases=t5.ALIASES,
)
_IMAGE_ENCODER = Component(
  part="image_encoder",
  stem="model",
  rules=clip.ENCODER,
  fields=clip.encoder_fields,
  config=clip.encoder_config,
  module=CLIPVision,
  inputs=_image_inputs,
  prefix=clip.PREFIX,
)
COMPONENTS = {
  "WanTransformer3DModel": Component(
    part="transformer",
    stem="diffusion_pytorch_model",
    rules=wan.TRANSFORMER,
    fields=wan.transformer_fields,
    config=wan.transformer_config,
    module=WanTransformer,
    inputs=_transformer_inputs,
    unread=wan.UNREAD,
  ),
  "AutoencoderKLWan": Component(
    part="autoencoder",
    stem="diffusion_pytorch_model",
    rules=wan.AUTOENCODER,
    fields=wan.autoencoder_fields,
    config=wan.autoencoder_config,
    module=WanAutoencoder,
    inputs=_autoencoder_inputs(WanAutoencoder),
  ),
  "CogVideoXTransformer3DModel": Component(
    part="transformer",
    stem="diffusion_pytorch_model",
    rules=cogvideox.TRANSFORMER,
    fields=cogvideox.transformer_fields,
    config=cogvideox.transformer_config,
    module=CogVideoXTransformer,
    inputs=_cogvideox_inputs,
  ),
  "AutoencoderKLCogVideoX": Component(
    part="autoencoder",
    stem="diffusion_pytorch_model",
    rules=cogvideox.AUTOENCODER,
    fields=cogvideox.autoencoder_fields,
    config=cogvideox.autoencoder_config,
    module=CogVideoXAutoencoder,
    inputs=_autoencoder_inputs(CogVideoXAutoencoder),
  ),
  "T5EncoderModel": _ENCODER,
  "UMT5EncoderModel": _ENCODER,
  "CLIPVisionModel": _IMAGE_ENCODER,
  "CLIPVisionModelWithProjection": _IMAGE_ENCODER,
}


def of(config: Mapping[str, Any]) -> Component:
  """The component that a config.json of diffusers or transformers names.

  Raises:
    ValueError: we have no counterpart.
  """
  names = config.get("architectures") or [config.get("_class_name")]
  name = names[0] if isinstance(names, list) and names else None
  if not isinstance(name, str) or name not in COMPONENTS:
    raise ValueError(f"the model is a {name!r:.60}, none of {', '.join(COMPONENTS)}")
  return COMPONENTS[name]
