"""Tensors of PyTorch's zip files (`torch.save`), without PyTorch and without running anything.

Such a file is a zip archive: a pickle of the structure, and beside it one entry of raw numbers for
each storage. A pickle may name any function of the machine to be called. This reader calls none:
the four kinds of names that tensors need are answered with inert stand-ins, every other name is
refused, and storages are looked at when their sizes have been checked.
"""

import collections
import io
import math
import pathlib
import pickle
import zipfile
import zlib
from typing import Any

import numpy as np

# The structure of thousands of tensors.
_MOST_STRUCTURE = 32 * 2**20
_MOST_BYTES = 2 * 2**30
_STORAGES = {
  "FloatStorage": np.float32,
  "DoubleStorage": np.float64,
  "HalfStorage": np.float16,
  "ByteStorage": np.uint8,
  "CharStorage": np.int8,
  "ShortStorage": np.int16,
  "IntStorage": np.int32,
  "LongStorage": np.int64,
  "BoolStorage": np.bool_,
}


def read_tensors(path: pathlib.Path) -> Any:
  """What was saved: dicts, lists, numbers and texts as they were, tensors as NumPy arrays.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, too large, of the format before 2020, or holds anything but tensors.
  """
  if not path.is_file():
    raise FileNotFoundError(f"No file at {path}; fetch it again.")
  try:
    with zipfile.ZipFile(path) as archive:
      if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
        raise ValueError(f"it unpacks to more than {_MOST_BYTES} bytes")
      names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
      if len(names) != 1:
        raise ValueError(f"{len(names)} entries data.pkl in it")
      if archive.getinfo(names[0]).file_size > _MOST_STRUCTURE:
        raise ValueError(f"its structure takes more than {_MOST_STRUCTURE} bytes")
      folder = names[0].removesuffix("data.pkl")
      return _Tensors(archive, folder).load()
  except (
    zipfile.BadZipFile, OSError, zlib.error, EOFError, ValueError, KeyError, TypeError, IndexError,
    AttributeError, NotImplementedError, pickle.UnpicklingError, RecursionError, MemoryError,
    OverflowError, UnicodeDecodeError,
  ) as error:  # fmt: skip
    raise ValueError(
      f"{path} cannot be read as tensors of PyTorch ({error}); expected an intact file of"
      " torch.save with tensors alone. Fetch it again."
    ) from error


class _Tensors(pickle.Unpickler):
  """Builds tensors, dicts and lists, and nothing else."""

  def __init__(self, archive: zipfile.ZipFile, folder: str):
    super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
    self._archive, self._folder = archive, folder
    self._read: dict[str, np.ndarray] = {}

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _rebuild
    if module == "torch" and name in _STORAGES:
      return np.dtype(_STORAGES[name]).str
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tensor")

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, dtype, key, _, count = pid
    if kind != "storage" or not isinstance(key, str) or not key.isalnum():
      raise pickle.UnpicklingError(f"an entry {pid!r:.80}")
    if key not in self._read:
      values = np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), np.dtype(dtype))
      if len(values) != count:
        raise ValueError(f"storage {key} has {len(values)} numbers and claims {count}")
      self._read[key] = values
    return self._read[key]


def _rebuild(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
  """A tensor's numbers; it must be contiguous, as nearly all that are saved are."""
  if not isinstance(storage, np.ndarray) or not all(
    type(size) is int and 0 <= size < 2**40 for size in (offset, *shape, *strides)
  ):
    raise ValueError("a tensor without numbers")
  count, expected = math.prod(shape), []
  for axis in range(len(shape)):
    expected.append(math.prod(shape[axis + 1 :]))
  if any(size > 1 and a != b for size, a, b in zip(shape, strides, expected)):
    raise ValueError(f"a tensor of shape {shape} with strides {strides}")
  if offset + count > len(storage):
    raise ValueError(f"a tensor of shape {shape} beyond its {len(storage)} numbers")
  return storage[offset : offset + count].reshape(shape)
