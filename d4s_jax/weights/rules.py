"""Tables of names: which tensor of a PyTorch model is which parameter of ours, in which layout.

A table is a sequence of rules. Both directions are derived from it, and so is the list of tensors
that must be there: from the shapes of our parameters, each of which has exactly one rule.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from einops import rearrange

# Numbers a parameter: six times the largest published one, a stack of 40 layers.
_MOST_NUMBERS = 2**34

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
    lengths: of axes of ours. A rule is for those parameters alone that have them, and 1 where the
      layout says 1: so models that store a parameter in different ways share a table.
  """

  torch: str
  flax: str
  layout: str = ""
  lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def fits(self, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of ours (one block of it) of this shape is meant."""
    axes = _axes(self.layout)
    wanted = [1 if axis == "1" else self.lengths.get(axis) for axis in axes]
    return not axes or (
      len(axes) == len(shape)
      and all(length in (None, size) for length, size in zip(wanted, shape, strict=True))
    )


@dataclasses.dataclass(frozen=True)
class Pair:
  """One tensor of a PyTorch model and its counterpart, a parameter of ours or a row of one.

  Attributes:
    torch: name in PyTorch.
    torch_shape: shape in PyTorch.
    flax: path of our parameter.
    row: along the first axis of our parameter; None for all of it.
    layout: see `Rule`.
    lengths: of all axes of ours that have a name in `layout`.
  """

  torch: str
  torch_shape: tuple[int, ...]
  flax: str
  row: int | None
  layout: str
  lengths: Mapping[str, int]

  def to_flax(self, x: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours, as a view where NumPy has one."""
    return rearrange(x, self.layout, **self.lengths) if self.layout else x

  def to_torch(self, x: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's, as a view where NumPy has one."""
    return _inverse(x, self.layout)


def dense(torch: str, flax: str, bias: bool = True) -> list[Rule]:
  """The rules of a dense layer."""
  kernel = Rule(f"{torch}.weight", f"{flax}/kernel", "o i -> i o")
  return [kernel, Rule(f"{torch}.bias", f"{flax}/bias")] if bias else [kernel]


def norm(torch: str, flax: str) -> list[Rule]:
  """The rules of a normalisation with a learnt scale and bias."""
  return [Rule(f"{torch}.weight", f"{flax}/scale"), Rule(f"{torch}.bias", f"{flax}/bias")]


def convolution(torch: str, flax: str, layout: str = "o i t r s -> t r s i o") -> list[Rule]:
  """The rules of a convolution, causal in time unless `layout` says else."""
  return [Rule(f"{torch}.weight", f"{flax}/kernel", layout), Rule(f"{torch}.bias", f"{flax}/bias")]


def pairs(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> list[Pair]:
  """The tensors of both sides, one by one, in the order of our paths and rows.

  Args:
    rules: the table.
    shapes: shape of each of our parameters, by path.

  Raises:
    LookupError: the table has no rule for a parameter, or several.
    ValueError: a parameter is larger than any of a real model.
  """
  patterns = [(rule, re.compile(_pattern(rule.flax))) for rule in rules]
  found = []
  for path, shape in sorted(shapes.items()):
    if math.prod(shape) > _MOST_NUMBERS:
      raise ValueError(f"{path} would have {list(shape)} numbers; expected at most {_MOST_NUMBERS}")
    matches = [
      (rule, match)
      for rule, pattern in patterns
      if (match := pattern.fullmatch(path)) and rule.fits(_of_block(rule, shape))
    ]
    if len(matches) != 1:
      raise LookupError(f"{len(matches)} rules for {path}; expected one.")
    rule, match = matches[0]
    block = _of_block(rule, shape)
    # A view of a single number has the shape, and costs nothing.
    torch_shape = _inverse(np.broadcast_to(np.uint8(0), block), rule.layout).shape
    lengths = {axis: n for axis, n in zip(_axes(rule.layout), block) if axis != "1"}
    for row in [None] if block is shape else range(shape[0]):
      name = rule.torch.format(layer=row, **match.groupdict())
      found.append(Pair(name, torch_shape, path, row, rule.layout, lengths))
  return found


def _of_block(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of what a single tensor of PyTorch becomes."""
  return shape[1:] if LAYER in rule.torch else shape


def _axes(layout: str) -> list[str]:
  """The axes of ours in a layout."""
  return layout.split(" -> ")[-1].split()


def _inverse(x: np.ndarray, layout: str) -> np.ndarray:
  if not layout:
    return x
  torch, flax = layout.split(" -> ")
  return rearrange(x, f"{flax} -> {torch}")


def _pattern(path: str) -> str:
  """A path with numbers in braces as a regular expression."""
  return re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(path))
