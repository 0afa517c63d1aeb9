"""Where clips come from: the protocol of a data source, the table of all, and their mixture."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

from d4s_jax.data.datasets.registry import DATASETS
from d4s_jax.data.datasets.windows import Windows
from d4s_jax.data.film import Film
from d4s_jax.data.pictures import Pictures
from d4s_jax.data.stored import Stored
from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.types import Clip


class Source(Protocol):
  """Clips by number, in NumPy arrays, without augmentation.

  Reading is a pure function of the index and safe in many processes and threads at once.
  """

  def __len__(self) -> int:
    """The number of clips."""
    ...

  def read(self, index: int) -> Clip:
    """One clip without a batch axis; `text` is its caption."""
    ...


SOURCES: dict[str, Callable[..., Source]] = {
  "film": Film,
  "pictures": Pictures,
  "synthetic": SyntheticScenes,
  **{name: functools.partial(Windows, name) for name in DATASETS},
}
# Sources that read a path, and those that know neither cameras nor depth.
_FROM_FILES = {"film", "pictures", *DATASETS}
_UNPOSED = {"film"}


class Mixture:
  """Clips of several sources in turn.

  Args:
    parts: the sources.
  """

  def __init__(self, parts: Sequence[Source]):
    self._parts = parts

  def __len__(self) -> int:
    return len(self._parts) * min(len(part) for part in self._parts)

  def read(self, index: int) -> Clip:
    """One clip: of the first source for index 0, of the second for index 1, and so on, in turn."""
    turn, part = divmod(index, len(self._parts))
    return self._parts[part].read(turn)


def open_source(names: str, *, posed: bool = True, cache: str = "", **options) -> Source:
  """The source of a name, or the mixture of several.

  Args:
    names: of SOURCES, with commas between them; what follows a colon is the source's path, as in
      "synthetic,film:films/bunny.mp4".
    posed: whether cameras and depth must be known.
    cache: folder in which the clips of each source are kept once made, "" for none; sources with
      other options have other places in it.
    **options: arguments of every one of them.

  Raises:
    ValueError: a name is unknown, a path is missing or not wanted, or a source is not posed.
  """
  items = [item.partition(":")[::2] for item in names.split(",")]
  for name, _ in items:
    if posed and name in _UNPOSED:
      raise ValueError(
        f"Data source {name!r} knows neither cameras nor depth; it serves the autoencoder alone."
      )
  parts = [_open(name, path, options) for name, path in items]
  if cache:
    parts = [
      Stored(part, pathlib.Path(cache) / _identity(name, options))
      for name, part in zip(names.split(","), parts)
    ]
  return parts[0] if len(parts) == 1 else Mixture(parts)


def _identity(name: str, options) -> str:
  """A folder's name for the clips of a source with its options."""
  split = options.get("split", "train")
  others = {key: value for key, value in options.items() if key != "split"}
  text = json.dumps([name, split, others], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _open(name: str, path: str, options) -> Source:
  if name not in SOURCES:
    raise ValueError(f"Unknown data source {name!r}; choose one of {sorted(SOURCES)}.")
  if bool(path) != (name in _FROM_FILES):
    example = f"'{name}:PATH'" if name in _FROM_FILES else f"'{name}'"
    raise ValueError(f"Data source {name!r} with the path {path!r}; expected {example}.")
  return SOURCES[name](**({"path": path} if path else {}), **options)
