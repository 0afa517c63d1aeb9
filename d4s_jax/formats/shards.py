"""A folder of safetensors files that together hold the tensors of one model.

Layout, that of diffusers and transformers: STEM.safetensors; or STEM-00001-of-0000N.safetensors
with STEM.safetensors.index.json, whose `weight_map` says which file holds which tensor.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from d4s_jax.formats import checked
from d4s_jax.formats.tensors import Spec, TensorFile, write

# The published shards are of this order too; a single larger tensor gets a file of its own.
LIMIT = 4 * 10**9

_LONGEST_INDEX = 16 * 2**20
_MOST_FILES = 10_000
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class Shards:
  """The tensors in a folder, wherever they lie.

  Attributes:
    specs: type and shape of each tensor, by name.
  """

  def __init__(self, folder: pathlib.Path, stem: str):
    """Opens the files whose names begin with `stem`, and checks every header against the index.

    Raises:
      FileNotFoundError: there are no weights, or a file of the index is missing.
      ValueError: a file is damaged, hostile, or leads out of the folder.
    """
    self.specs: dict[str, Spec] = {}
    self._files: dict[str, TensorFile] = {}
    if (folder / f"{stem}.safetensors.index.json").exists():
      self._open_index(folder, f"{stem}.safetensors.index.json")
      return
    if not (folder / f"{stem}.safetensors").exists():
      others = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLED)
      hint = f" ({', '.join(others[:3])} may run code when read, so it is not)" if others else ""
      index = sorted(folder.glob(f"{stem}.safetensors.index.*.json"))
      variants = index or sorted(folder.glob(f"{stem}.*.safetensors"))
      if variants:
        name = f"{stem}.safetensors" + (".index.json" if index else "")
        raise FileNotFoundError(
          f"{folder} holds the weights as a variant alone ({variants[0].name!r:.80}); rename that"
          f" file to {name}."
        )
      raise FileNotFoundError(
        f"{folder} holds neither {stem}.safetensors nor its index{hint}; expected safetensors."
      )
    self._add(TensorFile(checked.within(folder, f"{stem}.safetensors")))

  def read(self, name: str, row: int | None = None) -> np.ndarray:
    """The bits of a tensor, or of one row of it, read when asked for."""
    return self._files[name].read(name, row)

  def _add(self, file: TensorFile) -> None:
    self.specs |= file.specs
    self._files |= dict.fromkeys(file.specs, file)

  def _open_index(self, folder: pathlib.Path, name: str) -> None:
    path = checked.within(folder, name)
    index = checked.parse(checked.read_bytes(path, _LONGEST_INDEX, "index of weights"), str(path))
    index = checked.fields(index, str(path), ("weight_map",), ("metadata",))
    places = index["weight_map"]
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
      raise ValueError(f"{path}: weight_map; expected an object from names to file names.")
    names = sorted(set(places.values()))
    if len(names) > _MOST_FILES:
      raise ValueError(f"{path} names {len(names)} files; expected at most {_MOST_FILES}.")
    paths = [checked.within(folder, name) for name in names]
    files = {path.name: TensorFile(path) for path in paths}
    found = {tensor: path.name for path in paths for tensor in files[path.name].specs}
    count = sum(len(file.specs) for file in files.values())
    if found != places or count != len(found):
      wrong = [f"{x!r:.80}" for x in places.keys() | found.keys() if places.get(x) != found.get(x)]
      raise ValueError(
        f"{path} and the files it names differ in {', '.join(sorted(wrong)[:8]) or 'a repetition'};"
        " expected each tensor in the file that the index says."
      )
    for file in files.values():
      self._add(file)


def write_shards(
  folder: pathlib.Path,
  stem: str,
  specs: Mapping[str, Spec],
  pieces: Callable[[str], Iterable[np.ndarray]],
  metadata: Mapping[str, str],
  limit: int = LIMIT,
) -> None:
  """Writes the files of one model into a folder; see `tensors.write`.

  Args:
    folder: an existing folder.
    stem: how the names of the files begin.
    specs: type and shape of each tensor, by name.
    pieces: the bits of a tensor, cut along its first axis, in order.
    metadata: texts for the head of each file.
    limit: bytes a file, unless a single tensor is larger.
  """
  groups: list[dict[str, Spec]] = [{}]
  size = 0
  for name in sorted(specs):
    if groups[-1] and size + specs[name].nbytes > limit:
      groups.append({})
      size = 0
    groups[-1][name] = specs[name]
    size += specs[name].nbytes
  if len(groups) == 1:
    write(folder / f"{stem}.safetensors", groups[0], pieces, metadata)
    return
  places: dict[str, str] = {}
  for number, group in enumerate(groups, 1):
    name = f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
    write(folder / name, group, pieces, metadata)
    places |= dict.fromkeys(group, name)
  total = sum(spec.nbytes for spec in specs.values())
  index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": places}
  text = json.dumps(index, indent=2, sort_keys=True) + "\n"
  (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
