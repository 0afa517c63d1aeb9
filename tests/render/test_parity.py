"""Both backends against gsplat's torch functions: values, and gradients to every input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.render import BACKENDS, render
from tests.render import scenes

pytest.importorskip("torch")
pytest.importorskip("gsplat")
from tests.render import gsplat_oracle  # noqa: E402

pytestmark = pytest.mark.parity

BACKGROUND = (0.2, 0.5, 0.7)


def ordinary():
  return scenes.gaussians()


def nothing_visible():
  scene = scenes.gaussians()
  return dataclasses.replace(scene, means=scene.means * jnp.asarray([[1.0, 1.0, -1.0]]))


def some_behind_or_beside():
  means = [[0, 0, -2], [0, 0, 0.005], [0.1, 0, 0.02], [9, 0, 3], [0, -7, 2], [2.4, 1.5, 3]]
  return scenes.change(scenes.gaussians(), means=means)


def giant():
  """One wide faint Gaussian over all, and one as thin as a needle."""
  rows = {"scales": [[30, 20, 25], [3, 1e-5, 1e-5]], "opacities": [0.3, 0.9]}
  return scenes.change(scenes.gaussians(), means=[[0.1, 0.2, 3], [0, 0, 2.5]], **rows)


def free_slots():
  return scenes.change(scenes.gaussians(), opacities=np.zeros(30))


def opaque_stack():
  """Full opacity and overlap everywhere: the cap on alpha, and pixels that finish early."""
  scene = scenes.gaussians()
  wide = dataclasses.replace(scene, scales=scene.scales * 5)
  return scenes.change(wide, opacities=np.where(np.arange(48) % 2, 0.97, 1.0))


def degree_0():
  return scenes.gaussians(coefficients=1)


CASES = [ordinary, nothing_visible, some_behind_or_beside, giant, free_slots, opaque_stack]
# Other shapes are another compilation, and the colours are the same code in both backends.
CASES = [*((case, backend) for backend in BACKENDS for case in CASES), (degree_0, "tiled")]
# What the render call or the camera can ask for.
MODES = {"antialiased": ("pinhole", True), "orthographic": ("orthographic", False)}


@functools.partial(jax.jit, static_argnums=(0, 4))
def value_and_gradients(backend, scene, cameras, cotangents, antialiased=False):
  def loss(scene, poses):
    posed = dataclasses.replace(cameras, world_from_camera=poses)
    drawn = render(scene, posed, backend=backend, background=BACKGROUND, antialiased=antialiased)
    outputs = (drawn.image, drawn.depth, drawn.alpha)
    return sum(jnp.sum(x * w) for x, w in zip(outputs, cotangents)), outputs

  gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    scene, cameras.world_from_camera
  )
  named = {name: getattr(gradients[0], name) for name in scene.__dataclass_fields__}
  return outputs, {**named, "world_from_camera": gradients[1]}


@pytest.mark.parametrize("case,backend", CASES, ids=lambda x: getattr(x, "__name__", x))
def test_matches_gsplat(case, backend):
  check(
    backend,
    case(),
    scenes.cameras(views=2),
    visible=case is not nothing_visible,
    loose=(case, backend) == (opaque_stack, "cuda"),
  )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_modes_match_gsplat(backend, mode):
  model, antialiased = MODES[mode]
  cameras = scenes.cameras(views=2, model=model)
  check(backend, some_behind_or_beside(), cameras, antialiased=antialiased)


def check(backend, scene, cameras, *, visible=True, loose=False, antialiased=False):
  random = np.random.default_rng(1)
  shape = (2, cameras.height, cameras.width)
  cotangents = [random.normal(size=s).astype(np.float32) for s in ((*shape, 3), shape, shape)]
  expected, expected_gradients = gsplat_oracle.value_and_gradients(
    scene, cameras, BACKGROUND, cotangents, antialiased=antialiased
  )
  actual, gradients = value_and_gradients(backend, scene, cameras, cotangents, antialiased)
  assert expected[2].any() == visible
  for x, y in zip(actual, expected):
    # float32 against float64: depths of a few metres, colours around 1.
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
  # float32 against float64, through two divisions by depth and one by the determinant.
  tolerance = 5e-5
  if loose:
    # gsplat's backward pass takes a pixel's transmittance, down to 1e-4, from 1 - alpha.
    tolerance = 3e-4
  for name, y in expected_gradients.items():
    error = np.linalg.norm(gradients[name] - y)
    assert error <= tolerance * np.linalg.norm(y) + 1e-6, name
