"""Checkpoints as inference takes them: the models they describe, and their parts one at a time.

A training run and a folder that `d4s_jax.convert` made are both opened here. A part is read when it
is asked for, cut over all devices, its matrices in half precision where that is what they were
stored in or are computed with. So a model needs the memory of its largest part, not of all.
"""

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from d4s_jax.config import base
from d4s_jax.formats import parts as parts_on_disk
from d4s_jax.formats import schedulers, tokenizer_files
from d4s_jax.models import shipped
from d4s_jax.models.adapter import ADAPTER
from d4s_jax.models.published import published
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, run_folder, sharding
from d4s_jax.training.places import Place, place

# Where nothing says how fast a video is: that of `tiny`'s clips.
_FPS = 8
# Denoising steps of all published pipelines.
_STEPS = 50
# Bytes that are hashed at a time.
_PIECE = 2**24
# Paths whose computation is in float32 whatever the compute dtype is.
_PRECISE = re.compile(r"(^|/)time/")
_HALF = (jnp.bfloat16, jnp.float16)

# Called with what is being read, around the reading.
Report = Callable[[str], AbstractContextManager[None]]


class Parts(Mapping[str, Any]):
  """The parts of the parameters by name; each is read from disk whenever it is asked for."""

  def __init__(self, names: tuple[str, ...], read: Callable[[str], Any]):
    self._names, self._read = names, read

  def __getitem__(self, name: str) -> Any:
    if name not in self._names:
      raise KeyError(name)
    return self._read(name)

  def __contains__(self, name: object) -> bool:
    return name in self._names

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


@dataclasses.dataclass(frozen=True)
class Trained:
  """A checkpoint that was opened; no parameters are in memory.

  Attributes:
    config: a run's configuration; of converted weights, `model`, `clip` and `sampling` of one.
    system: the models.
    parts: the parameters.
    name: where they come from, for provenance.
    reconstructs: whether its LDRM was trained, so that it makes scenes and not only videos.
    fps: frames a second of its videos.
    files: the files of its weights.
    note: what people should know who start a video with a photograph; may be empty.
  """

  config: dict[str, Any]
  system: System
  parts: Mapping[str, Any]
  name: str
  reconstructs: bool
  fps: int
  files: tuple[Place, ...]
  note: str = ""

  def digest(self, report: Report) -> str:
    """SHA-256 of the files of the weights: of a list of their own digests, in order of names."""
    with report("hash the weights"):
      each = sorted((file.name, _digest(file)) for file in self.files)
    return hashlib.sha256("\n".join(f"{name} {x}" for name, x in each).encode()).hexdigest()


def open_checkpoint(origin: str | pathlib.Path, report: Report) -> Trained:
  """Opens the shipped weights, a training run, or a pipeline that `d4s_jax.convert` made.

  Args:
    origin: "shipped", or the folder of either of the others.
    report: is told what is read, when it is.

  Raises:
    ValueError: the folder holds neither, or is damaged.
  """
  if origin == shipped.ORIGIN:
    return _of_package(report)
  folder = place(origin)
  if checkpoint.is_run(folder) or not folder.is_dir():
    return _of_run(folder, report)
  if parts_on_disk.is_published(folder):
    raise ValueError(parts_on_disk.unconverted(folder))
  if (folder / "model_index.json").is_file():
    return _of_pipeline(folder, report)
  if (folder / parts_on_disk.CONFIG).is_file():
    config = parts_on_disk.read_config(folder)
    if parts_on_disk.is_description(config):
      raise ValueError(
        f"{folder} is a single part, the {config.get('part')!r:.40}; expected the folder of the"
        " pipeline that it lies in, or of a run."
      )
  elif parts_on_disk.find(folder, parts_on_disk.LDRM):
    raise ValueError(
      f"{folder} has the weights of a run and not its settings; expected the run itself. Another"
      " run starts from them with --config.init."
    )
  return _of_run(folder, report)


