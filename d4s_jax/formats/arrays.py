"""Arrays of files of NumPy, some rows at a time: what a track file holds may exceed the memory.

NumPy's own reader unpacks a whole array, whatever its header claims. Here the header is read first,
and of an array only the rows that are asked for are kept.
"""

import io
import math
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Shaped

from d4s_jax.formats import atomic

# An array of so many bytes is a mistake or an attack.
MOST_BYTES = 64 * 2**30
# Rows that are kept in memory in one call.
_MOST_READ = 4 * 2**30
_PIECE = 2**20
_ENCRYPTED = 1
# What NumPy writes.
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Of NumPy's and Python's parsers, for headers that nobody's writer makes.
_UNREADABLE = (
  *(ValueError, LookupError, TypeError, EOFError, SyntaxError, MemoryError, RecursionError),
  *(tokenize.TokenError, zlib.error),
)


class Spec(NamedTuple):
  """What the header of an array says.

  Attributes:
    shape: the shape.
    dtype: a type of plain numbers, booleans, texts or bytes.
    fortran: whether the first axis varies fastest.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  fortran: bool

  @property
  def nbytes(self) -> int:
    """Bytes that the numbers take."""
    return math.prod(self.shape) * self.dtype.itemsize


def check_header(file: IO[bytes] | io.BufferedIOBase, where: str, ndim: int | None = None) -> Spec:
  """Reads the header of an array in NumPy's format, up to its first number.

  Raises:
    ValueError: it is none, holds Python objects, or has another number of axes.
  """
  try:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read(file)
  except _UNREADABLE as error:
    raise ValueError(f"{where} is no array of NumPy, or damaged ({error}).") from error
  if dtype.kind not in "biufUS" or dtype.hasobject:
    raise ValueError(f"{where} holds {dtype}; expected numbers. Objects are not unpickled.")
  if ndim is not None and len(shape) != ndim:
    raise ValueError(f"{where} has shape {shape}; expected {ndim} axes.")
  return Spec(tuple(shape), dtype, bool(fortran))


def map_array(path: pathlib.Path) -> Shaped[np.ndarray, "..."]:
  """The array of a `.npy`, read where it is looked at.

  Raises:
    ValueError: it is none, or holds another number of bytes than it claims.
  """
  with path.open("rb") as file:
    spec, start = check_header(file, str(path)), file.tell()
    there = os.fstat(file.fileno()).st_size - start
    if there != spec.nbytes or not all(0 <= size <= MOST_BYTES for size in spec.shape):
      raise ValueError(
        f"{path} has {there} bytes of numbers and claims {spec.dtype} of shape {spec.shape};"
        " expected as many as it claims. Fetch it again, or write it again."
      )
    return np.memmap(file, spec.dtype, "r", start, spec.shape, "F" if spec.fortran else "C")


class ArrayArchive:
  """The arrays of an `.npz` file.

  Attributes:
    specs: shape and type of each array of plain numbers or texts, by name.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the headers.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged.
    """
    if not path.is_file():
      raise FileNotFoundError(f"No file at {path}; fetch it again.")
    self.path = path
    self.specs: dict[str, Spec] = {}
    self._starts: dict[str, int] = {}
    self._refused: dict[str, str] = {}
    try:
      with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
          name = entry.filename.removesuffix(".npy")
          try:
            self.specs[name], self._starts[name] = _look(archive, entry, f"{path}: {name!r:.60}")
          except ValueError as error:  # of this array; the others may serve
            self._refused[name] = str(error)
    except (zipfile.BadZipFile, OSError, zlib.error, EOFError, NotImplementedError) as error:
      raise ValueError(
        f"{path} is no .npz archive, or truncated ({error}). Fetch it again."
      ) from error

  def __contains__(self, name: str) -> bool:
    """Whether there is an array of this name, plain or not."""
    return name in self.specs or name in self._refused

  def spec(self, name: str, shape: Sequence[int | None] | None = None) -> Spec:
    """What an array is, if it has this shape, with None for any size; or any shape.

    Raises:
      ValueError: there is no such array, it is no plain one, or it has another shape.
    """
    if name in self._refused:
      raise ValueError(self._refused[name])
    if name not in self.specs:
      raise ValueError(f"{self.path} has {sorted(self.specs)[:20]}; expected {name!r} among them.")
    found = self.specs[name]
    if shape is None:
      return found
    if len(found.shape) != len(shape) or any(
      wanted not in (None, there) for wanted, there in zip(shape, found.shape)
    ):
      wanted = ["any" if size is None else size for size in shape]
      raise ValueError(f"{self.path}: {name!r} has shape {list(found.shape)}; expected {wanted}.")
    return found

  def read(self, name: str, rows: Sequence[int] | None = None) -> Shaped[np.ndarray, "..."]:
    """An array, or some rows of its first axis.

    Args:
      name: of the array.
      rows: strictly rising; None is all of them.

    Raises:
      ValueError: the archive is damaged, lacks the array, or what is asked for is too large.
    """
    spec = self.spec(name)
    if spec.fortran and rows is not None:
      return self.read(name)[list(rows)]
    count = (spec.shape[0] if spec.shape else 1) if rows is None else len(rows)
    row = spec.nbytes // max(spec.shape[0] if spec.shape else 1, 1)
    if count * row > _MOST_READ:
      raise ValueError(
        f"{self.path}: {count} rows of {name!r} take {count * row} bytes; expected at most"
        f" {_MOST_READ}."
      )
    try:
      with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
        file.read(self._starts[name])
        if rows is None:
          content = file.read(spec.nbytes)
        else:
          content = b"".join(_rows(file, rows, row))
    except (zipfile.BadZipFile, OSError, zlib.error, EOFError) as error:
      raise ValueError(f"{self.path}: {name!r} is damaged ({error}). Fetch it again.") from error
    shape = spec.shape if rows is None else (len(rows), *spec.shape[1:])
    if len(content) != math.prod(shape) * spec.dtype.itemsize:
      raise ValueError(f"{self.path}: {name!r} ends early; the archive is truncated.")
    values = np.frombuffer(content, spec.dtype)
    return values.reshape(shape, order="F" if spec.fortran else "C")


def write_array(path: pathlib.Path, array: Shaped[np.ndarray, "..."]) -> None:
  """Writes a `.npy`, whole or not at all.

  Raises:
    OSError: the disk is full; `np.save` says then how many numbers it wrote, and nothing else.
  """
  flat = np.ascontiguousarray(array)
  with atomic.replacing(path) as temporary, temporary.open("wb") as out:
    np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(flat))
    out.write(flat.data)


def _rows(file: IO[bytes] | io.BufferedIOBase, rows: Sequence[int], size: int):
  """The bytes of some rows; those between them are read and forgotten."""
  place = 0
  for row in rows:
    skip = (row - place) * size
    while skip > 0:
      skipped = len(file.read(min(skip, _PIECE)))
      if not skipped:
        return
      skip -= skipped
    yield file.read(size)
    place = row + 1


def _look(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> tuple[Spec, int]:
  """What an array is, and at which of its bytes the numbers start."""
  if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _PACKED:
    raise ValueError(
      f"{where} is encrypted, or packed in a way that NumPy has not. Fetch it again."
    )
  with archive.open(entry) as file:
    spec = check_header(file, where)
    start = file.tell()
  # A bomb unpacks to more than its header, or anybody, expects.
  if entry.file_size != start + spec.nbytes or spec.nbytes > MOST_BYTES:
    raise ValueError(
      f"{where} unpacks to {entry.file_size - start} bytes of numbers and claims {spec.nbytes};"
      f" expected as many as it claims, at most {MOST_BYTES}."
    )
  return spec, start
