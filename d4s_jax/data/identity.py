"""What tells data apart when a run goes on: short hashes, and the differences of nested values."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def digest(told: Iterable[object]) -> str:
  """A short hash of some values, by how they are written."""
  whole = hashlib.sha256()
  for one in told:
    whole.update(f"{one!r}\n".encode())
  return whole.hexdigest()[:16]


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What differs between two nested dictionaries, one phrase for each value."""
  before, after = leaves(saved), leaves(now)
  return [
    f"{key}: saved {before.get(key)!r}, now {after.get(key)!r}"
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key)
  ]


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
  """The values of nested dictionaries, by their keys with dots between them."""
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {
    key: value
    for name, part in tree.items()
    for key, value in leaves(part, f"{prefix}.{name}" if prefix else name).items()
  }
