"""Low-rank adapters (LoRA) in and out: diffusers' and PEFT's layout to ours, and back.

In ours an adapter is a part like any other (see `formats.parts`): "blocks/mlp_in/down" [layers, in,
rank] and "blocks/mlp_in/up" [layers, rank, out], stacked over the blocks. Which layer is which is
taken from the table of the transformer that it belongs to. An adapter must have one rank, and all
blocks of a layer if it has one.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from d4s_jax.formats import checked, parts
from d4s_jax.formats.tensors import Spec, TensorFile
from d4s_jax.models.adapter import LoRA
from d4s_jax.weights import adapter_styles, adapter_tables
from d4s_jax.weights.adapter_styles import PEFT_CONFIG, Style
from d4s_jax.weights.adapter_tables import (
  TRANSFORMERS,
  commonest,
  layer_name,
  our_path,
  our_shapes,
  published_shapes,
)
from d4s_jax.weights.components import Component
from d4s_jax.weights.parts import Conversion, Stored, check_tensors
from d4s_jax.weights.rules import pairs

PART = "adapter"
_LONGEST_CONFIG = 2**20


def is_adapter(folder: pathlib.Path) -> bool:
  """Whether a folder holds an adapter alone, published or in our layout."""
  if (folder / parts.CONFIG).is_file():
    config = parts.read_config(folder)
    return parts.is_description(config) and config.get("part") == PART
  return adapter_styles.stem({path.name for path in folder.glob("*.safetensors")}) is not None


def to_flax(folder: pathlib.Path) -> Conversion:
  """A published adapter to our layout.

  Raises:
    ValueError: it is of no transformer of ours or no plain LoRA; lists every tensor that is
      missing, unexpected or misshapen.
  """
  if (folder / parts.CONFIG).is_file():
    raise ValueError(f"{folder} is in our layout already; --format=torch takes it back.")
  stem = adapter_styles.stem({path.name for path in folder.glob("*.safetensors")})
  file = TensorFile(checked.within(folder, f"{stem}.safetensors"))
  style = adapter_styles.recognise(file.specs, str(file.path))
  layers = {layer for name in file.specs if (layer := style.layer(name))}
  kind, component, kernels = _recognise(layers, style, file)
  downs = [name for name in file.specs if name.endswith(style.down)]
  rank = checked.integer(commonest(_sizes(file, downs, 0)), f"{file.path}: rank", 1, 2**20)
  table = pairs(component.rules, kernels)
  alphas = [name for pair in table if (name := style.alpha_name(layer_name(pair))) in file.specs]
  expected = published_shapes(table, style, rank)
  if alphas:
    expected |= {style.alpha_name(layer_name(pair)): () for pair in table}
  check_tensors(folder, expected, file.specs, f"an adapter of rank {rank} of a {kind}")
  parts.check_floats(folder, file.specs)
  style = dataclasses.replace(
    style,
    **_alpha(file, alphas),
    stem=stem,
    metadata=file.metadata,
    config=_peft_config(folder),
  )
  scale = style.scale(rank, str(folder))

  rows: dict[str, list[str]] = collections.defaultdict(list)
  for pair in table:
    for end, name in zip(("down", "up"), style.names(layer_name(pair))):
      rows[our_path(pair, end)].append(name)
  kinds = {path: {file.specs[name].dtype for name in rows[path]} for path in rows}
  mixed = [f"{path} is {' and '.join(sorted(x))}" for path, x in kinds.items() if len(x) > 1]
  if mixed:
    raise ValueError(f"{folder}: {'; '.join(mixed)}; expected one type in all blocks.")
  specs = {path: Spec(min(kinds[path]), shape) for path, shape in our_shapes(kernels, rank).items()}

  def pieces(path: str) -> Iterator[np.ndarray]:
    return (file.read(name).T for name in rows[path])

  published = {"_class_name": kind} | dataclasses.asdict(style)
  description = parts.Description(PART, {"rank": rank, "scale": scale}, published, {})
  return Conversion(description.encode(), parts.STEM, {}, specs, pieces)


def to_torch(folder: pathlib.Path) -> Conversion:
  """An adapter in our layout back to the one it came from: the same tensors, bit for bit.

  Raises:
    ValueError: the folder is damaged or in another layout; lists every wrong tensor.
  """
  if not (folder / parts.CONFIG).is_file():
    raise ValueError(f"{folder} is not in our layout; --format=flax makes it so.")
  where = str(folder / parts.CONFIG)
  description, stored = parts.open_part(folder, PART)
  published = dict(description.published)
  kind = published.pop("_class_name", None)
  if kind not in TRANSFORMERS:
    raise ValueError(f"{where}: an adapter of {kind!r:.60}; expected {', '.join(TRANSFORMERS)}.")
  style = adapter_styles.decode(published, where)
  fields = checked.fields(description.fields, where, ("rank", "scale"))
  rank = checked.integer(fields["rank"], f"{where}: rank", 1, 2**20)
  if style.scale(rank, where) != fields["scale"]:
    raise ValueError(f"{where}: scale is not that of `published`; restore the file.")
  kernels = adapter_tables.kernels(stored.specs, TRANSFORMERS[kind])
  if not kernels:
    raise ValueError(f"{folder} holds no layer of a {kind}; expected those of an adapter.")
  check_tensors(folder, our_shapes(kernels, rank), stored.specs, f"an adapter of rank {rank}")
  return _published(kind, style, kernels, rank, stored)


def export(module: Any, lora: LoRA, stored: Stored) -> Conversion:
  """The adapter of a run as diffusers writes it.

  Args:
    module: the transformer.
    lora: what its adapter is.
    stored: the adapter's parameters by path.
  """
  kind = next(name for name, x in TRANSFORMERS.items() if isinstance(module, x.module))
  kernels = adapter_tables.kernels(stored.specs, TRANSFORMERS[kind])
  table = pairs(TRANSFORMERS[kind].rules, kernels)
  # PEFT knows layers by the end of their name: what follows the number of the block.
  targets = sorted({re.split(r"\.\d+\.", layer_name(pair), maxsplit=1)[-1] for pair in table})
  style = Style(metadata=adapter_styles.metadata(lora.rank, lora.scale, targets))
  return _published(kind, style, kernels, lora.rank, stored)


def _published(
  kind: str,
  style: Style,
  kernels: Mapping[str, tuple[int, ...]],
  rank: int,
  stored: Stored,
) -> Conversion:
  """The conversion of an adapter of ours to a published one in this style."""
  table = pairs(TRANSFORMERS[kind].rules, kernels)
  shapes = published_shapes(table, style, rank)
  sources = {
    name: (our_path(pair, end), pair.row)
    for pair in table
    for end, name in zip(("down", "up"), style.names(layer_name(pair)))
  }
  specs = {
    name: Spec(stored.specs[path].dtype, shapes[name]) for name, (path, _) in sources.items()
  }
  alphas = [style.alpha_name(layer_name(pair)) for pair in table] if style.alpha_dtype else []
  specs |= {name: Spec(style.alpha_dtype, ()) for name in alphas}

  def pieces(name: str) -> Iterator[np.ndarray]:
    if name not in sources:
      yield np.array(style.alpha, jnp.dtype(parts.FLOATS[style.alpha_dtype]))
      return
    path, row = sources[name]
    yield stored.read(path, row).T

  return Conversion(style.config, style.stem, style.metadata, specs, pieces, PEFT_CONFIG)


def _recognise(
  layers: set[str], style: Style, file: TensorFile
) -> tuple[str, Component, dict[str, tuple[int, ...]]]:
  """The transformer whose layers these are, and the shapes of their kernels in our layout."""
  found = {kind: adapter_tables.rows(layers, component) for kind, component in TRANSFORMERS.items()}
  kind = max(found, key=lambda kind: len(found[kind]))
  if not layers:
    raise ValueError(f"{file.path} has no tensor of a layer; expected those of an adapter.")
  if not found[kind]:
    raise ValueError(
      f"{file.path} has layers like {min(layers)!r:.80}, which are of none of"
      f" {', '.join(TRANSFORMERS)}."
    )
  # One number of blocks for all layers: what a layer lacks is missing.
  depth = 1 + max((row for _, row in found[kind].values() if row is not None), default=0)
  kernels = {}
  for path, row in found[kind].values():
    names = [style.names(layer) for layer, (other, _) in found[kind].items() if other == path]
    before = commonest(_sizes(file, [down for down, _ in names], 1))
    after = commonest(_sizes(file, [up for _, up in names], 0))
    kernels[path] = (before, after) if row is None else (depth, before, after)
  return kind, TRANSFORMERS[kind], kernels


def _alpha(file: TensorFile, names: list[str]) -> dict[str, Any]:
  """Type and value of the tensors alpha, which must agree; nothing if there are none."""
  found = {
    (kind, float(file.read(name).view(jnp.dtype(parts.FLOATS[kind]))))
    for kind, name in ((file.specs[name].dtype, name) for name in names)
  }
  if len(found) > 1:
    raise ValueError(f"{file.path} has several values of alpha; expected one, of one type.")
  return {key: value for x in found for key, value in zip(("alpha_dtype", "alpha"), x)}


def _peft_config(folder: pathlib.Path) -> dict[str, Any]:
  """PEFT's adapter_config.json, empty if there is none."""
  if not (folder / PEFT_CONFIG).exists():
    return {}
  path = checked.within(folder, PEFT_CONFIG)
  value = checked.parse(checked.read_bytes(path, _LONGEST_CONFIG, "configuration"), str(path))
  if not isinstance(value, dict) or not value:
    raise ValueError(f"{path}: expected an object.")
  return value


def _sizes(file: TensorFile, names: Iterable[str], axis: int) -> list[int]:
  """The sizes of matrices along an axis."""
  shapes = [file.specs[name].shape for name in names if name in file.specs]
  return [shape[axis] for shape in shapes if len(shape) == 2]
