"""A training run out to PyTorch.

The backbone becomes models of diffusers and transformers. What exists nowhere else, the LDRM and
the conditioning on cameras, becomes safetensors beside a file that runs them on torch alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from d4s_jax.formats.parts import CAMERA
from d4s_jax.formats.tensors import Spec
from d4s_jax.models.adapter import ADAPTER
from d4s_jax.models.ldrm import LDRM
from d4s_jax.models.system import System
from d4s_jax.models.tokenizer import PublishedTokenizer
from d4s_jax.weights import adapters, merging, own
from d4s_jax.weights.components import COMPONENTS, Component
from d4s_jax.weights.folders import Job
from d4s_jax.weights.parts import Conversion, Stored
from d4s_jax.weights.rules import pairs

# As in published pipelines.
_FOLDERS = {
  "transformer": "transformer",
  "autoencoder": "vae",
  "text_encoder": "text_encoder",
  "image_encoder": "image_encoder",
}
_TORCH = {"format": "pt"}


@dataclasses.dataclass(frozen=True)
class _Some:
  """Some of the parameters of a run, under other paths.

  Attributes:
    stored: all of them.
    places: path there, by path here.
  """

  stored: Stored
  places: Mapping[str, str]

  @property
  def specs(self) -> dict[str, Spec]:
    """Type and shape of each."""
    return {path: self.stored.specs[place] for path, place in self.places.items()}

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """The shape of each."""
    return {path: spec.shape for path, spec in self.specs.items()}

  def read(self, name: str, row: int | None = None) -> np.ndarray:
    """One of them, or one row of it."""
    return self.stored.read(self.places[name], row)


def export(system: System, stored: Stored, merged: bool = False) -> Job:
  """What a run becomes: transformer, vae, encoders and diff4splat, in float32.

  A published tokenizer travels along as it is.

  Args:
    system: the models.
    stored: all parameters, in float32, by path.
    merged: whether an adapter is added to the transformer; else it lies beside it, in adapter.
  """
  lora = system.backbone.adapter
  if merged and not lora.rank:
    raise ValueError("This run has no adapter to merge (model.lora.rank is 0).")
  transformer = _some(stored, "transformer/", without=CAMERA)
  models = {
    folder: _published(getattr(system.backbone, part), _some(stored, f"{part}/", without=CAMERA))
    for part, folder in _FOLDERS.items()
    if any(path.startswith(f"{part}/") for path in stored.specs)
  }
  ours = {path: path for path in stored.specs if path.startswith("ldrm/")}
  ours |= {
    path.removeprefix("transformer/"): path
    for path in stored.specs
    if path.startswith(f"transformer/{CAMERA}")
  }
  patches = _patch_embedding(system.backbone.transformer, transformer)
  models[own.NAME] = _ours(system.ldrm, _Some(stored, ours), patches)
  tokenizer = system.backbone.tokenizer
  files = tokenizer.files if isinstance(tokenizer, PublishedTokenizer) else {}
  files = {f"tokenizer/{name}": contents for name, contents in files.items()}
  code = {f"{own.NAME}/{name}": contents for name, contents in own.files().items()}
  job = Job(models, code | files)
  adapter = _some(stored, f"{ADAPTER}/")
  if merged:
    kind = models[_FOLDERS["transformer"]].config["_class_name"]
    arrays = {path: adapter.read(path) for path in adapter.places}
    return merging.merge(job, merging.Adapter(arrays, lora.scale, kind))
  if lora.rank:
    models[ADAPTER] = adapters.export(system.backbone.transformer, lora, adapter)
  return job


def _some(stored: Stored, start: str, without: str = "/") -> _Some:
  """The parameters whose paths begin with `start`, but for those that go on with `without`."""
  paths = [path for path in stored.specs if path.startswith(start)]
  shorter = {path.removeprefix(start): path for path in paths}
  return _Some(stored, {path: x for path, x in shorter.items() if not path.startswith(without)})


def _published(module: Any, part: _Some) -> Conversion:
  """A part of the backbone as a model of diffusers or transformers."""
  component = _component(module)
  table = {pair.torch: pair for pair in pairs(component.rules, part.shapes)}

  def pieces(name: str) -> Iterator[np.ndarray]:
    pair = table[name]
    yield pair.to_torch(part.read(pair.flax, pair.row))

  specs = {name: Spec("F32", pair.torch_shape) for name, pair in table.items()}
  config = component.config(module, part.shapes)
  return Conversion(config, component.stem, _TORCH, specs, pieces)


def _component(module: Any) -> Component:
  return next(x for x in COMPONENTS.values() if isinstance(module, x.module))


def _patch_embedding(transformer: Any, part: _Some) -> str:
  """Name of the PyTorch layer whose output what cameras add is added to."""
  table = pairs(_component(transformer).rules, part.shapes)
  (weight,) = (pair.torch for pair in table if pair.flax == "patch_embedding/kernel")
  return weight.removesuffix(".weight")


def _ours(ldrm: LDRM, part: _Some, patches: str) -> Conversion:
  """The modules that exist nowhere else, in our own layout."""
  config = own.config(ldrm, patches, part.shapes)
  return Conversion(config, own.NAME, _TORCH, part.specs, lambda path: [part.read(path)])
