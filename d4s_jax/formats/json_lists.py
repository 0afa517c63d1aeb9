"""Long JSON lists in gzip, one element at a time: neither text nor list is in memory as a whole."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

# Half a million annotations.
MOST_BYTES = 4 * 2**30
_LONGEST_ELEMENT = 2**20
_PIECE = 2**20
_BETWEEN = " \t\r\n,"


def read_list(path: pathlib.Path) -> Iterator[Any]:
  """The elements of a list in gzipped JSON, in order.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or larger than anybody's list; elements before that were yielded.
  """
  if not path.is_file():
    raise FileNotFoundError(f"No file at {path}; fetch it again.")
  decoder, text, size, begun = json.JSONDecoder(), "", 0, False
  try:
    with gzip.open(path, "rt", encoding="utf-8") as file:
      while piece := file.read(_PIECE):
        size += len(piece)
        if size > MOST_BYTES:
          raise ValueError(f"it unpacks to more than {MOST_BYTES} characters")
        text += piece
        place = 0
        if not begun:
          text = text.lstrip()
          if not text:
            continue
          if text[0] != "[":
            raise ValueError("it does not begin with [")
          begun, place = True, 1
        while True:
          while place < len(text) and text[place] in _BETWEEN:
            place += 1
          if text[place : place + 1] == "]":
            return
          try:
            element, after = decoder.raw_decode(text, place)
          except json.JSONDecodeError:
            break  # the rest of this element is in the next piece
          if after == len(text):
            break  # so it may be: 12 may go on as 123
          place = after
          yield element
        text = text[place:]
        if len(text) > _LONGEST_ELEMENT + _PIECE:
          raise ValueError(f"an element of more than {_LONGEST_ELEMENT} characters")
    raise ValueError("it ends before its last element")
  except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} is no list in gzipped JSON, or damaged ({error}). Fetch it again."
    ) from error
