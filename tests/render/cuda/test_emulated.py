"""The kernels and the handlers on the emulator, against `reference` and gsplat's torch code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.render import cuda, projection, render
from tests.render import scenes
from tests.render.cuda import emulator

BACKGROUND = jnp.asarray([0.2, 0.5, 0.7])
NAMES = ("image", "depth", "alpha")


@pytest.fixture(autouse=True, scope="module")
def _emulator():
  emulator.load()


def pinhole(cameras):
  return cameras


def orthographic(cameras):
  """The same cameras with parallel rays: as many pixels a metre as fit the scene."""
  lens = cameras.intrinsics.at[:, 0, 0].multiply(0.3).at[:, 1, 1].multiply(0.3)
  return dataclasses.replace(cameras, intrinsics=lens, model="orthographic")


@functools.partial(jax.jit, static_argnames=("backend", "antialiased", "blur"))
def value_and_gradients(
  scene, cameras, weights, *, backend, antialiased=False, blur=projection.BLUR
):
  """Drawing, and gradients to Gaussians, poses, intrinsics and background of a weighted sum."""

  def loss(scene, poses, lens, background):
    moved = dataclasses.replace(cameras, world_from_camera=poses, intrinsics=lens)
    drawn = render(
      *(scene, moved),
      **dict(backend=backend, background=background, antialiased=antialiased, blur=blur),
    )
    layers = [drawn.image, drawn.depth[..., None], drawn.alpha[..., None]]
    return jnp.sum(weights * jnp.concatenate(layers, -1)), drawn

  inputs = (scene, cameras.world_from_camera, cameras.intrinsics, BACKGROUND)
  gradients, drawn = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*inputs)
  named = {name: getattr(gradients[0], name) for name in scene.__dataclass_fields__}
  return drawn, {
    **named,
    "world_from_camera": gradients[1],
    "intrinsics": gradients[2],
    "background": gradients[3],
  }


def weights_for(cameras, seed=1):
  shape = (len(cameras.intrinsics), cameras.height, cameras.width, 5)
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Views, height, width, Gaussians: neither tiles nor warps come out even, or there is one of them.
# Shapes take seconds to compile, so not all of them meet all kinds of cameras.
ODD, ONE, FLAT = (3, 37, 50, 75), (1, 16, 16, 32), (2, 5, 33, 8)
CASES = {
  "odd": (ODD, pinhole, False, projection.BLUR),
  "one_tile": (ONE, pinhole, False, 2.7),
  "less_than_a_tile": (FLAT, pinhole, True, 2.7),
  "orthographic": (ODD, orthographic, True, projection.BLUR),
}


@pytest.mark.parametrize("size,project,antialiased,blur", CASES.values(), ids=CASES)
def test_matches_reference(size, project, antialiased, blur):
  views, height, width, count = size
  cameras = project(scenes.cameras(views, height=height, width=width))
  # Each view has Gaussians of its own.
  own = [scenes.gaussians(count, coefficients=4, seed=view) for view in range(views)]
  scene = jax.tree.map(lambda *x: jnp.stack(x), *own)
  inputs = (scene, cameras, weights_for(cameras))
  expected, expected_gradients = value_and_gradients(
    *inputs, backend="reference", antialiased=antialiased, blur=blur
  )
  drawn, gradients = value_and_gradients(
    *inputs, backend="cuda", antialiased=antialiased, blur=blur
  )
  assert jnp.max(expected.alpha) > 0.2
  for name in NAMES:
    # Two float32 computations.
    np.testing.assert_allclose(
      getattr(drawn, name), getattr(expected, name), rtol=2e-5, atol=2e-5, err_msg=name
    )
  for name, gradient in expected_gradients.items():
    error = np.linalg.norm(gradients[name] - gradient)
    assert error <= 1e-4 * np.linalg.norm(gradient) + 1e-6, name


@pytest.mark.parity
@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("project", [pinhole, orthographic])
def test_matches_gsplat(antialiased, project):
  pytest.importorskip("torch")
  from tests.render import gsplat_oracle

  scene, cameras = scenes.gaussians(), project(scenes.cameras(views=2))
  weights = weights_for(cameras)
  cotangents = (weights[..., :3], weights[..., 3], weights[..., 4])
  expected, expected_gradients = gsplat_oracle.value_and_gradients(
    scene, cameras, BACKGROUND, cotangents, antialiased=antialiased
  )
  drawn, gradients = value_and_gradients(
    scene, cameras, weights, backend="cuda", antialiased=antialiased
  )
  for name, value in zip(NAMES, expected):
    np.testing.assert_allclose(getattr(drawn, name), value, rtol=2e-5, atol=2e-5, err_msg=name)
  for name, gradient in expected_gradients.items():
    # float32 against float64.
    error = np.linalg.norm(gradients[name] - gradient)
    assert error <= 1e-4 * np.linalg.norm(gradient) + 1e-6, name


def test_no_gaussians():
  none = jax.tree.map(lambda x: jnp.zeros((2, 0, *x.shape[1:])), scenes.gaussians(1))
  layers, overflow = jax.jit(cuda.rasterize)(none, scenes.cameras(views=2))
  assert layers.shape == (2, scenes.HEIGHT, scenes.WIDTH, 5)
  assert not jnp.any(layers) and not jnp.any(overflow)


def test_vmap_equals_leading_axis():
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras(views=2)
  draw = functools.partial(render, backend="cuda")
  mapped = jax.jit(jax.vmap(draw, in_axes=(None, 0)))(scene, cameras)
  whole = jax.jit(draw)(scene, cameras)
  for name in NAMES:
    np.testing.assert_allclose(getattr(mapped, name), getattr(whole, name), rtol=1e-6, atol=1e-6)


def test_other_types_are_refused():
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras()
  with jax.enable_x64(True):
    double = dataclasses.replace(scene, scales=scene.scales.astype(jnp.float64))
    with pytest.raises(ValueError, match="float32 arrays; one is float64"):
      render(double, cameras, backend="cuda")


def test_more_than_the_kernels_can_count_is_refused():
  scene, cameras = scenes.gaussians(coefficients=1), scenes.cameras()
  draw = functools.partial(render, backend="cuda")
  wide = dataclasses.replace(cameras, height=2**16, width=2**13)
  with pytest.raises(ValueError, match="pixels in one call"):
    jax.eval_shape(draw, scene, wide)
  many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2**23, *x.shape[1:]), x.dtype), scene)
  large = dataclasses.replace(cameras, height=1080, width=1920)
  with pytest.raises(ValueError, match="intersections .* in one call"):
    jax.eval_shape(functools.partial(draw, capacity=2**30), many, large)
