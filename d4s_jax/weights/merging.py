"""Adapters added to the weights of their transformer, tensor by tensor.

The sum is made in float32 and rounded once to the type of the weights. In bfloat16, whose steps are
a 256th to a 128th of the number, what the adapter adds to a weight is lost where it is below half a
step; a merged model computes what one with its adapter beside it does up to that rounding.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from d4s_jax.formats import parts
from d4s_jax.weights import adapters, components
from d4s_jax.weights.folders import Job
from d4s_jax.weights.parts import Conversion, check_tensors
from d4s_jax.weights.rules import Pair, pairs


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter in memory.

  Attributes:
    arrays: its parameters in our layout by path, float32.
    scale: factor on what it adds.
    kind: the PyTorch class of its transformer.
  """

  arrays: Mapping[str, np.ndarray]
  scale: float
  kind: str

  @property
  def kernels(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the kernels that it is for, by path."""
    layers = [path.removesuffix("down") for path in self.arrays if path.endswith("/down")]
    return {
      f"{x}kernel": (*self.arrays[f"{x}down"].shape[:-1], self.arrays[f"{x}up"].shape[-1])
      for x in layers
    }

  def change(self, path: str, row: int | None) -> np.ndarray:
    """What it adds to a kernel, or to one row of a stack of them: [in, out]."""
    layer = path.removesuffix("kernel")
    down, up = self.arrays[f"{layer}down"], self.arrays[f"{layer}up"]
    return self.scale * (down @ up if row is None else down[row] @ up[row])


def read(folder: pathlib.Path) -> Adapter:
  """An adapter in our layout.

  Raises:
    ValueError: there is none, or it is damaged.
  """
  if adapters.is_adapter(folder):
    # Checks all of it.
    adapters.to_torch(folder)
    description, stored = parts.open_part(folder, adapters.PART)
    arrays = {path: parts.as_float32(stored, path) for path in stored.specs}
    broken = sorted(path for path, values in arrays.items() if not np.isfinite(values).all())
    if broken:
      raise ValueError(
        f"{folder} holds numbers that are not finite, in {', '.join(broken):.200}; merging would"
        " spread them. Expected an adapter that trained well."
      )
    kind = str(description.published["_class_name"])
    return Adapter(arrays, description.fields["scale"], kind)
  kind = "is no folder" if not folder.is_dir() else "holds no adapter"
  raise ValueError(
    f"{folder}, which is to be merged, {kind}; expected what d4s_jax.convert --format=flax made of"
    " an adapter (LoRA). That of a run is merged when the run leaves: --from=RUN --merge=RUN."
  )


def merge(job: Job, adapter: Adapter) -> Job:
  """The conversion with the adapter added to the one transformer in it.

  Raises:
    ValueError: there is no transformer, or the adapter is of another one.
  """
  found = [name for name, model in job.models.items() if _published(model) is not None]
  if len(found) != 1:
    raise ValueError(
      f"An adapter is merged into one transformer, and there are {len(found)}; name its folder."
    )
  return dataclasses.replace(
    job, models={**job.models, found[0]: _merge(job.models[found[0]], adapter)}
  )


def _published(model: Conversion) -> Mapping | None:
  """The published config.json of a transformer, None for other models."""
  config = model.config
  if parts.is_description(config):
    # That of an adapter names its transformer.
    config = config["published"] if config["part"] == "transformer" else {}
  component = components.COMPONENTS.get(str(config.get("_class_name")))
  return config if component and component.part == "transformer" else None


def _merge(model: Conversion, adapter: Adapter) -> Conversion:
  config = _published(model)
  assert config is not None
  ours = parts.is_description(model.config)
  kernels = adapter.kernels
  component = components.of(config)
  if adapter.kind != config["_class_name"]:
    raise ValueError(
      f"The adapter is for a {adapter.kind}, the transformer is a {config['_class_name']}: name"
      " with --merge an adapter that was trained on this one."
    )
  depth = component.fields(config)["depth"]
  other = {x[0] for path, x in kernels.items() if path.startswith("blocks/") and x[0] != depth}
  if other:
    raise ValueError(f"The adapter has {min(other)} blocks, the transformer {depth}.")
  # In ours the pieces of a kernel are its rows, in PyTorch each row is a tensor.
  places: dict[str, list[Pair]] = collections.defaultdict(list)
  try:
    for pair in pairs(component.rules, kernels):
      places[pair.flax if ours else pair.torch].append(pair)
  except LookupError as error:
    raise ValueError(f"The adapter is for another transformer ({error}).") from error
  expected = {
    name: kernels[found[0].flax] if ours else found[0].torch_shape for name, found in places.items()
  }
  touched = {name: spec for name, spec in model.specs.items() if name in expected}
  check_tensors("The transformer", expected, touched, "the adapter")
  parts.check_floats("The transformer", touched)

  def pieces(name: str) -> Iterator[np.ndarray]:
    for piece, pair in zip(model.pieces(name), places[name]):
      change = adapter.change(pair.flax, pair.row)
      yield _add(piece, change if ours else pair.to_torch(change), model.specs[name].dtype)

  return dataclasses.replace(
    model, pieces=lambda name: pieces(name) if name in expected else model.pieces(name)
  )


def _add(piece: np.ndarray, change: np.ndarray, dtype: str) -> np.ndarray:
  """A sum of stored numbers, in bits or as they are, and float32 ones, in their type and bits."""
  kind = jnp.dtype(parts.FLOATS[dtype])
  wide = np.result_type(np.float32, np.float64 if dtype == "F64" else np.float32)
  return (piece.view(kind).astype(wide) + change).astype(kind).view(f"u{kind.itemsize}")
