"""Where clips come from: the protocol of a data source, the table of all, and their mixture."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from d4s_jax.data.datasets.registry import DATASETS
from d4s_jax.data.datasets.windows import Windows
from d4s_jax.data.film import Film
from d4s_jax.data.pictures import Pictures
from d4s_jax.data.recorded import Recorded
from d4s_jax.data.splits import EmptySplit
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


@runtime_checkable
class Sampled(Source, Protocol):
  """A source that has more to show of a clip than one reading does."""

  def draw(self, index: int, rng: np.random.Generator) -> Clip:
    """One clip, a pure function of the index and of the generator; images may be in 8 bits.

    Raises:
      CorruptRecord: it can't be read; another one will do.
      NoLength: another one will do too, but nothing is wrong with its files.
    """
    ...


SOURCES: dict[str, Callable[..., Source]] = {
  "film": Film,
  "pictures": Pictures,
  "shards": Recorded,
  "synthetic": SyntheticScenes,
  **{name: functools.partial(Windows, name) for name in DATASETS},
}
# Sources that read a path, those that know neither cameras nor depth, those of footage that clips
# are cut out of, and those that are files as they are.
_FROM_FILES = {"film", "pictures", "shards", *DATASETS}
_UNPOSED = {"film"}
_CUT = {"shards", *DATASETS}
_AS_FILES = {"shards"}


class Mixture:
  """Clips of several sources: in turn where they are read, by their weights where they are drawn.

  Args:
    parts: the sources.
    weights: how many clips of each the loader takes, relatively; all alike if none are given.

  Raises:
    ValueError: another number of weights, or one that is not positive.
  """

  def __init__(self, parts: Sequence[Source], weights: Sequence[float] = ()):
    self.parts, self.weights = parts, _weights(weights, len(parts))

  def __len__(self) -> int:
    return len(self.parts) * min(len(part) for part in self.parts)

  def read(self, index: int) -> Clip:
    """One clip: of the first source for index 0, of the second for index 1, and so on, in turn."""
    turn, part = divmod(index, len(self.parts))
    return self.parts[part].read(turn)


@dataclasses.dataclass(frozen=True)
class Buckets:
  """Sources of clips of different shapes; a batch is of one of them.

  Attributes:
    sources: one for each shape.
    shares: of batches, summing to 1.
  """

  sources: Sequence[Source]
  shares: Sequence[float]


def open_source(names: str, *, weights: Sequence[float] = (), **options: Any) -> Source:
  """The source of a name, or the mixture of several.

  Of several, one that has clips, but none of the split, is left out with a warning.

  Args:
    names: of SOURCES, with commas between them; what follows a colon is the source's path, as in
      "synthetic,film:films/bunny.mp4".
    weights: of each source; () for all alike.
    **options: arguments of every one of them, and
      posed: whether cameras and depth must be known (True).
      cache: folder in which the clips of each source are kept once made; sources with other options
        have other places in it. Shards are files already. "" for none.
      cutting: further arguments of shards and datasets; see `data.recorded`.

  Raises:
    ValueError: a name is unknown, a path is missing or not wanted, or a source is not posed.
  """
  opened = _parts(names, weights=weights, **options)
  if len(names.split(",")) == 1 and not weights:
    return opened[0][1]
  _, parts, own = zip(*opened)
  return Mixture(parts, own)


def _parts(
  names: str,
  *,
  weights: Sequence[float],
  posed: bool = True,
  cache: str = "",
  cutting: Mapping[str, Any] | None = None,
  **options: Any,
) -> list[tuple[str, Source, float]]:
  """The sources of `open_source`, each with its name and weight."""
  items = [item.partition(":")[::2] for item in names.split(",")]
  weights = _weights(weights, len(items))
  for name, _ in items:
    if posed and name in _UNPOSED:
      raise ValueError(
        f"Data source {name!r} knows neither cameras nor depth; it serves the autoencoder alone."
      )
  parts: list[tuple[str, Source, float]] = []
  empty: list[EmptySplit] = []
  recorded: dict[str, Recorded] = {}
  for whole, weight, (name, path) in zip(names.split(","), weights, items):
    more = {"posed": posed, **(cutting or {})} if name in _CUT else {}
    try:
      part = _open(name, path, {**options, **more})
    except EmptySplit as error:
      empty.append(error)
      continue
    if isinstance(part, Recorded):
      recorded[whole] = part
    if cache and name not in _AS_FILES:
      # Another file under the same name has another place.
      told = {**options, **more, **getattr(part, "contents", dict)()}
      part = Stored(part, pathlib.Path(cache) / _identity(whole, told))
    parts.append((whole, part, weight))
  if not parts:
    raise empty[0]
  for error in empty:
    warnings.warn(f"{error} It is left out of this split.", stacklevel=1)
  if options.get("split", "train") == "train":
    _warn_of_shared(recorded)
  return parts


def _weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
  weights = tuple(weights) or (1.0,) * count
  positive = all(math.isfinite(x) and x > 0 for x in weights)
  if len(weights) != count or not positive:
    raise ValueError(f"Weights {weights} of {count} sources; expected a positive number for each.")
  return weights


def _warn_of_shared(parts: Mapping[str, Recorded]) -> None:
  """Says which folders of shards train on what others hold out, as each decides by itself."""
  for one, other in itertools.permutations(parts, 2):
    if shared := parts[one].groups & parts[other].others:
      warnings.warn(
        f"{one} trains on {len(shared)} films or places, such as {min(shared)}, that {other} holds"
        " out: scores flatter. Curate what shows the same into one folder.",
        stacklevel=1,
      )


def open_buckets(
  names: str, shapes: Sequence[tuple[int, int, int]], *, weights: Sequence[float] = (), **options
) -> Buckets:
  """The clips of `open_source`, in several shapes (frames, height, width).

  Records of shards go to the shape that fits them best; other sources make clips of all shapes.
  The share of a source over all shapes is still that of its weight.

  Raises:
    ValueError: as `open_source`; a shape occurs twice, or no source has clips.
  """
  if len(set(shapes)) < len(shapes):
    raise ValueError(f"Shapes {list(shapes)}; expected each once.")
  cutting = {**(options.pop("cutting", None) or {}), "shapes": shapes}
  opened = []
  for frames, height, width in shapes:
    size = {"frames": frames, "height": height, "width": width}
    opened.append(_parts(names, weights=weights, cutting=cutting, **{**options, **size}))
  totals = [sum(len(part) for _, part, _ in same) for same in zip(*opened)]
  if not all(totals):
    empty = opened[0][totals.index(0)][0]
    raise ValueError(f"{empty} has no clips for any of the shapes {list(shapes)}; check both.")
  sources, shares = [], []
  for mixture in opened:
    here = [
      (part, weight * len(part) / total)
      for (_, part, weight), total in zip(mixture, totals)
      if len(part)
    ]
    if here:
      parts, part_weights = zip(*here)
      sources.append(Mixture(parts, part_weights))
      shares.append(sum(part_weights) / sum(weight for *_, weight in mixture))
  return Buckets(sources, shares)


def _identity(name: str, options) -> str:
  """A folder's name for the clips of a source with its options."""
  split = options.get("split", "train")
  others = {key: value for key, value in options.items() if key != "split"}
  text = json.dumps([name, split, others], sort_keys=True, default=dataclasses.asdict)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _open(name: str, path: str, options) -> Source:
  if name not in SOURCES:
    raise ValueError(f"Unknown data source {name!r}; choose one of {sorted(SOURCES)}.")
  if bool(path) != (name in _FROM_FILES):
    example = f"'{name}:PATH'" if name in _FROM_FILES else f"'{name}'"
    raise ValueError(f"Data source {name!r} with the path {path!r}; expected {example}.")
  return SOURCES[name](**({"path": path} if path else {}), **options)
