"""One published model to our layout and back: checked as a whole first, then tensor by tensor."""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from d4s_jax.formats import parts, shards
from d4s_jax.formats.tensors import Spec
from d4s_jax.weights import components
from d4s_jax.weights.components import Component
from d4s_jax.weights.rules import Pair, pairs

# More lines help nobody, and a hostile file may have millions of names.
_MOST_LISTED = 2000


@dataclasses.dataclass(frozen=True)
class Conversion:
  """A conversion that has been checked and can be written.

  Attributes:
    config: the new config.json.
    stem: how the names of the new files begin.
    metadata: texts for the head of each new file.
    specs: type and shape of each new tensor, by name.
    pieces: the bits of a new tensor, read and turned when asked for.
    place: name of the new config.json, which is written unless it is empty.
  """

  config: Mapping[str, Any]
  stem: str
  metadata: Mapping[str, str]
  specs: Mapping[str, Spec]
  pieces: Callable[[str], Iterable[np.ndarray]]
  place: str = parts.CONFIG

  @property
  def nbytes(self) -> int:
    """Bytes to write."""
    return sum(spec.nbytes for spec in self.specs.values())

  def write(self, folder: pathlib.Path, report: Callable[[int], Any], limit: int) -> None:
    """Fills an existing folder, telling `report` how many bytes were written since."""

    def reported(name: str) -> Iterator[np.ndarray]:
      for piece in self.pieces(name):
        yield piece
        report(piece.nbytes)

    shards.write_shards(folder, self.stem, self.specs, reported, self.metadata, limit)
    if self.config:
      parts.write_json(folder / self.place, self.config)


def to_flax(folder: pathlib.Path) -> Conversion:
  """From diffusers or transformers to our layout.

  Raises:
    ValueError: the model is none of ours, or its tensors are not those of its configuration; lists
      everything that is missing, unexpected or misshapen.
  """
  config = parts.read_config(folder)
  if parts.is_description(config):
    raise ValueError(f"{folder} is in our layout already; --format=torch takes it back.")
  component, fields, shapes, table = _table(config, folder)
  stored = shards.Shards(folder, component.stem)
  names = _resolve_aliases(stored, component.aliases, folder)
  place = {pair.torch: names.get(pair.torch, [pair.torch])[0] for pair in table}
  unused = {alias for aliases in names.values() for alias in aliases[1:]}
  found = {name: spec for name, spec in stored.specs.items() if name not in unused}
  check_tensors(folder, {place[pair.torch]: pair.torch_shape for pair in table}, found)

  rows: dict[str, list[Pair]] = collections.defaultdict(list)
  for pair in table:
    rows[pair.flax].append(pair)
  kinds = {path: {found[place[pair.torch]].dtype for pair in rows[path]} for path in rows}
  mixed = [
    f"{path} is {' and '.join(sorted(kinds[path]))}" for path in rows if len(kinds[path]) > 1
  ]
  if mixed:
    raise ValueError(f"{folder}: {'; '.join(mixed)}; expected one type in all blocks.")
  specs = {path: Spec(min(kinds[path]), shapes[path]) for path in rows}

  def pieces(path: str) -> Iterator[np.ndarray]:
    return (pair.to_flax(stored.read(place[pair.torch])) for pair in rows[path])

  description = parts.Description(component.part, fields, config, names)
  return Conversion(description.encode(), parts.STEM, {}, specs, pieces)


def to_torch(folder: pathlib.Path) -> Conversion:
  """From our layout back to the one it came from: the same tensors, bit for bit.

  Raises:
    ValueError: the folder is damaged or in another layout; lists every wrong tensor.
  """
  config = parts.read_config(folder)
  if not parts.is_description(config):
    raise ValueError(f"{folder} is not in our layout; --format=flax makes it so.")
  where = str(folder / parts.CONFIG)
  description = parts.decode(config, where)
  component, fields, shapes, table = _table(description.published, folder)
  if (component.part, fields) != (description.part, description.fields):
    raise ValueError(f"{where}: part and fields are not those of `published`; restore the file.")
  names = _check_names(description.names, component.aliases, where)
  stored = shards.Shards(folder, parts.STEM)
  check_tensors(folder, shapes, stored.specs)

  sources = {name: pair for pair in table for name in names.get(pair.torch, [pair.torch])}
  specs = {
    name: Spec(stored.specs[pair.flax].dtype, pair.torch_shape) for name, pair in sources.items()
  }

  def pieces(name: str) -> Iterator[np.ndarray]:
    pair = sources[name]
    yield pair.to_torch(stored.read(pair.flax, pair.row))

  # transformers reads no file without this mark.
  return Conversion(description.published, component.stem, {"format": "pt"}, specs, pieces)


def _table(
  config: Mapping[str, Any], folder: pathlib.Path
) -> tuple[Component, dict[str, Any], dict[str, tuple[int, ...]], list[Pair]]:
  """The kind of model, its fields as JSON has them, our shapes, and all its tensors."""
  try:
    component = components.of(config)
    fields = component.fields(config)
    shapes = component.shapes(config, fields)
  except ValueError as error:
    raise ValueError(f"{folder / parts.CONFIG}: {error}") from error
  return component, json.loads(json.dumps(fields)), shapes, pairs(component.rules, shapes)


def check_tensors(
  place: pathlib.Path | str,
  expected: Mapping[str, tuple[int, ...]],
  found: Mapping[str, Spec],
  model: str = "its config.json",
) -> None:
  """Raises ValueError that lists everything that is missing, unexpected or misshapen."""
  problems = [f"{name} is missing" for name in expected if name not in found]
  problems += [f"{name!r:.120} is unexpected" for name in found if name not in expected]
  problems += [
    f"{name} has shape {list(found[name].shape)}, not {list(shape)}"
    for name, shape in expected.items()
    if name in found and found[name].shape != shape
  ]
  if problems:
    more = len(problems) - _MOST_LISTED
    listed = "; ".join(problems[:_MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")
    raise ValueError(f"{place}: {len(problems)} tensors don't fit {model}: {listed}.")


def _resolve_aliases(
  stored: shards.Shards, aliases: Mapping[str, str], folder: pathlib.Path
) -> dict[str, list[str]]:
  """For a tensor that the file has under other names than the table's: those names."""
  names: dict[str, list[str]] = {}
  for alias, name in aliases.items():
    if alias in stored.specs and name not in stored.specs:
      names[name] = [alias]
    elif alias in stored.specs:
      names[name] = [name, alias]
      if stored.specs[alias] != stored.specs[name] or _hash(stored, alias) != _hash(stored, name):
        raise ValueError(f"{folder}: {alias} differs from {name}; expected the same tensor.")
  return names


def _hash(stored: shards.Shards, name: str) -> bytes:
  """Of the bits, so that only one of two tensors is in memory."""
  return hashlib.sha256(stored.read(name).data).digest()


def _check_names(
  names: Mapping[str, Any], aliases: Mapping[str, str], where: str
) -> Mapping[str, list[str]]:
  legal = [{name: used} for alias, name in aliases.items() for used in ([alias], [name, alias])]
  if names and names not in legal:
    raise ValueError(f"{where}: names; expected nothing, or one of {legal}.")
  return names
