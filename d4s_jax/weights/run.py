"""A training run out to PyTorch.

The backbone becomes models of diffusers and transformers. What exists nowhere else, the LDRM and
the conditioning on cameras, becomes safetensors beside a file that runs them on torch alone.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from d4s_jax.formats.tensors import Spec
from d4s_jax.models.adapter import ADAPTER
from d4s_jax.models.ldrm import LDRM
from d4s_jax.models.system import System
from d4s_jax.models.tokenizer import PublishedTokenizer
from d4s_jax.weights import adapters, merging
from d4s_jax.weights.components import COMPONENTS, Component
from d4s_jax.weights.folders import Job
from d4s_jax.weights.parts import Conversion
from d4s_jax.weights.rules import pairs

# Its own source travels: it needs nothing of this package.
_CODE = pathlib.Path(__file__).with_name("diff4splat.py")
_OURS = "diff4splat"
# What the code has to know of the LDRM beside the shapes of its parameters.
_FIELDS = (
  *("gaussians", "depth", "heads", "stem", "strides", "pixels_per_cell", "encoding", "canonical"),
  *("scene_scale", "initial_depth", "opacity_bias"),
)
# As in published pipelines.
_FOLDERS = {
  "transformer": "transformer",
  "autoencoder": "vae",
  "text_encoder": "text_encoder",
  "image_encoder": "image_encoder",
}
_TORCH = {"format": "pt"}


def export(system: System, params: Mapping[str, Any], merged: bool = False) -> Job:
  """What a run becomes: transformer, vae, encoders and diff4splat, in float32.

  A published tokenizer travels along as it is.

  Args:
    system: the models.
    params: all parameters, nested.
    merged: whether an adapter is added to the transformer; else it lies beside it, in adapter.
  """
  lora = system.backbone.adapter
  if merged and not lora.rank:
    raise ValueError("This run has no adapter to merge (model.lora.rank is 0).")
  flat = {part: _flat(tree) for part, tree in params.items()}
  camera = {path: x for path, x in flat["transformer"].items() if path.startswith("camera/")}
  flat["transformer"] = {path: x for path, x in flat["transformer"].items() if path not in camera}
  models = {
    folder: _published(getattr(system.backbone, part), flat[part])
    for part, folder in _FOLDERS.items()
    if part in flat
  }
  own = {f"ldrm/{path}": x for path, x in flat["ldrm"].items()} | camera
  patches = _patch_embedding(system.backbone.transformer, flat["transformer"])
  models[_OURS] = _ours(system.ldrm, own, patches)
  tokenizer = system.backbone.tokenizer
  files = tokenizer.files if isinstance(tokenizer, PublishedTokenizer) else {}
  files = {f"tokenizer/{name}": contents for name, contents in files.items()}
  job = Job(models, {f"{_OURS}/{_CODE.name}": _CODE.read_bytes()} | files)
  if merged:
    kind = models[_FOLDERS["transformer"]].config["_class_name"]
    return merging.merge(job, merging.Adapter(flat[ADAPTER], lora.scale, kind))
  if lora.rank:
    models[ADAPTER] = adapters.export(system.backbone.transformer, lora, flat[ADAPTER])
  return job


def _published(module: Any, arrays: Mapping[str, np.ndarray]) -> Conversion:
  """A part of the backbone as a model of diffusers or transformers."""
  component = _component(module)
  table = {pair.torch: pair for pair in pairs(component.rules, _shapes(arrays))}

  def pieces(name: str) -> Iterator[np.ndarray]:
    pair = table[name]
    array = arrays[pair.flax]
    yield pair.to_torch(array if pair.row is None else array[pair.row])

  specs = {name: Spec("F32", pair.torch_shape) for name, pair in table.items()}
  config = component.config(module, _shapes(arrays))
  return Conversion(config, component.stem, _TORCH, specs, pieces)


def _component(module: Any) -> Component:
  return next(x for x in COMPONENTS.values() if isinstance(module, x.module))


def _patch_embedding(transformer: Any, arrays: Mapping[str, np.ndarray]) -> str:
  """Name of the PyTorch layer whose output what cameras add is added to."""
  table = pairs(_component(transformer).rules, _shapes(arrays))
  (weight,) = (pair.torch for pair in table if pair.flax == "patch_embedding/kernel")
  return weight.removesuffix(".weight")


def _ours(ldrm: LDRM, arrays: Mapping[str, np.ndarray], patches: str) -> Conversion:
  """The modules that exist nowhere else, in our own layout."""
  specs = {path: Spec("F32", x.shape) for path, x in arrays.items()}
  config = {name: getattr(ldrm, name) for name in _FIELDS}
  config |= {"patch_embedding": patches, "parameters": _shapes(arrays)}
  return Conversion(config, _OURS, _TORCH, specs, lambda path: [arrays[path]])


def _flat(tree: Any) -> dict[str, np.ndarray]:
  flat: Any = traverse_util.flatten_dict(tree, sep="/")
  return {path: np.asarray(x, np.float32) for path, x in flat.items()}


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
  return {path: x.shape for path, x in arrays.items()}
