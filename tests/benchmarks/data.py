"""Milliseconds a clip of the synthetic scenes: drawn directly, and through the loader.

python tests/benchmarks/data.py
"""

import statistics
import time

import numpy as np

from d4s_jax.data.loader import make_loader
from d4s_jax.data.synthetic import SyntheticScenes

_CLIPS, _BATCH = 48, 4


def tokenize(text: str) -> np.ndarray:
  """The caption's first 128 bytes."""
  return np.frombuffer(text.encode()[:128].ljust(128, b"\0"), np.uint8).astype(np.int32)


def direct(source: SyntheticScenes, clock) -> list[float]:
  """Seconds of each of `_CLIPS` reads by a clock."""
  source.read(0)
  seconds = []
  for index in range(_CLIPS):
    start = clock()
    source.read(index)
    seconds.append(clock() - start)
  return seconds


def loaded(source: SyntheticScenes, workers: int) -> float:
  """Seconds a clip through the loader, once it runs."""
  with make_loader(source, tokenize, batch_size=_BATCH, seed=0, workers=workers) as batches:
    for _ in range(3):
      next(batches)
    start = time.perf_counter()
    for _ in range(_CLIPS // _BATCH):
      next(batches)
    return (time.perf_counter() - start) / _CLIPS


def main() -> None:
  """Prints the table."""
  for size in (64, 128):
    source = SyntheticScenes(height=size, width=size)
    reads = direct(source, time.process_time)
    print(
      f"{size}x{size}, 9 + 6 frames: {1e3 * statistics.median(reads):.1f} ms a clip of one core "
      f"(median; mean {1e3 * statistics.mean(reads):.1f}, worst {1e3 * max(reads):.1f})"
    )
    for workers in (0, 1, 2):
      how = f"{workers} worker processes" if workers else "a thread"
      print(f"  through the loader with {how}: {1e3 * loaded(source, workers):.1f} ms a clip")


if __name__ == "__main__":
  main()
