"""How published adapters are written: files, names of tensors, and where alpha / rank stands.

diffusers writes pytorch_lora_weights.safetensors, and PEFT's configuration into its header; PEFT
itself writes adapter_model.safetensors with adapter_config.json beside it. Other programs leave the
configuration out, and some have a tensor "LAYER.alpha" beside each pair of matrices.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from d4s_jax.formats import checked

PEFT_CONFIG = "adapter_config.json"
_STEMS = ("pytorch_lora_weights", "adapter_model")
_HEADER = "lora_adapter_metadata"
_PREFIXES = ("transformer.", "base_model.model.", "")
_SUFFIXES = (
  (".lora_A.weight", ".lora_B.weight"),
  (".lora_A.default.weight", ".lora_B.default.weight"),
  (".lora.down.weight", ".lora.up.weight"),
  (".lora_down.weight", ".lora_up.weight"),
)
_ALPHA = ".alpha"
_ALPHA_TYPES = ("", "F64", "F32", "F16", "BF16")
# What else PEFT can be told to compute, and the values that switch it off.
_PLAIN = {
  "peft_type": ("LORA",),
  "bias": ("none",),
  **dict.fromkeys(
    ("use_dora", "use_rslora", "use_qalora", "lora_bias", "fan_in_fan_out"), (False,)
  ),
  **dict.fromkeys(("rank_pattern", "alpha_pattern"), ({},)),
  **dict.fromkeys(("modules_to_save", "layer_replication"), (None,)),
}


@dataclasses.dataclass(frozen=True)
class Style:
  """How one adapter is written; the defaults are what diffusers does.

  Attributes:
    stem: name of the file without its ending.
    prefix: what the name of every tensor begins with.
    down: ending of the tensor that is applied first, [rank, in].
    up: ending of the one applied second, [out, rank].
    alpha_dtype: type of the tensor "LAYER.alpha" of each layer, "" if there are none.
    alpha: their value.
    metadata: texts in the header of the file.
    config: the configuration in a file of its own; empty if there is none.
  """

  stem: str = _STEMS[0]
  prefix: str = _PREFIXES[0]
  down: str = _SUFFIXES[0][0]
  up: str = _SUFFIXES[0][1]
  alpha_dtype: str = ""
  alpha: float = 0.0
  metadata: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"format": "pt"})
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def layer(self, name: str) -> str | None:
    """The layer that a tensor belongs to, None if it is named in another way."""
    if not name.startswith(self.prefix):
      return None
    for suffix in (self.down, self.up, _ALPHA):
      if name.endswith(suffix):
        return name.removeprefix(self.prefix).removesuffix(suffix)
    return None

  def names(self, layer: str) -> tuple[str, str]:
    """Names of the tensors `down` and `up` of a layer."""
    return f"{self.prefix}{layer}{self.down}", f"{self.prefix}{layer}{self.up}"

  def alpha_name(self, layer: str) -> str:
    """Name of the tensor alpha of a layer."""
    return f"{self.prefix}{layer}{_ALPHA}"

  def scale(self, rank: int, where: str) -> float:
    """What the adapter's output is multiplied by, alpha / rank; 1 where nothing is said.

    Raises:
      ValueError: it is said in two ways, or something else than plain LoRA is asked for.
    """
    found = [_stated(self.config, rank, f"{where}: {PEFT_CONFIG}")] if self.config else []
    if _HEADER in self.metadata:
      place = f"{where}: {_HEADER}"
      value = checked.parse(self.metadata[_HEADER].encode(), place)
      if not isinstance(value, dict):
        raise ValueError(f"{place}; expected an object.")
      fields = {key.removeprefix(self.prefix): x for key, x in value.items()}
      found.append(_stated(fields, rank, place))
    if self.alpha_dtype:
      found.append(self.alpha / rank)
    if len(set(found)) > 1 or not all(map(math.isfinite, found)):
      raise ValueError(f"{where}: alpha / rank is {' and '.join(map(str, found))}; expected one.")
    return found[0] if found else 1.0


def recognise(names: Collection[str], where: str) -> Style:
  """The prefix and the endings that names of tensors have.

  Raises:
    ValueError: they are none of an adapter's.
  """
  for down, up in _SUFFIXES:
    for prefix in _PREFIXES:
      if any(name.startswith(prefix) and name.endswith((down, up)) for name in names):
        return Style(prefix=prefix, down=down, up=up)
  some = ", ".join(f"{name!r:.80}" for name in sorted(names)[:3])
  raise ValueError(
    f"{where} holds {some or 'nothing'}; expected the tensors of an adapter, named like"
    " transformer.blocks.0.attn1.to_q.lora_A.weight."
  )


def decode(value: Mapping[str, Any], where: str) -> Style:
  """The style that was written down as an object.

  Raises:
    ValueError: it is none of those above.
  """
  style = Style(**checked.fields(value, where, [x.name for x in dataclasses.fields(Style)]))
  texts = style.metadata if isinstance(style.metadata, dict) else {"": None}
  legal = (
    style.stem in _STEMS
    and style.prefix in _PREFIXES
    and (style.down, style.up) in _SUFFIXES
    and style.alpha_dtype in _ALPHA_TYPES
    and all(isinstance(x, str) for x in texts.values())
    and isinstance(style.config, dict)
  )
  if not legal:
    raise ValueError(f"{where}: published; expected what --format=flax wrote, restore the file.")
  checked.number(style.alpha, f"{where}: alpha")
  return style


def stem(files: Collection[str]) -> str | None:
  """The stem of an adapter's weights among the names of a folder's files, None without any."""
  return next((x for x in _STEMS if f"{x}.safetensors" in files), None)


def metadata(rank: int, scale: float, targets: list[str]) -> dict[str, str]:
  """What diffusers writes into the header: PEFT's configuration.

  Args:
    rank: of the adapter.
    scale: of its output.
    targets: ends of the names of its layers.
  """
  alpha = scale * rank
  config = {
    "r": rank,
    "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    "target_modules": targets,
  }
  prefixed = {f"{_PREFIXES[0]}{key}": value for key, value in config.items()}
  return {"format": "pt", _HEADER: json.dumps(prefixed, indent=2, sort_keys=True)}


def _stated(config: Mapping[str, Any], rank: int, where: str) -> float:
  """The quotient alpha / rank in a configuration of PEFT that asks for nothing else."""
  other = [
    f"{key} is {config[key]!r:.60}"
    for key, legal in _PLAIN.items()
    if key in config and config[key] not in (*legal, None)
  ]
  if config.get("r") != rank:
    other.append(f"r is {config.get('r')!r:.20}, and the tensors have rank {rank}")
  if other:
    raise ValueError(f"{where}: {'; '.join(other)}; expected plain LoRA of one rank.")
  return checked.number(config.get("lora_alpha"), f"{where}: lora_alpha") / rank
