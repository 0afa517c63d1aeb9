"""The loader: batches of clips through Grain, in an order that can be resumed at any batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import grain.python as grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int

from d4s_jax.data.source import Source
from d4s_jax.data.transforms import with_tokens
from d4s_jax.types import Clip

# Batches that are made ahead: one in use, one ready.
_AHEAD = 2
# More than any run reads.
_EPOCHS = 2**30

Tokenize = Callable[[str], Int[np.ndarray, "l"]]


class Loader(Iterator[Clip]):
  """An iterator of batches whose place is one number, whatever makes the batches.

  Close it, or use it as a context manager: worker processes and shared memory outlive a loader
  that is only forgotten.
  """

  def __init__(
    self, pipeline: Callable[[int], grain.IterDataset], identity: dict[str, Any], workers: int
  ):
    """Use `make_loader`.

    Args:
      pipeline: makes the batches from the given batch on.
      identity: what the order of clips depends on; a state of another identity is refused.
      workers: worker processes of the pipeline.
    """
    self._pipeline, self._identity, self._workers = pipeline, identity, workers
    self._batches = 0
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
    batch = next(self._iterator)
    self._batches += 1
    # Workers hand over shared memory, which must not outlive the loader: a batch may.
    return jax.tree.map(np.array, batch) if self._workers else batch

  def get_state(self) -> dict[str, Any]:
    """Where the loader is: plain JSON, the same in every process and for any number of workers."""
    return {**self._identity, "batches": self._batches}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to where a loader was when `get_state` was called.

    Raises:
      ValueError: the state belongs to another order of clips.
    """
    expected = {name: state.get(name) for name in self._identity}
    if expected != self._identity:
      raise ValueError(
        f"The data order was saved with {expected}, this loader has {self._identity}. "
        "Resume with the same data settings, or start a new run."
      )
    self.close()
    self._batches = state["batches"]

  def close(self) -> None:
    """Stops threads and worker processes and frees shared memory; iterating starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


def make_loader(
  source: Source,
  tokenize: Tokenize,
  *,
  batch_size: int,
  seed: int | None,
  workers: int = 0,
  start: int = 0,
  rows: Sequence[int] | None = None,
) -> Loader:
  """Batches of a source's clips as NumPy arrays.

  With a seed: endless epochs, each shuffled anew, across whose borders batches run. Row r of batch
  k is the same clip for any number of workers, and of processes that read some rows each.

  Args:
    source: the clips; pickled to worker processes.
    tokenize: caption -> token ids of one fixed length; pickled too.
    batch_size: clips a batch, over all processes.
    seed: of the order; None reads every clip once, in order, and the last batch may be short.
    workers: worker processes; 0 makes batches in a thread of this process.
    start: batches to skip.
    rows: which clips of each batch are read here; None is all of them.

  Raises:
    ValueError: a size or a row is out of range, or the source is empty.
  """
  rows = range(batch_size) if rows is None else rows
  _check(len(source), batch_size, workers, start, rows)

  def pipeline(batches: int) -> grain.IterDataset:
    clips = grain.MapDataset.source(_Tokenized(source, tokenize))
    if seed is not None:
      # Endless; Grain's own endless length is beyond what len() can hold.
      clips = clips.shuffle(seed=seed).repeat(_EPOCHS)
    share: Any = _Share(clips, batch_size, rows)
    ahead = grain.MapDataset.source(share).batch(len(rows)).slice(slice(batches, None))
    if workers == 0:
      return ahead.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD))
    if not flags.FLAGS.is_parsed():  # Grain's workers ask for flags that only an app parses
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    return ahead.to_iter_dataset(grain.ReadOptions(num_threads=0)).mp_prefetch(options)

  identity = {"clips": len(source), "seed": seed, "global_batch": batch_size}
  loader = Loader(pipeline, identity, workers)
  loader.set_state({**identity, "batches": start})
  return loader


class _Tokenized:
  """A source as Grain reads one."""

  def __init__(self, source: Source, tokenize: Tokenize):
    self._source, self._tokenize = source, tokenize

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> Clip:
    return with_tokens(self._source.read(int(index)), self._tokenize)


class _Share:
  """Some rows of each batch of a sequence, one batch after another."""

  def __init__(self, clips: Any, batch_size: int, rows: Sequence[int]):
    self._clips, self._batch_size, self._rows = clips, batch_size, rows

  def __len__(self) -> int:
    whole, rest = divmod(len(self._clips), self._batch_size)
    return whole * len(self._rows) + sum(row < rest for row in self._rows)

  def __getitem__(self, index: SupportsIndex) -> Clip:
    batch, place = divmod(int(index), len(self._rows))
    return self._clips[batch * self._batch_size + self._rows[place]]


def _check(clips: int, batch_size: int, workers: int, start: int, rows: Sequence[int]) -> None:
  if clips < 1:
    raise ValueError("The source has no clips; check its path and its filters.")
  if batch_size < 1 or workers < 0 or start < 0:
    raise ValueError(
      f"Loader with batch_size={batch_size}, workers={workers}, start={start}; expected at least "
      "1, 0 and 0."
    )
  if not rows or list(rows) != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= batch_size:
    raise ValueError(
      f"Loader of the rows {list(rows)[:20]}; expected some of 0 to {batch_size - 1}, in order."
    )
