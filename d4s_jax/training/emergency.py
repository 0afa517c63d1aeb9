"""Emergency copies: the state of a run on the disk of each host, beside its checkpoints.

Nothing travels, so they may be made more often. Each process writes and reads what lies on its own
devices: only as many processes on the same mesh can go on from them. All else, and a host that was
replaced, goes on from a checkpoint.

Layout::

  FOLDER/RUN/PROCESS_of_COUNT/STEP.safetensors     written whole or not at all
"""

import concurrent.futures
import contextlib
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from d4s_jax.formats import atomic
from d4s_jax.training.checkpoint import CheckpointError, DamagedError
from d4s_jax.training.state import TrainState
from d4s_jax.training.sums import by_path

# One of them may be just what the host was lost over.
_KEPT = 2


class Copies:
  """The emergency copies of one run that this process makes, in the background."""

  def __init__(self, folder: str, run: str):
    """Opens the folder.

    Args:
      folder: on a disk of this host.
      run: a name that no other run has.
    """
    own = f"{jax.process_index()}_of_{jax.process_count()}"
    self._folder = pathlib.Path(folder) / run / own
    with _writing(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      for left in self._folder.glob(".*.safetensors"):  # by a process that was killed
        left.unlink()
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future[None] | None = None

  def steps(self) -> list[int]:
    """The steps that are there, the newest last."""
    return sorted(int(x.stem) for x in self._folder.glob("*.safetensors") if x.stem.isdigit())

  def save(self, state: TrainState) -> None:
    """Starts to write `state`, once the one before is on disk.

    Raises:
      CheckpointError: that one could not be written.
    """
    self.wait()
    # Copies: the next step is given the memory of `state`.
    arrays = {
      f"{path}@{_name(shard.index, leaf.shape)}": np.array(shard.data)
      for path, leaf in by_path(state).items()
      for shard in leaf.addressable_shards
    }
    self._pending = self._writer.submit(self._write, int(state.step), arrays)

  def _write(self, step: int, arrays: dict[str, np.ndarray]) -> None:
    sums = json.dumps({name: _sum(array) for name, array in arrays.items()})
    with atomic.replacing(self._file(step)) as temporary:
      safetensors.numpy.save_file(arrays, temporary, metadata={"sums": sums})
    for old in self.steps()[:-_KEPT]:
      self._file(old).unlink()

  def read(self, step: int, like: TrainState) -> TrainState:
    """Reads a step into the types and shardings of `like`, which may be abstract.

    Raises:
      DamagedError: it can't be read, or is of another mesh.
    """
    file = self._file(step)
    try:
      with safetensors.safe_open(file, "numpy") as stored:
        sums = json.loads(stored.metadata()["sums"])
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}
      wrong = [name for name, array in arrays.items() if _sum(array) != sums.pop(name)]
      if wrong or sums:
        raise ValueError(f"{[*wrong, *sums][0]} is not what was written")
      return _placed(arrays, like)
    except Exception as error:  # safetensors has an exception of its own, and the header is JSON
      raise DamagedError(f"The emergency copy {file} can't be used ({error}).") from error

  def set_aside(self, step: int) -> None:
    """Keeps a step from being read again, under another name."""
    self._file(step).replace(self._file(step).with_suffix(".damaged"))

  def wait(self) -> None:
    """Blocks until everything is on disk; raises CheckpointError if it can't be written."""
    pending, self._pending = self._pending, None
    if pending is not None:
      with _writing(self._folder):
        pending.result()

  def close(self) -> None:
    """Waits, like `wait`, and ends the background thread."""
    self._writer.shutdown()
    self.wait()

  def _file(self, step: int) -> pathlib.Path:
    return self._folder / f"{step}.safetensors"


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (OSError, safetensors.SafetensorError) as error:
    raise CheckpointError(
      f"An emergency copy can't be written to {folder} ({error}). Make room there, or leave out"
      " --config.checkpoint.local, and give the same command to go on."
    ) from error


def _placed(arrays: dict[str, np.ndarray], like: TrainState) -> TrainState:
  """The state whose shards on this process's devices these are."""

  def place(path: str, leaf: Any) -> jax.Array:
    places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    missing = {_name(index, leaf.shape) for index in places.values()} - {
      name.rpartition("@")[2] for name in arrays if name.rpartition("@")[0] == path
    }
    if missing:
      raise ValueError(f"{path} lies otherwise on this mesh: {sorted(missing)[0]} is not there")
    parts = [
      jax.device_put(arrays[f"{path}@{_name(index, leaf.shape)}"].astype(leaf.dtype), device)
      for device, index in places.items()
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

  leaves = [place(path, leaf) for path, leaf in by_path(like).items()]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _name(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
  """A piece of an array: "0:8,4:8" for its first 8 rows and the columns from 4 on."""
  bounds = [part.indices(size) for part, size in zip(index, shape)]
  return ",".join(f"{start}:{stop}" for start, stop, _ in bounds)


def _sum(array: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
