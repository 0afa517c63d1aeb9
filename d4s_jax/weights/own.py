"""The modules that exist nowhere else, the LDRM and the conditioning on cameras: out and in again.

Out they are a folder of safetensors, a config.json and a file that runs them on torch alone. In our
layout (`formats.parts`) they are the part "ldrm": parameters of the LDRM by path, and under
"camera/" those that belong to the transformer.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from d4s_jax.formats import checked, parts, shards
from d4s_jax.weights.parts import Conversion, check_tensors

# Of the folder, and of the files in it.
NAME = "diff4splat"
# What the code has to know of the LDRM beside the shapes of its parameters.
FIELDS = (
  *("gaussians", "depth", "heads", "stem", "strides", "pixels_per_cell", "encoding", "canonical"),
  *("scene_scale", "initial_depth", "opacity_bias"),
)
# Its own source travels: it needs nothing of this package.
_CODE = pathlib.Path(__file__).with_name(f"{NAME}.py")
_PATCHES, _PARAMETERS = "patch_embedding", "parameters"
_LDRM = "ldrm/"
_PATH = re.compile(rf"(?:{_LDRM}|{parts.CAMERA})[A-Za-z0-9_/]{{1,200}}")
_MOST_PARAMETERS = 10_000


def files() -> dict[str, bytes]:
  """What lies beside the weights when they are out, by name."""
  return {_CODE.name: _CODE.read_bytes()}


def config(
  ldrm: Any, patch_embedding: str, parameters: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """The config.json of the folder.

  Args:
    ldrm: our `LDRM`.
    patch_embedding: name of the PyTorch layer whose output what cameras add is added to.
    parameters: shapes of all parameters, by path.
  """
  found = {name: getattr(ldrm, name) for name in FIELDS}
  return found | {_PATCHES: patch_embedding, _PARAMETERS: parameters}


def is_own(folder: pathlib.Path) -> bool:
  """Whether a folder holds these modules, out or in our layout."""
  if not (folder / parts.CONFIG).is_file():
    return False
  found = parts.read_config(folder)
  if parts.is_description(found):
    return found.get("part") == parts.LDRM
  return _PATCHES in found


def to_flax(folder: pathlib.Path) -> Conversion:
  """What `convert --format=torch` made of a run back to ours: the same tensors, bit for bit.

  Raises:
    ValueError: it was written by an older version, is damaged or of another kind; lists every
      tensor that is missing, unexpected or misshapen.
  """
  found = parts.read_config(folder)
  if parts.is_description(found):
    raise ValueError(f"{folder} is in our layout already; --format=torch takes it back.")
  expected = _parameters(found, str(folder / parts.CONFIG))
  stored = shards.Shards(folder, NAME)
  check_tensors(folder, expected, stored.specs)
  parts.check_floats(folder, stored.specs)
  description = parts.Description(parts.LDRM, _fields(found), found, {})
  places = {name.removeprefix(_LDRM): name for name in expected}

  def pieces(path: str) -> Iterator[np.ndarray]:
    yield stored.read(places[path])

  specs = {path: stored.specs[name] for path, name in places.items()}
  return Conversion(description.encode(), parts.STEM, {}, specs, pieces)


def to_torch(folder: pathlib.Path) -> Conversion:
  """From our layout out again; the code (`files`) belongs beside it.

  Raises:
    ValueError: the folder is damaged; lists every wrong tensor.
  """
  if not parts.is_description(parts.read_config(folder)):
    raise ValueError(f"{folder} is not in our layout; --format=flax makes it so.")
  where = str(folder / parts.CONFIG)
  description, stored = parts.open_part(folder, parts.LDRM)
  expected = _parameters(description.published, where)
  if _fields(description.published) != description.fields:
    raise ValueError(f"{where}: fields are not those of `published`; restore the file.")
  places = {name: name.removeprefix(_LDRM) for name in expected}
  check_tensors(folder, {places[name]: shape for name, shape in expected.items()}, stored.specs)

  def pieces(name: str) -> Iterator[np.ndarray]:
    yield stored.read(places[name])

  specs = {name: stored.specs[path] for name, path in places.items()}
  return Conversion(description.published, NAME, {"format": "pt"}, specs, pieces)


def _fields(found: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps({name: found[name] for name in FIELDS}))


def _parameters(found: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
  """The shapes that a config.json lists; raises ValueError unless all of it is in order."""
  wanted = (*FIELDS, _PATCHES, _PARAMETERS)
  missing = [name for name in wanted if name not in found]
  if missing:
    raise ValueError(
      f"{where} says nothing of {', '.join(missing)}: an older version of d4s_jax.convert wrote it."
      " Convert the run once more, with this version."
    )
  checked.fields(found, where, wanted)
  shapes = found[_PARAMETERS]
  if not isinstance(shapes, dict) or not 1 <= len(shapes) <= _MOST_PARAMETERS:
    raise ValueError(f"{where}: {_PARAMETERS}; expected an object from paths to shapes.")
  for name, shape in shapes.items():
    sizes = isinstance(shape, list) and all(type(x) is int and 0 < x < 2**40 for x in shape)
    if not _PATH.fullmatch(name) or not sizes:
      raise ValueError(f"{where}: {_PARAMETERS}: {name!r:.80} is {shape!r:.60}; restore the file.")
  return {name: tuple(shape) for name, shape in shapes.items()}
