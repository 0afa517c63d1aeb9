"""One published model to our layout and back: checked as a whole first, then tensor by tensor."""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from d4s_jax.formats import parts, shards
from d4s_jax.formats.tensors import Spec
from d4s_jax.weights import components
from d4s_jax.weights.components import Component
from d4s_jax.weights.rules import LAYER, Pair, Rule, pairs

# More lines help nobody, and a hostile file may have millions of names.
_MOST_LISTED = 2000


class Stored(Protocol):
  """Tensors somewhere, read when asked for: a file's, in bits, or a run's, in float32."""

  @property
  def specs(self) -> Mapping[str, Spec]:
    """Type and shape of each, by name."""
    ...

  def read(self, name: str, row: int | None = None) -> np.ndarray:
    """One of them, or one row of it."""
    ...


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
  component, fields, shapes = _model(config, folder)
  stored = shards.Shards(folder, component.stem)
  names = _other_names(stored, component, folder)
  shapes |= _unread(component, shapes, lambda pair: pair.torch in stored.specs)
  table = _table(component, shapes, names)
  place = {pair.torch: names.get(pair.torch, [pair.torch])[0] for pair in table}
  unused = {alias for aliases in names.values() for alias in aliases[1:]}
  found = {name: spec for name, spec in stored.specs.items() if name not in unused}
  check_tensors(folder, {place[pair.torch]: pair.torch_shape for pair in table}, found)

  parts.check_floats(folder, found)

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
  description, component, table, stored = _open(folder)
  names = description.names
  sources = {name: pair for pair in table for name in names.get(pair.torch, [pair.torch])}
  specs = {
    name: Spec(stored.specs[pair.flax].dtype, pair.torch_shape) for name, pair in sources.items()
  }

  def pieces(name: str) -> Iterator[np.ndarray]:
    pair = sources[name]
    yield pair.to_torch(stored.read(pair.flax, pair.row))

  # transformers reads no file without this mark.
  return Conversion(description.published, component.stem, {"format": "pt"}, specs, pieces)


def kept(folder: pathlib.Path) -> Conversion:
  """A model in our layout as it is, for what changes its tensors on their way.

  Raises:
    ValueError: the folder is damaged or in another layout; lists every wrong tensor.
  """
  description, _, table, stored = _open(folder)
  rows: dict[str, list[int | None]] = collections.defaultdict(list)
  for pair in table:
    rows[pair.flax].append(pair.row)

  def pieces(path: str) -> Iterator[np.ndarray]:
    return (stored.read(path, row) for row in rows[path])

  return Conversion(description.encode(), parts.STEM, {}, stored.specs, pieces)


def _open(
  folder: pathlib.Path,
) -> tuple[parts.Description, Component, list[Pair], shards.Shards]:
  """A model in our layout, checked: what it is, its kind, the table of its tensors, and these."""
  config = parts.read_config(folder)
  if not parts.is_description(config):
    raise ValueError(f"{folder} is not in our layout; --format=flax makes it so.")
  where = str(folder / parts.CONFIG)
  description = parts.decode(config, where)
  component, fields, shapes = _model(description.published, folder)
  if (component.part, fields) != (description.part, description.fields):
    raise ValueError(f"{where}: part and fields are not those of `published`; restore the file.")
  names = _check_names(description.names, component, where)
  stored = shards.Shards(folder, parts.STEM)
  shapes |= _unread(component, shapes, lambda pair: pair.flax in stored.specs)
  check_tensors(folder, shapes, stored.specs)
  return description, component, _table(component, shapes, names), stored


def _model(
  config: Mapping[str, Any], folder: pathlib.Path
) -> tuple[Component, dict[str, Any], dict[str, tuple[int, ...]]]:
  """The kind of model, its fields as JSON has them, and our shapes."""
  try:
    component = components.of(config)
    fields = component.fields(config)
    shapes = component.shapes(config, fields)
    # Its table has no place for sizes that no model has.
    pairs(component.rules, shapes)
  except (ValueError, LookupError) as error:
    raise ValueError(
      f"{folder / parts.CONFIG}: {error}; expected the file of a published model, unchanged."
    ) from error
  return component, json.loads(json.dumps(fields)), shapes


def _table(
  component: Component, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, list[str]]
) -> list[Pair]:
  """All tensors of a model, whose names begin as in the file."""
  rules = [*component.rules, *_unread_rules(component)]
  if component.prefix in names:
    rules = [
      dataclasses.replace(rule, torch=rule.torch.removeprefix(component.prefix)) for rule in rules
    ]
  return pairs(rules, shapes)


def _unread(
  component: Component, shapes: Mapping[str, tuple[int, ...]], is_there: Callable[[Pair], bool]
) -> dict[str, tuple[int, ...]]:
  """Shapes of the tensors that no model reads, by their paths in our layout, if any is there."""
  rules = _unread_rules(component)
  found = {
    rule.flax: shapes[like]
    for rule, like in zip(rules, component.unread.values(), strict=True)
    if like in shapes
  }
  return found if any(is_there(pair) for pair in pairs(rules, found)) else {}


def _unread_rules(component: Component) -> list[Rule]:
  return [Rule(name, f"{parts.UNREAD}{name.replace(f'{LAYER}.', '')}") for name in component.unread]


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


def _other_names(
  stored: shards.Shards, component: Component, folder: pathlib.Path
) -> dict[str, list[str]]:
  """For a tensor that the file has under other names than the table's: those names.

  For the prefix of all names, if the file leaves it out: nothing.
  """
  prefix = component.prefix
  if prefix and not any(name.startswith(prefix) for name in stored.specs):
    return {prefix: [""]}
  names: dict[str, list[str]] = {}
  for alias, name in component.aliases.items():
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
  names: Mapping[str, Any], component: Component, where: str
) -> Mapping[str, list[str]]:
  aliases, prefix = component.aliases, component.prefix
  legal = [{name: used} for alias, name in aliases.items() for used in ([alias], [name, alias])]
  legal += [{prefix: [""]}] if prefix else []
  if names and names not in legal:
    raise ValueError(f"{where}: names; expected nothing, or one of {legal}.")
  return names
