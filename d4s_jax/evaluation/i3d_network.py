"""I3D (Carreira and Zisserman, 2017), arranged for speed: the logits of videos.

An Inception network with kernels in time. Batch normalisation is folded into the convolutions; a 3D
convolution is the sum of 2D ones over its time taps, or one over taps side by side where there are
few channels; pointwise ones that see the same input are one matrix product; the largest of a window
is found axis by axis.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SIDE = 224
# Below this there is no output: the last pooling spans two of an eighth of the frames.
LEAST_FRAMES = 9
# Of batch normalisation, as trained.
_EPSILON = 1e-3
# With fewer channels than this, time taps are put side by side.
_FEW = 24
# Modules between two poolings, and those poolings.
_MODULES = "Mixed_3b Mixed_3c", "Mixed_4b Mixed_4c Mixed_4d Mixed_4e Mixed_4f", "Mixed_5b Mixed_5c"
_POOLS = ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))
_LOGITS = "Logits/Conv3d_0c_1x1"
# Branches of a module: pointwise ones that see its input, those after them, that of the pooling.
_FIRST = tuple(f"Branch_{i}/Conv3d_0a_1x1" for i in range(3))
_SECOND = tuple(f"Branch_{i}/Conv3d_0b_3x3" for i in (1, 2))
_POOLED = "Branch_3/Conv3d_0b_1x1"

Unit = tuple[Array, Array]


def fold(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Unit]:
  """Kernel and bias of each convolution, by path, of a tree of Sonnet's or Flax's names."""
  found = {}
  for name, each in params.items():
    if "Conv_0" not in each:
      below = fold(each, statistics[name])
      found |= {f"{name}/{path}": unit for path, unit in below.items()}
      continue
    kernel = np.asarray(each["Conv_0"]["kernel"], np.float32)
    if name == _LOGITS:
      found[name] = jnp.asarray(kernel), jnp.asarray(each["Conv_0"]["bias"])
      continue
    mean, variance = (np.ravel(statistics[name]["BatchNorm_0"][x]) for x in ("mean", "var"))
    factor = 1 / np.sqrt(variance + _EPSILON)
    bias = np.ravel(each["BatchNorm_0"]["bias"]) - mean * factor
    found[name] = jnp.asarray(kernel * factor), jnp.asarray(bias)
  return found


def logits(units: Mapping[str, Unit], videos: Float[Array, "b f h w 3"]) -> Float[Array, "b 400"]:
  """Means over time, before the softmax.

  Args:
    units: what `fold` returns.
    videos: in [-1, 1], of SIDE pixels a side and LEAST_FRAMES at least.
  """
  x = _convolve(videos, units["Conv3d_1a_7x7"], 2)
  x = _largest(x, (1, 3, 3), (1, 2, 2))
  x = _convolve(_pointwise(x, units["Conv3d_2b_1x1"]), units["Conv3d_2c_3x3"])
  for (window, strides), names in zip(_POOLS, _MODULES):
    x = _largest(x, window, strides)
    for name in names.split():
      x = _module(x, {path: units[f"{name}/{path}"] for path in (*_FIRST, *_SECOND, _POOLED)})
  x = jnp.mean(x, axis=(2, 3))
  x = jnp.mean((x[:, 1:] + x[:, :-1]) / 2, axis=1)
  kernel, bias = units[_LOGITS]
  return _add(x @ kernel[0, 0, 0], bias)


def _module(x: Array, units: Mapping[str, Unit]) -> Array:
  first = [units[name] for name in _FIRST]
  kernel, bias = (jnp.concatenate(part, axis=-1) for part in zip(*first))
  together = _pointwise(x, (kernel, bias))
  ends = np.cumsum([bias.shape[0] for _, bias in first])[:-1]
  whole, *narrow = jnp.split(together, ends, axis=-1)
  second = [_convolve(part, units[name]) for part, name in zip(narrow, _SECOND)]
  pooled = _pointwise(_largest(x, (3, 3, 3), (1, 1, 1)), units[_POOLED])
  return jnp.concatenate([whole, *second, pooled], axis=-1)


def _pointwise(x: Array, unit: Unit) -> Array:
  kernel, bias = unit
  return jax.nn.relu(_add(x @ kernel[0, 0, 0], bias))


def _convolve(x: Array, unit: Unit, stride: int = 1) -> Array:
  kernel, bias = unit
  batch, frames, taps = x.shape[0], -(-x.shape[1] // stride), kernel.shape[0]
  low, high = _same(x.shape[1], taps, stride)
  x = jnp.pad(x, ((0, 0), (low, high), *((0, 0),) * 3))
  last = (frames - 1) * stride + 1
  seen = [x[:, tap : tap + last : stride] for tap in range(taps)]
  if x.shape[-1] < _FEW:
    seen = [jnp.concatenate(seen, axis=-1)]
    kernel = jnp.concatenate(kernel, axis=2)[None]
  parts = [
    jax.lax.conv_general_dilated(
      *(jax.lax.collapse(tap, 0, 2), part, (stride, stride), "SAME"),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for tap, part in zip(seen, kernel)
  ]
  total = _add(functools.reduce(jnp.add, parts), bias)
  return jax.nn.relu(total).reshape(batch, frames, *total.shape[1:])


def _add(x: Array, bias: Array) -> Array:
  return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _largest(x: Array, window: tuple[int, ...], strides: tuple[int, ...]) -> Array:
  """The largest of each window of values that are not negative, beyond the borders 0."""
  for axis, (width, stride) in enumerate(zip(window, strides), 1):
    count, (low, high) = -(-x.shape[axis] // stride), _same(x.shape[axis], width, stride)
    padded = jnp.pad(x, [(low, high) if i == axis else (0, 0) for i in range(x.ndim)])
    last = (count - 1) * stride + 1
    starts = range(width)
    parts = [jax.lax.slice_in_dim(padded, i, i + last, stride, axis) for i in starts]
    x = functools.reduce(jnp.maximum, parts)
  return x


def _same(size: int, width: int, stride: int) -> tuple[int, int]:
  """Zeros before and after, so that every stride-th place has a window, as TensorFlow pads."""
  total = max((-(-size // stride) - 1) * stride + width - size, 0)
  return total // 2, total - total // 2
