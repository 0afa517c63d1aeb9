"""A part of the model in our layout on disk: a folder of config.json and safetensors.

`model.safetensors`, or `model-0000i-of-0000N.safetensors` with an index (see `shards`), holds the
parameters under their Flax paths ("blocks/mlp_in/kernel"; blocks are stacked along a first axis) in
the type that they were published in. `config.json` is data:

  format, version   "d4s_jax part", 1
  part              one of `PARTS`
  fields            constructor arguments of the class in `models`; of an adapter, rank and scale
  published         the config.json that the weights came with, unchanged; of an adapter, which
                    transformer it is for, and how it was written (`weights.adapter_styles`); of
                    an LDRM, that of the folder which left for PyTorch (`weights.own`)
  names             names of the file it came from that are not in the table, else empty

Under "unread/" are tensors that the file it came from had and no model reads; under "camera/", in
an LDRM's, what belongs to the transformer that it was trained with.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from d4s_jax.formats import checked, shards
from d4s_jax.formats.tensors import Spec

FORMAT = "d4s_jax part"
VERSION = 1
LDRM = "ldrm"
PARTS = ("autoencoder", "text_encoder", "image_encoder", "transformer", "adapter", LDRM)
CAMERA = "camera/"
UNREAD = "unread/"
STEM = "model"
CONFIG = "config.json"

_LONGEST_CONFIG = 2**20
# What can be trained on; NumPy knows the narrow ones by JAX's leave.
FLOATS = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "F8_E4M3": "float8_e4m3fn",
  "F8_E5M2": "float8_e5m2",
}


@dataclasses.dataclass(frozen=True)
class Description:
  """What config.json says; see the head of this module.

  Attributes:
    part: which part of the model it is.
    fields: constructor arguments of its class.
    published: the original config.json.
    names: for a name of the table, those that the original file used instead.
  """

  part: str
  fields: Mapping[str, Any]
  published: Mapping[str, Any]
  names: Mapping[str, list[str]]

  def encode(self) -> dict[str, Any]:
    """The contents of config.json."""
    return {"format": FORMAT, "version": VERSION} | dataclasses.asdict(self)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The config.json of a folder, an object of any contents."""
  path = checked.within(folder, CONFIG)
  value = checked.parse(checked.read_bytes(path, _LONGEST_CONFIG, "configuration"), str(path))
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected an object.")
  return value


def is_description(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is that of a part in our layout."""
  return config.get("format") == FORMAT


def decode(config: Mapping[str, Any], where: str) -> Description:
  """The description in a config.json of ours.

  Raises:
    ValueError: it is damaged, or of a newer version.
  """
  if config.get("version") != VERSION:
    raise ValueError(f"{where}: version {config.get('version')!r:.20}; expected {VERSION}.")
  names = [field.name for field in dataclasses.fields(Description)]
  found = checked.fields(config, where, ["format", "version", *names])
  if found["part"] not in PARTS:
    raise ValueError(f"{where}: part {found['part']!r:.40}; expected one of {', '.join(PARTS)}.")
  for name in ("fields", "published", "names"):
    if not isinstance(found[name], dict):
      raise ValueError(f"{where}: {name}; expected an object.")
  return Description(**{name: found[name] for name in names})


def class_name(published: Mapping[str, Any]) -> str:
  """The PyTorch class that a config.json of diffusers or transformers names."""
  names = published.get("architectures") or [published.get("_class_name")]
  return str(names[0]) if isinstance(names, list) else str(names)


def is_published(folder: pathlib.Path) -> bool:
  """Whether a folder holds a model, a pipeline or an adapter that was not converted to ours."""
  if (folder / CONFIG).is_file():
    config = read_config(folder)
    known = {"_class_name", "architectures", "patch_embedding"}
    return not is_description(config) and bool(known & config.keys())
  inside = [read_config(path.parent) for path in folder.glob(f"*/{CONFIG}")]
  if (folder / "model_index.json").is_file() or (folder / "diff4splat" / CONFIG).is_file():
    return not any(is_description(config) for config in inside)
  return not inside and any(folder.glob("*.safetensors"))


def unconverted(folder: pathlib.Path) -> str:
  """What to say of a folder that `is_published`."""
  return (
    f"{folder} is in the layout of PyTorch; python -m d4s_jax.convert --from={folder} --to=NEW"
    " --format=flax makes it ours."
  )


def check_floats(where: pathlib.Path | str, specs: Mapping[str, Spec]) -> None:
  """Raises ValueError unless all tensors are of floating-point numbers."""
  wrong = [f"{name!r:.120} is {x.dtype}" for name, x in specs.items() if x.dtype not in FLOATS]
  if wrong:
    raise ValueError(f"{where}: {'; '.join(wrong[:5])}; expected {', '.join(FLOATS)}.")


def find(folder: pathlib.Path, part: str) -> pathlib.Path | None:
  """Where a part lies: this folder, or one in it if it is a converted pipeline; None if neither.

  Raises:
    ValueError: it lies there several times.
  """
  if (folder / CONFIG).is_file():
    return folder if is_description(read_config(folder)) else None
  found = [
    path.parent
    for path in sorted(folder.glob(f"*/{CONFIG}"))
    if (config := read_config(path.parent)).get("part") == part and is_description(config)
  ]
  if len(found) > 1:
    names = ", ".join(path.name for path in found)
    raise ValueError(f"{folder} holds several of {part} ({names}); name the folder of one.")
  return found[0] if found else None


def open_part(folder: pathlib.Path, part: str) -> tuple[Description, shards.Shards]:
  """A part in our layout: its description, and its parameters by path, not read yet.

  Raises:
    ValueError: it is damaged, another part, or not of floating-point numbers.
  """
  description = decode(read_config(folder), str(folder / CONFIG))
  if description.part != part:
    raise ValueError(f"{folder} holds the {description.part}; expected the {part}.")
  stored = shards.Shards(folder, STEM)
  check_floats(folder, stored.specs)
  return description, stored


def numbers(stored: shards.Shards, name: str) -> np.ndarray:
  """The numbers of one tensor, in the type they are stored in."""
  return stored.read(name).view(jnp.dtype(FLOATS[stored.specs[name].dtype]))


def as_float32(stored: shards.Shards, name: str) -> np.ndarray:
  """The numbers of one tensor."""
  return numbers(stored, name).astype(np.float32)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON as people read it."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
