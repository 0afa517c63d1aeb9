"""Tables of names: which tensor of a PyTorch model is which parameter of ours, in which layout.

A table is a sequence of rules. Both directions are derived from it, and so is the list of tensors
that must be there: from the shapes of our parameters, each of which has exactly one rule.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from einops import rearrange

# In a PyTorch name alone, the number of a block: ours lie stacked along a first axis.
LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Rule:
  """A tensor of each side.

  Attributes:
    torch: name in PyTorch. `{layer}` is the number of a block that is stacked in ours; other words
      in braces stand for numbers that both names have.
    flax: path of our parameter.
    layout: what einops does to the one to get the other (of one block), "torch -> flax"; empty for
      nothing.
  """

  torch: str
  flax: str
  layout: str = ""


@dataclasses.dataclass(frozen=True)
class Pair:
  """One tensor of a PyTorch model and its counterpart, a parameter of ours or a row of one.

  Attributes:
    torch: name in PyTorch.
    torch_shape: shape in PyTorch.
    flax: path of our parameter.
    row: along the first axis of our parameter; None for all of it.
    layout: see `Rule`.
  """

  torch: str
  torch_shape: tuple[int, ...]
  flax: str
  row: int | None
  layout: str

  def to_flax(self, x: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours, as a view where NumPy has one."""
    return rearrange(x, self.layout) if self.layout else x

  def to_torch(self, x: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's, as a view where NumPy has one."""
    return _inverse(x, self.layout)


def dense(torch: str, flax: str, bias: bool = True) -> list[Rule]:
  """The rules of a dense layer."""
  kernel = Rule(f"{torch}.weight", f"{flax}/kernel", "o i -> i o")
  return [kernel, Rule(f"{torch}.bias", f"{flax}/bias")] if bias else [kernel]


def pairs(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> list[Pair]:
  """The tensors of both sides, one by one, in the order of our paths and rows.

  Args:
    rules: the table.
    shapes: shape of each of our parameters, by path.

  Raises:
    LookupError: the table has no rule for a parameter, or several.
  """
  patterns = [(rule, re.compile(_pattern(rule.flax))) for rule in rules]
  found = []
  for path, shape in sorted(shapes.items()):
    matches = [(rule, match) for rule, pattern in patterns if (match := pattern.fullmatch(path))]
    if len(matches) != 1:
      raise LookupError(f"{len(matches)} rules for {path}; expected one.")
    rule, match = matches[0]
    stacked = LAYER in rule.torch
    # A view of a single number has the shape, and costs nothing.
    example = np.broadcast_to(np.uint8(0), shape[1:] if stacked else shape)
    torch_shape = _inverse(example, rule.layout).shape
    for row in range(shape[0]) if stacked else [None]:
      name = rule.torch.format(layer=row, **match.groupdict())
      found.append(Pair(name, torch_shape, path, row, rule.layout))
  return found


def _inverse(x: np.ndarray, layout: str) -> np.ndarray:
  if not layout:
    return x
  torch, flax = layout.split(" -> ")
  return rearrange(x, f"{flax} -> {torch}")


def _pattern(path: str) -> str:
  """A path with numbers in braces as a regular expression."""
  return re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(path))
