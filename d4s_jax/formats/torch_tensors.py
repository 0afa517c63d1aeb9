"""Tensors of PyTorch's zip files (`torch.save`), without PyTorch and without running anything.

Such a file is a zip archive: a pickle of the structure, and beside it one entry of raw numbers for
each storage. A pickle is a program, which may call any function of the machine. Nothing unpickles
it here: its instructions are read one by one, and the two dozen that put dicts, lists and tensors
together are carried out by this module. Names stand for themselves; every other name, every other
instruction and every claim about sizes that the file doesn't bear out ends the reading.
"""

import collections
import contextlib
import dataclasses
import io
import math
import pathlib
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# The structure of ten thousand tensors: some 250 bytes and 30 instructions each.
_MOST_STRUCTURE = 8 * 2**20
_MOST_STEPS = 4 * 10**5
_MOST_AXES = 16
# Storage, offset, shape, strides.
_FEWEST = 4
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
_ORDERED, _REBUILD = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
# What zipfile says of damage: NotImplementedError of versions that were never written, OSError of
# places before the file.
_OF_ARCHIVES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError)
# An instruction that takes more than there is, or asks for what was never put in or is not in the
# archive; and what this module says. Anything else is a mistake of ours, or a lack of memory.
_OF_STRUCTURES = (ValueError, IndexError, KeyError)
_ENCRYPTED = 1
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclasses.dataclass(frozen=True)
class Unread:
  """A tensor whose numbers are still in the file.

  Attributes:
    storage: the entry of raw numbers.
    dtype: of the numbers.
    size: how many the entry claims to hold.
    offset: the tensor's first one.
    shape: of the tensor.
  """

  storage: str
  dtype: np.dtype
  size: int
  offset: int
  shape: tuple[int, ...]


class _Storage(Unread):
  """Raw numbers that the structure names, as a tensor of them all."""


def read_tensors(path: pathlib.Path) -> Any:
  """What was saved: dicts, lists, numbers and texts as they were, tensors as NumPy arrays.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, too large, of the format before 2020, or holds anything but tensors.
  """
  with _opened(path) as (script, storages), _telling(path):
    return _assemble(script, storages.read)


@contextlib.contextmanager
def open_tensors(path: pathlib.Path) -> Iterator[tuple[Any, Callable[[Unread], np.ndarray]]]:
  """What was saved, with `Unread` in the place of tensors, and what reads one while this is open.

  Raises:
    FileNotFoundError, ValueError: as `read_tensors`; numbers are checked when they are read.
  """
  with _opened(path) as (script, storages):

    def read(tensor: Unread) -> np.ndarray:
      with _telling(path):
        return storages.read(tensor)

    with _telling(path):
      saved = _assemble(script, lambda tensor: tensor)
    yield saved, read


@contextlib.contextmanager
def _telling(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (*_OF_ARCHIVES, *_OF_STRUCTURES) as error:
    raise ValueError(
      f"{path} cannot be read as tensors of PyTorch ({error}); expected an intact file of"
      " torch.save with tensors alone. Fetch it again."
    ) from error


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[bytes, "_Storages"]]:
  """The structure of a file, and its numbers."""
  if not path.is_file():
    raise FileNotFoundError(f"No file at {path}; fetch it again.")
  with _telling(path):
    archive = zipfile.ZipFile(path)
  with archive:
    with _telling(path):
      entries = archive.infolist()
      if sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise ValueError(f"it unpacks to more than {_MOST_BYTES} bytes")
      if any(x.flag_bits & _ENCRYPTED or x.compress_type not in _PACKED for x in entries):
        raise ValueError("it is encrypted, or packed in a way that PyTorch has not")
      names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
      if len(names) != 1:
        raise ValueError(f"{len(names)} entries data.pkl in it")
      if archive.getinfo(names[0]).file_size > _MOST_STRUCTURE:
        raise ValueError(f"its structure takes more than {_MOST_STRUCTURE} bytes")
      script = archive.read(names[0])
    yield script, _Storages(archive, names[0].removesuffix("data.pkl"))


class _Name:
  """A function or class that the structure names."""

  def __init__(self, module: str, name: str):
    self.name = f"{module}.{name}"
    self.dtype = _STORAGES.get(name) if module == "torch" else None
    if self.dtype is None and self.name not in (_ORDERED, _REBUILD):
      raise ValueError(f"it asks for {self.name:.120}, which is no part of a tensor")


class _Storages:
  """The raw numbers, each read once."""

  def __init__(self, archive: zipfile.ZipFile, folder: str):
    self._archive, self._folder = archive, folder
    self._read: dict[str, np.ndarray] = {}

  def read(self, tensor: Unread) -> np.ndarray:
    """A tensor's numbers."""
    key = tensor.storage
    if key not in self._read:
      values = np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), tensor.dtype)
      self._read[key] = values
    values = self._read[key]
    if len(values) != tensor.size or values.dtype != tensor.dtype:
      raise ValueError(f"storage {key} has {len(values)} numbers and claims another number")
    start = tensor.offset
    return values[start : start + math.prod(tensor.shape)].reshape(tensor.shape)


