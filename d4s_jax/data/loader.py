"""The loader: batches of clips through Grain, in an order that can be resumed at any batch."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import grain.python as grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int

from d4s_jax.data.identity import differences
from d4s_jax.data.record import CorruptRecord
from d4s_jax.data.sampling import NoLength
from d4s_jax.data.source import Buckets, Mixture, Sampled, Source
from d4s_jax.data.transforms import in_floats, with_tokens
from d4s_jax.types import Clip

# Batches that are made ahead: one in use, one ready.
_AHEAD = 2
# More than any run reads.
_EPOCHS = 2**30
# Clips that are tried in place of one that can't be read, and how many are read before their share
# means anything.
_ATTEMPTS, _FEW = 20, 200
# Grain's seeds have 32 bits.
_SEEDS = 2**32

Tokenize = Callable[[str], Int[np.ndarray, "l"]]


class Loader(Iterator[Clip]):
  """An iterator of batches whose place is one number, whatever makes the batches.

  Close it, or use it as a context manager: worker processes and shared memory outlive a loader
  that is only forgotten.
  """

  def __init__(
    self,
    pipeline: Callable[[int], grain.IterDataset],
    data: dict[str, Any],
    workers: int,
    corrupt: float,
    start: int,
  ):
    """Use `make_loader`.

    Args:
      pipeline: makes the batches from the given batch on, each with how many clips were replaced.
      data: what the order of clips depends on; a state of other data is refused.
      workers: worker processes of the pipeline.
      corrupt: share of replaced clips that is put up with.
      start: the first batch.
    """
    self._pipeline, self.data, self._workers = pipeline, data, workers
    self._corrupt = corrupt
    self._batches = start
    # Clips read by this loader, and clips that could not be and were replaced by others.
    self.read, self.skipped = 0, 0
    self._iterator: Any = None

  def __enter__(self) -> "Loader":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def __iter__(self) -> "Loader":
    return self

  def __next__(self) -> Clip:
    if self._iterator is None:
      self._iterator = iter(self._pipeline(self._batches))
    made = next(self._iterator)
    self._batches += 1
    # Workers hand over shared memory, which must not outlive the loader: a batch may.
    batch, skipped = jax.tree.map(_own, made) if self._workers else made
    self._count(skipped)
    return batch

  def _count(self, skipped: Int[np.ndarray, "b"]) -> None:
    self.read += len(skipped)
    self.skipped += int(skipped.sum())
    if self.skipped > self._corrupt * max(self.read, _FEW):
      raise CorruptRecord(
        f"{self.skipped} clips beside {self.read} could not be read, more than the share"
        f" {self._corrupt} of config.data.corrupt; the warnings above name them. Copy or curate"
        " them again."
      )

  def get_state(self) -> dict[str, Any]:
    """Where the loader is: plain JSON, the same in every process and for any number of workers."""
    return {"data": self.data, "batches": self._batches}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to where a loader was when `get_state` was called.

    Raises:
      ValueError: the state belongs to another order of clips.
    """
    others = differences(state["data"], self.data)
    if others:
      raise ValueError(
        f"The state is that of other data ({'; '.join(others)}). Resume with the same data"
        " settings, or start a new run."
      )
    self.close()
    self._batches = state["batches"]

  def close(self) -> None:
    """Stops threads and worker processes and frees shared memory; iterating starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


@dataclasses.dataclass(frozen=True)
class _Zeros:
  """An array of nothing but zeros, as what isn't known is: only its size is handed over."""

  shape: tuple[int, ...]
  dtype: np.dtype


def _own(leaf: np.ndarray | _Zeros) -> np.ndarray:
  """A copy, with images in [0, 1]: processes hand them over in 8 bits, a quarter of the memory."""
  if isinstance(leaf, _Zeros):
    return in_floats(np.zeros(leaf.shape, leaf.dtype))
  made = in_floats(leaf)
  return np.array(leaf) if made is leaf else made


def make_loader(
  source: Source | Buckets,
  tokenize: Tokenize,
  *,
  batch_size: int,
  seed: int | None,
  workers: int = 0,
  start: int = 0,
  rows: Sequence[int] | None = None,
  corrupt: float = 0.01,
) -> Loader:
  """Batches of a source's clips as NumPy arrays.

  With a seed: endless epochs of each source, each shuffled anew, across whose borders batches run;
  mixtures by their weights. Row r of batch k is the same clip for any number of workers, and of
  processes that read some rows each.

  A clip that can't be read is replaced by another one, drawn from the same seed; a warning names
  it, and `skipped` of the loader counts it. One that has no length to scale by is replaced too, but
  is no damage.

  Args:
    source: the clips; pickled to worker processes. Of buckets, each batch is of one shape.
    tokenize: caption -> token ids of one fixed length; pickled too.
    batch_size: clips a batch, over all processes.
    seed: of the order; None reads every clip once, in order, and the last batch may be short.
    workers: worker processes; 0 makes batches in a thread of this process.
    start: batches to skip.
    rows: which clips of each batch are read here; None is all of them.
    corrupt: the loader raises CorruptRecord when a larger share of clips can't be read.

  Raises:
    ValueError: a size, a share or a row is out of range, or the source is empty.
  """
  rows = range(batch_size) if rows is None else rows
  buckets = source if isinstance(source, Buckets) else Buckets([source], [1.0])
  _check(min(len(x) for x in buckets.sources), batch_size, workers, start, rows, corrupt)

  def pipeline(batches: int) -> grain.IterDataset:
    shapes = []
    for number, bucket in enumerate(buckets.sources):
      clips = _clips(bucket, tokenize, None if seed is None else seed + 1000 * number)
      share: Any = _Share(clips, batch_size, rows)
      shapes.append(grain.MapDataset.source(share).batch(len(rows), batch_fn=_Batch(workers > 0)))
    mixed = shapes[0]
    if len(shapes) > 1:
      mixed = (
        grain.MapDataset.concatenate(shapes)
        if seed is None
        else grain.MapDataset.mix(shapes, list(buckets.shares))
      )
    ahead = mixed.slice(slice(batches, None))
    if workers == 0:
      return ahead.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD))
    if not flags.FLAGS.is_parsed():  # Grain's workers ask for flags that only an app parses
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    return ahead.to_iter_dataset(grain.ReadOptions(num_threads=0)).mp_prefetch(options)

  return Loader(pipeline, _data(buckets, batch_size, seed), workers, corrupt, start)


