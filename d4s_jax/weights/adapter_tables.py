"""Which matrices an adapter has, from the table of the transformer that it belongs to.

A layer that can have an adapter is a dense one: its rule turns "o i" into "i o". It is named
"blocks.0.ffn.net.2" in PyTorch and "blocks/mlp_out" in ours, and its kernel's `Pair` stands for it.
"""

import collections
import re
from collections.abc import Mapping

from d4s_jax.formats.tensors import Spec
from d4s_jax.weights.adapter_styles import Style
from d4s_jax.weights.components import COMPONENTS, Component
from d4s_jax.weights.configs import DEEP
from d4s_jax.weights.rules import LAYER, Pair

TRANSFORMERS = {name: x for name, x in COMPONENTS.items() if x.part == "transformer"}
_DENSE = "o i -> i o"


def rows(layers: set[str], component: Component) -> dict[str, tuple[str, int | None]]:
  """For each of the layers that the transformer has: path of our kernel, and the row in it."""
  found = {}
  for rule in component.rules:
    if rule.layout != _DENSE:
      continue
    pattern = re.escape(rule.torch.removesuffix(".weight")).replace(re.escape(LAYER), r"(\d{1,4})")
    for layer in layers:
      if match := re.fullmatch(pattern, layer):
        row = int(match[1]) if match.groups() else None
        if row is None or row < DEEP:
          found[layer] = rule.flax, row
  return found


def kernels(specs: Mapping[str, Spec], component: Component) -> dict[str, tuple[int, ...]]:
  """The shapes of the kernels that an adapter in our layout is for."""
  layers = {
    rule.flax.removesuffix("/kernel"): LAYER in rule.torch
    for rule in component.rules
    if rule.layout == _DENSE
  }
  known = {
    layer: [specs[f"{layer}/{end}"].shape for end in ("down", "up") if f"{layer}/{end}" in specs]
    for layer in layers
  }
  known = {x: y for x, y in known.items() if y and all(len(z) == 2 + layers[x] for z in y)}
  depth = commonest([shapes[0][0] for layer, shapes in known.items() if layers[layer]])
  if not 0 < depth < DEEP:
    raise ValueError(f"An adapter of {depth} blocks; expected 1 to {DEEP - 1}.")
  return {
    f"{layer}/kernel": (*([depth] if layers[layer] else []), shapes[0][-2], shapes[-1][-1])
    for layer, shapes in known.items()
  }


def our_shapes(kernels: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, tuple[int, ...]]:
  """The shapes of an adapter in our layout."""
  shapes = {}
  for path, (*stack, before, after) in kernels.items():
    layer = path.removesuffix("kernel")
    shapes[f"{layer}down"] = (*stack, before, rank)
    shapes[f"{layer}up"] = (*stack, rank, after)
  return shapes


def published_shapes(table: list[Pair], style: Style, rank: int) -> dict[str, tuple[int, ...]]:
  """The shapes of a published adapter."""
  shapes: dict[str, tuple[int, ...]] = {}
  for pair in table:
    after, before = pair.torch_shape
    shapes |= zip(style.names(layer_name(pair)), ((rank, before), (after, rank)))
  return shapes


def layer_name(pair: Pair) -> str:
  """The name of a layer in PyTorch, of its kernel's pair."""
  return pair.torch.removesuffix(".weight")


def our_path(pair: Pair, end: str) -> str:
  """The path of a parameter of a layer's adapter: `end` is "down" or "up"."""
  return pair.flax.removesuffix("kernel") + end


def commonest(values: list[int]) -> int:
  """What most of them are, so that the others are reported; 1 of none."""
  return collections.Counter(sorted(values, reverse=True)).most_common(1)[0][0] if values else 1
