"""Floating-point operations of a function, counted from its jaxpr; loops are multiplied out.

Counted are products of matrices and convolutions, two operations for each multiplication and
addition. Everything else together is small beside them. Kernels are opaque: trace what has them in
the form it has on a CPU.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.extend import core


def count(function: Any, *arguments: Any) -> float:
  """Operations of one call, on all devices together; loops of unknown length count once.

  Args:
    function: traced, never run.
    *arguments: arrays, or shapes and types.
  """
  return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: core.Jaxpr) -> float:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
  name, parameters = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = parameters["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    out_axis = parameters["dimension_numbers"].rhs_spec[0]
    each = math.prod(kernel) / kernel[out_axis]
    # What is diluted with zeros, in the gradient of a stride, is not multiplied.
    dilution = math.prod(parameters["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * each / dilution
  if name == "cond":
    return max(_of(branch.jaxpr) for branch in parameters["branches"])
  times = parameters["length"] if name == "scan" else 1
  if name == "shard_map":
    times = parameters["mesh"].size
  return times * sum(_of(inner) for inner in _inner(parameters.values()))


def _inner(values: Iterable[Any]) -> Iterable[core.Jaxpr]:
  for value in values:
    if isinstance(value, core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
      yield value
    elif isinstance(value, tuple | list):
      yield from _inner(value)