def _data(buckets: Buckets, batch_size: int, seed: int | None) -> dict[str, Any]:
  """What clips and their order depend on, as plain JSON; of sources, what their `contents` say.

  Paths, processes and workers are no part of it: data may be moved, and read by others.
  """
  told: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
  for number, (bucket, share) in enumerate(zip(buckets.sources, buckets.shares)):
    own: dict[str, Any] = {"share": share}
    for place, (part, weight) in enumerate(zip(*_parts(bucket))):
      about = getattr(part, "contents", dict)()
      own[f"source {place}"] = {"clips": len(part), "weight": weight, **about}
    told[f"shape {number}"] = own
  return told


def _parts(source: Source) -> tuple[Sequence[Source], Sequence[float]]:
  return (source.parts, source.weights) if isinstance(source, Mixture) else ([source], [1.0])


def _clips(source: Source, tokenize: Tokenize, seed: int | None) -> grain.MapDataset:
  """Clips, each with how many others could not be read: in order, or endless and shuffled."""
  if seed is None:
    clips = grain.MapDataset.source(range(len(source)))
    return clips.random_map(_Read(source, tokenize), seed=0)
  streams = []
  parts, weights = _parts(source)
  for number, part in enumerate(parts):
    own = (seed + number) % _SEEDS
    # Endless; Grain's own endless length is beyond what len() can hold.
    order = grain.MapDataset.source(range(len(part))).shuffle(seed=own).repeat(_EPOCHS)
    streams.append(order.random_map(_Read(part, tokenize), seed=own))
  return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, list(weights))


class _Read:
  """Reads the clip of an index, or else one at random that can be read."""

  def __init__(self, source: Source, tokenize: Tokenize):
    self._source, self._tokenize = source, tokenize

  def __call__(self, index: SupportsIndex, rng: np.random.Generator) -> tuple[Clip, np.int32]:
    source, reason = self._source, None
    number = int(index)
    corrupt = 0
    for _ in range(_ATTEMPTS):
      try:
        clip = source.draw(number, rng) if isinstance(source, Sampled) else source.read(number)
        return with_tokens(clip, self._tokenize), np.int32(corrupt)
      except NoLength as error:
        warnings.warn(f"{error} It is left out.", stacklevel=1)
        reason = error
      except CorruptRecord as error:
        warnings.warn(f"{error} It is skipped.", stacklevel=1)
        corrupt, reason = corrupt + 1, error
      number = int(rng.integers(len(source)))
    if not corrupt:
      raise NoLength(f"{_ATTEMPTS} clips in a row had no length, the last: {reason}")
    raise CorruptRecord(f"{_ATTEMPTS} clips in a row could not be read, the last: {reason}")


class _Batch:
  """Stacks clips: `shared` straight into the memory in which worker processes hand them over.

  Images in 8 bits stay so there; else they come in [0, 1].
  """

  def __init__(self, shared: bool):
    self._shared = shared

  def __call__(self, clips: Sequence[Any]) -> Any:
    batch = jax.tree.map(self._stack, *clips)
    return batch if self._shared else jax.tree.map(in_floats, batch)

  def _stack(self, *parts: Any) -> np.ndarray | _Zeros:
    first = np.asarray(parts[0])
    if not self._shared or not first.size:  # nothing can't be shared
      return np.stack(parts)
    if not any(map(_any, parts)):
      return _Zeros((len(parts), *first.shape), first.dtype)
    out = grain.SharedMemoryArray((len(parts), *first.shape), first.dtype)
    return np.stack(parts, out=out)


def _any(array: Any) -> bool:
  """Whether some byte isn't 0; as flags, which are looked at many at a time."""
  return bool(np.ascontiguousarray(array).reshape(-1).view(np.bool_).any())


class _Share:
  """Some rows of each batch of a sequence, one batch after another."""

  def __init__(self, clips: Any, batch_size: int, rows: Sequence[int]):
    self._clips, self._batch_size, self._rows = clips, batch_size, rows

  def __len__(self) -> int:
    whole, rest = divmod(len(self._clips), self._batch_size)
    return whole * len(self._rows) + sum(row < rest for row in self._rows)

  def __getitem__(self, index: SupportsIndex) -> tuple[Clip, np.int32]:
    batch, place = divmod(int(index), len(self._rows))
    return self._clips[batch * self._batch_size + self._rows[place]]


def _check(clips, batch_size, workers, start, rows: Sequence[int], corrupt: float) -> None:
  if clips < 1:
    raise ValueError("The source has no clips; check its path and its filters.")
  if not 0 <= corrupt <= 1:
    raise ValueError(f"corrupt is {corrupt}; expected a share from 0 to 1.")
  if batch_size < 1 or workers < 0 or start < 0:
    raise ValueError(
      f"Loader with batch_size={batch_size}, workers={workers}, start={start}; expected at least "
      "1, 0 and 0."
    )
  if not rows or list(rows) != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= batch_size:
    raise ValueError(
      f"Loader of the rows {list(rows)[:20]}; expected some of 0 to {batch_size - 1}, in order."
    )
