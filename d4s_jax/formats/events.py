"""Numbers in the files that TensorBoard reads.

A file is a row of records: length (8 bytes), a checksum of it (4), an Event in protocol buffers, a
checksum of that. Fields as in `tensorflow/core/util/event.proto` and `framework/summary.proto`. The
packages that write such files import torch or TensorFlow, which takes longer than all else here.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np

# Of an Event: its time, step, the file's version, the numbers, and that a process begins.
_TIME, _STEP, _VERSION, _SUMMARY, _SESSION = 1, 2, 3, 5, 7
# The types of a field on the wire.
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


class Events:
  """Appends numbers to a new file."""

  def __init__(self, folder: pathlib.Path, start: int):
    """Opens it.

    Args:
      folder: of all files of a run.
      start: steps that a run has behind it; what earlier files say of later ones isn't shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    self._file = (folder / name).open("ab")
    self._write(_text(_VERSION, b"brain.Event:2"))
    self._write(_integer(_STEP, start + 1) + _text(_SESSION, _integer(1, 1)))

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    """Writes the numbers after `step` steps, by name."""
    values = [
      _text(1, name.encode()) + _key(2, _FLOAT) + np.float32(number).tobytes()
      for name, number in numbers.items()
    ]
    self._write(_integer(_STEP, step) + _text(_SUMMARY, b"".join(_text(1, x) for x in values)))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, event: bytes) -> None:
    event = _key(_TIME, _DOUBLE) + struct.pack("<d", time.time()) + event
    length = struct.pack("<Q", len(event))
    self._file.write(length + _checksum(length) + event + _checksum(event))
    self._file.flush()


def _key(field: int, kind: int) -> bytes:
  return bytes([field << 3 | kind])


def _varint(number: int) -> bytes:
  low = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
  return bytes([*(x | 128 for x in low[:-1]), low[-1]])


def _integer(field: int, number: int) -> bytes:
  return _key(field, _VARINT) + _varint(number)


def _text(field: int, contents: bytes) -> bytes:
  return _key(field, _BYTES) + _varint(len(contents)) + contents


def _remainder(number: int) -> int:
  for _ in range(8):
    number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
  return number


_REMAINDERS = [_remainder(x) for x in range(256)]


def _checksum(contents: bytes) -> bytes:
  """CRC-32C, turned and shifted as TensorFlow does."""
  found = 2**32 - 1
  for x in contents:
    found = found >> 8 ^ _REMAINDERS[(found ^ x) & 255]
  found ^= 2**32 - 1
  return struct.pack("<I", ((found >> 15 | found << 17) + 0xA282EAD8) % 2**32)