def _storage(entry: Any) -> _Storage:
  """What an entry of the structure claims of raw numbers."""
  if not isinstance(entry, tuple) or len(entry) != 5:
    raise ValueError("an entry that is no storage")
  kind, name, key, _, count = entry
  known = isinstance(kind, str) and kind == "storage" and isinstance(name, _Name)
  if not known or name.dtype is None or not isinstance(key, str) or not key.isalnum():
    raise ValueError("an entry that is no storage")
  if type(count) is not int:
    raise ValueError(f"storage {key} of a size that is no number")
  return _Storage(key, np.dtype(name.dtype), count, 0, (count,))


def _assemble(script: bytes, made: Callable[[Unread], Any]) -> Any:
  """Carries out the instructions of a structure; `made` is what a tensor becomes."""
  stack: list[Any] = []
  marks: list[int] = []
  # Numbers in the file are keys here, not sizes.
  memo: dict[int, Any] = {}

  def since_mark() -> list[Any]:
    start = marks.pop()
    found = stack[start:]
    del stack[start:]
    return found

  for step, (instruction, value, _) in enumerate(pickletools.genops(io.BytesIO(script))):
    if step == _MOST_STEPS:
      raise ValueError(f"its structure takes more than {_MOST_STEPS} instructions")
    match instruction.name:
      case "PROTO" | "FRAME":
        pass
      case "STOP":
        saved = stack.pop()
        if bare := _bare(saved):
          raise ValueError(f"{len(bare)} storages that are of no tensor")
        return saved
      case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE" as name:
        stack.append(_CONSTANTS[name])
      case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
        stack.append(value)
      case "BINUNICODE" | "SHORT_BINUNICODE":
        stack.append(value)
      case "EMPTY_DICT":
        stack.append({})
      case "EMPTY_LIST":
        stack.append([])
      case "MARK":
        marks.append(len(stack))
      case "TUPLE":
        stack.append(tuple(since_mark()))
      case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
        stack.append(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
      case "BINPUT" | "LONG_BINPUT":
        memo[_whole(value)] = stack[-1]
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[_whole(value)])
      case "APPEND" | "APPENDS" as name:
        values = [stack.pop()] if name == "APPEND" else since_mark()
        _top(stack, list).extend(values)
      case "SETITEM" | "SETITEMS" as name:
        values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else since_mark()
        _add(_top(stack, dict), values)
      case "GLOBAL":
        stack.append(_Name(*str(value).split(" ", 1)))
      case "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        stack.append(_Name(_text(module), _text(name)))
      case "BINPERSID":
        stack.append(_storage(stack.pop()))
      case "REDUCE":
        arguments, called = stack.pop(), stack.pop()
        told = _called(called, arguments)
        stack.append(made(told) if isinstance(told, Unread) else told)
      case "BUILD":
        # What PyTorch notes beside the tensors of a module.
        stack.pop()
        _top(stack, collections.OrderedDict)
      case other:
        raise ValueError(f"an instruction {other}, which makes no tensors")
  raise ValueError("a structure without an end")


def _bare(saved: Any) -> set[str]:
  """The storages that are in what was saved themselves, not by a tensor."""
  found: set[str] = set()
  seen: set[int] = set()
  rest = [saved]
  while rest:
    value = rest.pop()
    if isinstance(value, _Storage):
      found.add(value.storage)
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
      seen.add(id(value))
      rest += value.values() if isinstance(value, dict) else value
  return found


def _whole(value: Any) -> int:
  if type(value) is not int:
    raise ValueError("a place that is no number")
  return value


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError("a name that is no text")
  return value


def _top(stack: list[Any], kind: type) -> Any:
  if not isinstance(stack[-1], kind):
    raise ValueError(f"a {type(stack[-1]).__name__} in the place of a {kind.__name__}")
  return stack[-1]


def _add(into: dict[Any, Any], values: list[Any]) -> None:
  for key, value in zip(values[::2], values[1::2], strict=True):
    # The hash of tuples in tuples can take for ever.
    if not isinstance(key, str | int):
      raise ValueError(f"a key of type {type(key).__name__}")
    into[key] = value


def _called(called: Any, arguments: Any) -> Any:
  """A new dict, or a tensor."""
  if not isinstance(called, _Name) or not isinstance(arguments, tuple):
    raise ValueError("a call of what can't be called")
  if called.name == _ORDERED and not arguments:
    return collections.OrderedDict()
  if called.name == _REBUILD and len(arguments) >= _FEWEST:
    return _rebuild(*arguments)
  raise ValueError(f"a call of {called.name} with {len(arguments)} arguments")


def _rebuild(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Unread:
  """A tensor of a storage; it must be contiguous, as nearly all that are saved are."""
  sizes = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
  if not sizes or len(shape) > _MOST_AXES:
    raise ValueError(f"a tensor without a shape of at most {_MOST_AXES} axes and their strides")
  if not isinstance(storage, _Storage) or not all(
    type(size) is int and 0 <= size < 2**40 for size in (offset, *shape, *strides)
  ):
    raise ValueError("a tensor without numbers")
  count = math.prod(shape)
  expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  if any(size > 1 and a != b for size, a, b in zip(shape, strides, expected)):
    raise ValueError(f"a tensor of shape {shape} with strides {strides}")
  if offset + count > storage.size:
    raise ValueError(f"a tensor of shape {shape} beyond its {storage.size} numbers")
  return Unread(storage.storage, storage.dtype, storage.size, offset, shape)
