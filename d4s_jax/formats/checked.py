"""JSON from strangers: bounded, without NaN or repeated keys, every field asked for by name.

Errors name the place as a path such as `camera.json: frames[3].intrinsics`.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Collection
from typing import Any

import numpy as np


def read_bytes(path: str | os.PathLike, limit: int, what: str) -> bytes:
  """The contents of a file of at most `limit` bytes.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not a file, or too large.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"No {what} at {path}; check the path.")
  if not path.is_file():
    raise ValueError(f"{path} is not a file; expected {what}.")
  with path.open("rb") as file:
    contents = file.read(limit + 1)
  if len(contents) > limit:
    raise ValueError(f"{path} is larger than {limit} bytes, too large for {what}.")
  return contents


def within(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The place of a name in a folder, if it is a plain name and no link that leads elsewhere.

  Raises:
    ValueError: the name, or what it links to, leaves the folder.
  """
  path = folder / name
  plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", name)
  if not plain or path.resolve().parent != folder.resolve():
    raise ValueError(
      f"{folder} refers to {name!r:.80}, which is no plain name in it; links and paths that lead"
      " elsewhere are not followed (cp -rL FOLDER NEW makes files of links)."
    )
  return path


def parse(contents: bytes, where: str, nan: bool = False) -> Any:
  """Strict JSON: UTF-8, finite numbers, no key twice.

  With `nan`, NaN and Infinity are read, for callers who refuse them number by number.
  """
  try:
    constant = float if nan else _refuse
    return json.loads(contents, parse_constant=constant, object_pairs_hook=_unique)
  except RecursionError:
    raise ValueError(f"{where}: JSON nested too deeply.") from None
  except ValueError as error:
    raise ValueError(f"{where}: not valid JSON ({error}).") from None


def fields(
  value: Any, where: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
  """An object that has all `required` keys and none but these and the `optional` ones."""
  if not isinstance(value, dict):
    raise ValueError(f"{where}: {_brief(value)}; expected an object with {', '.join(required)}.")
  missing = [key for key in required if key not in value]
  unknown = [key for key in value if key not in required and key not in optional]
  if missing or unknown:
    allowed = ", ".join([*required, *(f"{key} (optional)" for key in optional)])
    problems = [f"missing {key}" for key in missing] + [f"unknown {key!r:.60}" for key in unknown]
    raise ValueError(f"{where}: {', '.join(problems[:8])}; expected the fields {allowed}.")
  return value


def items(value: Any, where: str, most: int) -> list:
  """A list of 1 to `most` elements."""
  if not isinstance(value, list) or not 1 <= len(value) <= most:
    raise ValueError(f"{where}: {_brief(value)}; expected a list of 1 to {most} elements.")
  return value


def numbers(value: Any, where: str, shape: tuple[int, ...]) -> np.ndarray:
  """Nested lists of finite numbers of exactly this shape, as float64."""
  if not _has_shape(value, shape):
    expected = " of ".join([*(f"{size} lists" for size in shape[:-1]), f"{shape[-1]} numbers"])
    raise ValueError(f"{where}: {_brief(value)}; expected {expected}, all finite.")
  return np.array(value, np.float64)


def number(value: Any, where: str, low: float = -math.inf, high: float = math.inf) -> float:
  """A finite number in [low, high]."""
  if not _is_number(value) or not low <= value <= high:
    bounds = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
    raise ValueError(f"{where}: {_brief(value)}; expected a finite number{bounds}.")
  return float(value)


def integer(value: Any, where: str, low: int, high: int) -> int:
  """A whole number in [low, high]."""
  if type(value) is not int or not low <= value <= high:
    raise ValueError(f"{where}: {_brief(value)}; expected a whole number from {low} to {high}.")
  return value


def text(value: Any, where: str, most: int) -> str:
  """A string of at most `most` characters."""
  if not isinstance(value, str) or len(value) > most:
    raise ValueError(f"{where}: {_brief(value)}; expected a text of at most {most} characters.")
  return value


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
  if not shape:
    return _is_number(value)
  return (
    isinstance(value, list)
    and len(value) == shape[0]
    and all(_has_shape(element, shape[1:]) for element in value)
  )


def _is_number(value: Any) -> bool:
  """JSON's true is no number, and an integer beyond float64 is no finite one."""
  if type(value) not in (int, float):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:
    return False


def _brief(value: Any) -> str:
  if isinstance(value, list):
    return f"a list of {len(value)}"
  if isinstance(value, dict):
    return f"an object of {len(value)} fields"
  if isinstance(value, str):
    return f"a text of {len(value)} characters" if len(value) > 60 else repr(value)
  # repr() of an integer of thousands of digits is an error of its own.
  return "a huge integer" if type(value) is int and abs(value) > 10**18 else repr(value)


def _refuse(constant: str):
  raise ValueError(f"{constant} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a key occurs twice in one object")
  return found