def sampling(config: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
  """A checkpoint's settings of sampling, and those that were asked for in their place.

  Args:
    config: of the checkpoint.
    asked: settings by name, None for the checkpoint's own; steps of `reuse` may be text.

  Returns:
    The arguments of `Pipeline`, and what people should know about them; it may be empty.

  Raises:
    ValueError: there is no such setting.
  """
  own = config["sampling"]
  asked = {name: x for name, x in asked.items() if x is not None}
  # Checkpoints may lack the last two.
  known = dict.fromkeys((*own, "negative_prompt", "reuse"))
  unknown = sorted(set(asked) - set(known))
  if unknown:
    raise ValueError(
      f"Unknown settings of sampling {unknown}; expected some of {', '.join(known)}."
    )
  settings = own | asked
  reuse, given = settings.get("reuse", ()), "reuse" in asked
  if reuse and not given and settings["steps"] != own["steps"]:
    return settings | {"reuse": ()}, (
      f"note: the checkpoint's steps that reuse features, {list(reuse)}, are of runs of"
      f" {own['steps']} steps; none of these {settings['steps']} does."
    )
  numbers = [int(x) if isinstance(x, str) and x.strip().isdecimal() else x for x in reuse]
  return settings | {"reuse": numbers}, ""


def _of_package(report: Report) -> Trained:
  config = base("tiny").to_dict()
  system = System.build(config["model"])
  abstract = system.abstract()

  def read(name: str) -> Any:
    with report(f"read the shipped {name}"):
      return jax.tree.map(
        lambda x, like: jax.device_put(x.astype(like.dtype), like.sharding),
        shipped.load("tiny", name, abstract[name]),
        _here(system, name),
      )

  files = tuple(shipped.path("tiny", name) for name in abstract)
  return Trained(config, system, Parts(tuple(abstract), read), "shipped tiny", True, _FPS, files)


def _of_run(folder: Place, report: Report) -> Trained:
  config, system = run_folder.read_system(folder)
  step = checkpoint.latest_step(folder)

  def read(name: str) -> Any:
    with report(f"read the {name} of {folder}"):
      return checkpoint.read_model(folder, {name: _here(system, name)})[0][name]

  # The diffusion stage leaves the LDRM as it found it.
  reconstructs = config.get("stage") in ("static", "dynamic", "joint") or bool(
    config.get("init", {}).get("ldrm")
  )
  parts = Parts(tuple(system.abstract()), read)
  name = f"{folder.resolve().name}, step {step}"
  files = tuple(x for x in checkpoint.step_place(folder, step).rglob("*") if x.is_file())
  return Trained(config, system, parts, name, reconstructs, _FPS, files)


def _of_pipeline(folder: pathlib.Path, report: Report) -> Trained:
  if (folder / "transformer_2").is_dir():
    raise ValueError(
      f"{folder} has two transformers, one for each half of the noise levels, as Wan2.2-A14B: such"
      " pipelines convert there and back, but generate nothing here. Expected a pipeline with one"
      " (README, published video models)."
    )
  opened = {}
  for name in (x for x in parts_on_disk.PARTS if x != parts_on_disk.LDRM):
    place = parts_on_disk.find(folder, name)
    if place is not None:
      opened[name] = place, *parts_on_disk.open_part(place, name)
  transformer = opened["transformer"][1].published if "transformer" in opened else {}
  family = published(transformer)
  if "adapter" in opened:
    raise ValueError(
      f"{folder} has an adapter beside its transformer; d4s_jax.convert --merge adds it to that."
    )
  needed = ["transformer", "autoencoder", "text_encoder"]
  needed += ["image_encoder"] if transformer.get("image_dim") is not None else []
  missing = [name for name in needed if name not in opened]
  if missing or family is None:
    raise ValueError(
      f"{folder} is no pipeline in our layout ({', '.join(missing) or 'transformer'} is missing or"
      " of another kind); expected what d4s_jax.convert --format=flax made of a whole pipeline."
    )
  model = base("wan1.3b").model.to_dict()
  model["backbone"] = {
    "family": family.family,
    "text_length": family.text_length,
    "tokenizer": "tokenizer",
    **{name: dict(description.fields) for name, (_, description, _) in opened.items()},
  }
  model["backbone"]["autoencoder"]["chunk"] = family.chunk
  sampling = {"steps": _STEPS, "guidance": "constant", "scale": family.scale}
  model["backbone"]["schedule"], sampling["solver"] = schedulers.read(folder / "scheduler")
  files = tokenizer_files.read(folder / "tokenizer")
  try:
    system = System.build(model, files)
  except (KeyError, TypeError, AttributeError) as error:
    kinds = ", ".join(parts_on_disk.class_name(x.published) for _, x, _ in opened.values())
    raise ValueError(
      f"The parts of {folder} make no model ({error}): {kinds}; expected those of one pipeline."
    ) from error
  for name, (place, description, stored) in opened.items():
    initialize.check_same_model(
      *(place, name, system, description, stored),
      remedy="it differs from the published models of its family, and generates nothing here",
    )

  def read(name: str) -> Any:
    place, _, stored = opened[name]
    layout: Any = traverse_util.flatten_dict(_here(system, name), sep="/")

    def put(path: str, like: jax.ShapeDtypeStruct) -> jax.Array:
      values = parts_on_disk.numbers(stored, path)
      half = values.dtype in _HALF and _may_be_half(path, like)
      return jax.device_put(values if half else values.astype(like.dtype), like.sharding)

    with report(f"read {place}"):
      flat = {path: put(path, like) for path, like in layout.items() if path in stored.specs}
      return traverse_util.unflatten_dict(flat, sep="/")

  frames, height, width = family.size
  config = {
    "model": model,
    "clip": {"frames": frames, "height": height, "width": width},
    "sampling": sampling,
  }
  parts = Parts(tuple(opened), read)
  name = folder.resolve().name
  files = tuple(x for place, *_ in opened.values() for x in place.glob("*.safetensors"))
  return Trained(config, system, parts, name, False, family.fps, files, family.note)


def _digest(file: Place) -> str:
  """SHA-256 of one file, read piece by piece."""
  found = hashlib.sha256()
  with file.open("rb") as opened:
    while piece := opened.read(_PIECE):
      found.update(piece)
  return found.hexdigest()


def _here(system: System, name: str) -> Any:
  """The `layout` on the devices of this process."""
  stats = jax.devices()[0].memory_stats() or {}
  # A CPU doesn't say how much it has.
  return layout(system, name, jax.devices(), stats.get("bytes_limit", math.inf))


def layout(system: System, name: str, devices: Sequence[Any], memory: float) -> Any:
  """Shape, type and sharding of each parameter of a part.

  Every part is cut over all devices, but of the transformer and its adapter each half of the
  devices has a copy, for a pass of guidance of its own (`pipeline.passes`), if that leaves half of
  their memory free.

  Args:
    system: the models.
    name: of the part.
    devices: what it is cut over.
    memory: bytes that each of them has.
  """
  boxed, abstract = system.boxed()[name], system.abstract()[name]
  # What becomes a Gaussian is computed in float32, and adapters are small.
  dtype = getattr(getattr(system.backbone, name, None), "dtype", jnp.float32)

  def describe(path: Any, x: Any) -> jax.ShapeDtypeStruct:
    joined = "/".join(entry.key for entry in path)
    half = dtype in _HALF and _may_be_half(joined, x)
    return jax.ShapeDtypeStruct(x.shape, dtype if half else x.dtype)

  described = jax.tree_util.tree_map_with_path(describe, abstract)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(described))
  twice = len(devices) % 2 == 0 and size / (len(devices) // 2) <= memory / 2
  passes = 2 if twice and name in ("transformer", ADAPTER) else 1
  mesh = sharding.generation_mesh(devices, passes)
  cuts = sharding.parameter_shardings(mesh, boxed, sharding.generation_rules(mesh))
  return jax.tree.map(
    lambda x, cut: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut), described, cuts
  )


def _may_be_half(path: str, like: Any) -> bool:
  """Whether a parameter is a matrix that is only ever used in the compute dtype."""
  return path.endswith(("kernel", "embedding")) and like.ndim > 1 and not _PRECISE.search(path)
