"""Weights that come with the package, as safetensors files beside this module."""

import pathlib
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

# The value of a configuration's `init` keys that asks for them.
ORIGIN = "shipped"
_FOLDER = pathlib.Path(__file__).parent / "weights"


def path(preset: str, part: str) -> pathlib.Path:
  """Where the shipped weights of a part of the model lie."""
  return _FOLDER / f"{preset}_{part}.safetensors"


def load(preset: str, part: str, like: Any) -> Any:
  """The shipped parameters of one part, nested, float32.

  Args:
    preset: model size.
    part: "autoencoder", "text_encoder", "transformer" or "ldrm".
    like: abstract parameters of that part.

  Raises:
    ValueError: no weights are shipped for it, or they don't fit `like`; lists every difference.
  """
  file = path(preset, part)
  if not file.is_file():
    there = sorted(found.stem for found in _FOLDER.glob("*.safetensors"))
    raise ValueError(
      f"No weights are shipped for the {part} of preset {preset!r} (there are: {there}); set"
      f" config.init.{part} to the folder of a run, or to '' for random ones."
    )
  stored = load_file(file)
  flat: Any = traverse_util.flatten_dict(like, sep="/")
  expected = {name: x.shape for name, x in flat.items()}
  found = {name: x.shape for name, x in stored.items()}
  wrong = [
    f"{name}: shipped {found.get(name)}, expected {expected.get(name)}"
    for name in sorted(expected.keys() | found.keys())
    if expected.get(name) != found.get(name)
  ]
  if wrong:
    raise ValueError(
      f"The shipped {part} of {preset!r} does not fit this configuration ({'; '.join(wrong[:5])});"
      f" keep the preset's shape or set config.init.{part}=''."
    )
  return traverse_util.unflatten_dict(
    {name: x.astype(np.float32) for name, x in stored.items()}, sep="/"
  )
