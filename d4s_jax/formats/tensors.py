"""Safetensors files, one tensor at a time, in bits: what the numbers mean does not matter here.

The library of that name hands out no bfloat16 in NumPy, and writes only what is whole in memory.
Here a tensor is an array of unsigned integers as wide as its numbers, so that every type travels
unchanged, and a file larger than the memory is read and written piece by piece.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from d4s_jax.formats import checked

# Bytes of a number of each type.
SIZES = {
  **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
  **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
  **dict.fromkeys(("U32", "I32", "F32"), 4),
  **dict.fromkeys(("U64", "I64", "F64"), 8),
}

_METADATA = "__metadata__"
# A model of a thousand tensors has a header of 150 kB.
_LONGEST_HEADER = 16 * 2**20
# What a file begins with that git fetched without its contents.
_POINTER = b"version https://git-lfs"
_MOST_AXES = 16


class Spec(NamedTuple):
  """Type and shape of a tensor.

  Attributes:
    dtype: a key of `SIZES`.
    shape: the shape.
  """

  dtype: str
  shape: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    """Bytes that the tensor takes."""
    return math.prod(self.shape) * SIZES[self.dtype]


class TensorFile:
  """A safetensors file whose header has been checked.

  Attributes:
    path: the file.
    specs: type and shape of each tensor, by name.
    metadata: texts in the header, by name.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the header.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the header is damaged or hostile, or claims other data than there are.
    """
    if not path.is_file():
      raise FileNotFoundError(f"No safetensors file at {path}; restore it.")
    self.path = path
    self.specs: dict[str, Spec] = {}
    self._starts: dict[str, int] = {}
    header, self.metadata, begin, end = _read_header(path)
    expected = 0
    for name, spec, start, stop in sorted(header, key=lambda entry: entry[2:]):
      # No byte belongs to two tensors or to none: nothing can hide in the file.
      if start != expected or stop - start != spec.nbytes:
        raise ValueError(
          f"{path}: {name!r:.80} claims bytes {start} to {stop} of the data; a {spec.dtype} tensor"
          f" of shape {list(spec.shape)} there goes from {expected} to {expected + spec.nbytes}."
        )
      self.specs[name], self._starts[name] = spec, begin + start
      expected = stop
    if expected != end - begin:
      raise ValueError(
        f"{path} has {end - begin} bytes of data, and its header claims {expected}; it is truncated"
        " or damaged."
      )

  def read(self, name: str, row: int | None = None) -> np.ndarray:
    """The bits of a tensor, or of one row of it, read when asked for."""
    spec, start = self.specs[name], self._starts[name]
    shape, size = spec.shape, SIZES[spec.dtype]
    if row is not None:
      shape = shape[1:]
      start += row * math.prod(shape) * size
    count = math.prod(shape)
    # Not a memory map: a file that shrinks meanwhile would end the process without a word, and
    # what was mapped once counts as memory until somebody else needs it.
    bits = np.fromfile(self.path, np.dtype(f"u{size}"), count, offset=start)
    if bits.size != count:
      raise ValueError(f"{self.path} ended inside {name!r:.80}; it changed while it was read.")
    return bits.reshape(shape)


def write(
  path: pathlib.Path,
  specs: Mapping[str, Spec],
  pieces: Callable[[str], Iterable[np.ndarray]],
  metadata: Mapping[str, str],
) -> None:
  """Writes a safetensors file; only one piece of one tensor is in memory at a time.

  Args:
    path: the file.
    specs: type and shape of each tensor, by name.
    pieces: the bits of a tensor, cut along its first axis, in order.
    metadata: texts for the header.
  """
  # Wide types first, as in the library: each tensor then starts at a multiple of its type's size.
  order = sorted(specs, key=lambda name: (-SIZES[specs[name].dtype], name))
  header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
  end = 0
  for name in order:
    spec, start = specs[name], end
    end += spec.nbytes
    header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
      begin = file.tell()
      for piece in pieces(name):
        file.write(np.ascontiguousarray(piece).data)
      if file.tell() - begin != specs[name].nbytes:
        raise ValueError(f"{name} has {file.tell() - begin} bytes, not {specs[name].nbytes}.")


def check_no_pointer(contents: bytes, path: pathlib.Path) -> None:
  """Raises ValueError for what git leaves in a file's place where it knows no LFS."""
  if contents.startswith(_POINTER):
    raise ValueError(
      f"{path} is a pointer of git LFS, not the file itself; fetch it with git lfs pull or hf"
      " download."
    )


def _read_header(
  path: pathlib.Path,
) -> tuple[list[tuple[str, Spec, int, int]], dict[str, str], int, int]:
  """Name, spec, start and stop of each tensor; texts; where the data begin and end in the file."""
  with path.open("rb") as file:
    end = os.fstat(file.fileno()).st_size
    start = file.read(8)
    check_no_pointer(start + file.read(len(_POINTER) - 8), path)
    file.seek(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_LONGEST_HEADER, end - 8):
      raise ValueError(
        f"{path} is no safetensors file, or truncated: {end} bytes with a header of {length};"
        f" expected at most {_LONGEST_HEADER} bytes of header within the file. Fetch it again."
      )
    text = file.read(length)
  header = checked.parse(text, str(path))
  if not isinstance(header, dict):
    raise ValueError(f"{path}: the header is no object of tensors.")
  texts = header.pop(_METADATA, {})
  if not isinstance(texts, dict) or not all(isinstance(x, str) for x in texts.values()):
    raise ValueError(f"{path}: {_METADATA}; expected an object of texts.")
  return [_entry(name, value, path) for name, value in header.items()], texts, 8 + length, end


def _entry(name: str, value: Any, path: pathlib.Path) -> tuple[str, Spec, int, int]:
  where = f"{path}: {name!r:.80}"
  found = checked.fields(value, where, ("dtype", "shape", "data_offsets"))
  dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
  if not isinstance(dtype, str) or dtype not in SIZES:
    raise ValueError(f"{where} has type {dtype!r:.40}; expected one of {', '.join(SIZES)}.")
  for what, numbers, counts in (("shape", shape, range(_MOST_AXES + 1)), ("offsets", offsets, [2])):
    whole = isinstance(numbers, list) and all(type(x) is int and 0 <= x < 2**62 for x in numbers)
    if not whole or len(numbers) not in counts:
      raise ValueError(f"{where} has {what} {numbers!r:.80}; expected a list of whole numbers.")
  return name, Spec(dtype, tuple(shape)), offsets[0], offsets[1]
