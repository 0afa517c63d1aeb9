"""Per-scene optimisation finds what changed in a scene, moving things among it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from d4s_jax.geometry import harmonics
from d4s_jax.geometry.deformation import deform, identity
from d4s_jax.render import render
from d4s_jax.training.refinement import refine
from d4s_jax.types import Cameras, DynamicGaussians, Views

FRAMES, SIDE, COUNT = 4, 24, 40
STEPS = 150


def scene() -> DynamicGaussians:
  rng = np.random.default_rng(0)
  means = rng.uniform(-1, 1, (COUNT, 3)) + (0, 0, 4)
  still = identity(FRAMES, COUNT)
  ramp = jnp.linspace(0, 0.3, FRAMES)[:, None]
  return DynamicGaussians(
    means=jnp.asarray(means, jnp.float32),
    quaternions=jnp.tile(jnp.array([1.0, 0, 0, 0]), (COUNT, 1)),
    raw_scales=jnp.full((COUNT, 3), 1.0),
    footprints=jnp.full(COUNT, 0.1),
    opacities=jnp.full(COUNT, 0.7),
    harmonics=harmonics.from_rgb(jnp.asarray(rng.random((COUNT, 3)), jnp.float32)),
    times=jnp.linspace(0, 1, FRAMES),
    # Half of them go to the right.
    deformation=still.at[:, : COUNT // 2, 0].add(ramp),
  )


def pictures(dynamic: DynamicGaussians) -> Views:
  lens = jnp.array([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1.0]])
  cameras = Cameras(
    world_from_camera=jnp.tile(jnp.eye(4), (FRAMES, 1, 1)),
    intrinsics=jnp.tile(lens, (FRAMES, 1, 1)),
    height=SIDE,
    width=SIDE,
  )
  rendering = render(deform(dynamic), cameras)
  return Views(images=rendering.image, depth=rendering.depth, cameras=cameras, times=dynamic.times)


def test_colours_and_motion_are_found():
  truth = scene()
  views = pictures(truth)
  start = dataclasses.replace(
    truth, harmonics=0.5 * truth.harmonics, deformation=identity(FRAMES, COUNT)
  )
  asked = []

  def proceed(number):
    asked.append(number)
    return number < STEPS

  fitted = refine(start, views, extent=4.0, key=jax.random.key(0), proceed=proceed)
  assert asked == list(range(STEPS + 1))
  errors = [float(jnp.mean(jnp.abs(pictures(x).images - views.images))) for x in (start, fitted)]
  assert errors[1] < 0.3 * errors[0]
  went = np.asarray(fitted.deformation[-1, :, 0] - fitted.deformation[0, :, 0])
  assert went[: COUNT // 2].mean() > went[COUNT // 2 :].mean() + 0.03
  np.testing.assert_allclose(jnp.linalg.norm(fitted.deformation[..., 3:7], axis=-1), 1, atol=1e-5)
  np.testing.assert_allclose(jnp.linalg.norm(fitted.quaternions, axis=-1), 1, atol=1e-5)
