"""Low-rank adapters (LoRA): a transformer is tuned by small matrices beside its frozen kernels.

A dense layer with kernel W computes x W + scale * (x down) up, with `down` [in, rank] and `up`
[rank, out]; `up` starts at zero, so that a new adapter changes nothing. The adapter is a part of
the parameters of its own, "adapter", in which "blocks/mlp_in/down" and ".../up" belong to
"blocks/mlp_in/kernel" of the transformer and lie stacked over the blocks like it.

Why in the layer, and not as one kernel W + scale * down up formed before the step: that takes
another copy of all kernels, and its gradient one more, before it shrinks to those of `down` and
`up`: 28 GB each for Wan 14B in bfloat16. Applied to the tokens it takes `rank` numbers a token and
layer. (XLA's count for the gradient of 8 blocks of width 512, kernels of 144 MB in float32: 18 MB
beside them in this way, 288 MB in the other.)
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import PRNGKeyArray

from d4s_jax.layers.linear import FromHeads, ToHeads
from d4s_jax.layers.transformer import ADAPTER


@dataclasses.dataclass(frozen=True)
class LoRA:
  """What adapters a transformer has; the field names are configuration keys.

  Attributes:
    rank: of the matrices; 0 for no adapter.
    scale: factor on what they add, published as alpha / rank.
    targets: regular expressions; a dense layer has an adapter if one of them matches its path.
  """

  rank: int = 0
  scale: float = 1.0
  targets: tuple[str, ...] = ()

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(f"model.lora.rank is {self.rank}; expected 0 (no adapter) or more.")

  def boxed(self, key: PRNGKeyArray, transformer: Any) -> dict[str, Any]:
    """A new adapter of a transformer, in boxes that name logical axes.

    Args:
      key: of the random numbers; `down` is drawn as PEFT does, uniformly within 1 / sqrt(in).
      transformer: its parameters in boxes, as its `init` makes them.

    Raises:
      ValueError: a target is in no layer's path, or in that of another layer than a dense one.
    """
    kernels = self._kernels(transformer)
    flat = {}
    for number, (path, box) in enumerate(sorted(kernels.items())):
      *stack, before, after = box.value.shape
      *names, first, last = box.names
      limit = before**-0.5
      draw = jax.random.fold_in(key, number)
      down = jax.random.uniform(draw, (*stack, before, self.rank), minval=-limit, maxval=limit)
      up = jnp.zeros((*stack, self.rank, after))
      flat[f"{path}/down"] = nn.LogicallyPartitioned(down, (*names, first, None))
      flat[f"{path}/up"] = nn.LogicallyPartitioned(up, (*names, None, last))
    return traverse_util.unflatten_dict(flat, sep="/")

  def scaled(self, adapter: Any) -> Any:
    """The adapter as the layers take it, with `scale` in it."""

    def times(path, x):
      return x * self.scale if path[-1].key == "up" else x

    return jax.tree_util.tree_map_with_path(times, adapter)

  def _kernels(self, transformer: Any) -> dict[str, nn.LogicallyPartitioned]:
    """The boxed kernels of the targets, by the path of their layer."""
    flat: Any = traverse_util.flatten_dict(transformer, sep="/")
    layers = {
      path.removesuffix("/kernel"): box for path, box in flat.items() if path.endswith("/kernel")
    }
    idle = [x for x in self.targets if not any(re.search(x, path) for path in layers)]
    if idle or not self.targets:
      raise ValueError(
        f"model.lora.targets {idle} match no layer of the transformer; its layers are"
        f" {', '.join(sorted(layers))}."
      )
    found = {
      path: box
      for path, box in layers.items()
      if any(re.search(target, path) for target in self.targets)
    }
    other = sorted(
      path for path, box in found.items() if len(box.names) - ("layers" in box.names) != 2
    )
    if other:
      raise ValueError(f"model.lora.targets match {', '.join(other)}; expected dense layers only.")
    return found


def add_adapter(layer: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
  """Adds its adapter, if it has one, to what a dense layer returns: see `nn.intercept_methods`."""
  y, module = layer(*args, **kwargs), context.module
  dense = isinstance(module, nn.Dense | ToHeads | FromHeads) and context.method_name == "__call__"
  if not dense or not module.has_variable(ADAPTER, "down"):
    return y
  down, up = (module.get_variable(ADAPTER, name).astype(y.dtype) for name in ("down", "up"))
  x = args[0].astype(y.dtype)
  if isinstance(module, FromHeads):
    x = x.reshape(*x.shape[:2], -1)
  return y + (x @ down @ up).reshape(y.shape)
