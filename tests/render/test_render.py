"""What holds for every backend: hand-computed pixels, properties, bad numbers, bad arguments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.geometry import harmonics
from d4s_jax.render import BACKENDS, render
from d4s_jax.types import Cameras, Gaussians
from tests.render import scenes

every = pytest.mark.parametrize("backend", BACKENDS)


BLACK = jnp.zeros(3)


@functools.partial(jax.jit, static_argnames="backend")
def draw(scene, cameras, background=BLACK, *, backend="tiled"):
  return render(scene, cameras, backend=backend, background=background)


@functools.partial(jax.jit, static_argnames="backend")
def gradient(scene, poses, cameras, *, backend="tiled"):
  def loss(scene, poses):
    posed = dataclasses.replace(cameras, world_from_camera=poses)
    drawn = render(scene, posed, backend=backend)
    return jnp.sum(drawn.image**2) + jnp.sum(drawn.depth) + jnp.sum(drawn.alpha)

  return jax.grad(loss, argnums=(0, 1))(scene, poses)


def scene_and_cameras(seed=0):
  return scenes.gaussians(coefficients=1, seed=seed), scenes.cameras(views=2, seed=seed)


def assert_same(actual, expected, tolerance):
  for name in ("image", "depth", "alpha"):
    np.testing.assert_allclose(
      getattr(actual, name), getattr(expected, name), rtol=tolerance, atol=tolerance, err_msg=name
    )


@every
def test_one_gaussian_by_hand(backend):
  """Focal length 10, depth 2, deviation 0.2: (10 * 0.2 / 2)^2 + 0.3 = 1.3 square pixels."""
  scene = Gaussians(
    means=jnp.asarray([[0.1, -0.3, 2.0]]),  # at pixel (4.5, 3.5): the centre of column 4, row 3
    quaternions=jnp.asarray([[1.0, 0.0, 0.0, 0.0]]),
    scales=jnp.full((1, 3), 0.2),
    opacities=jnp.asarray([0.8]),
    harmonics=harmonics.from_rgb(jnp.asarray([[0.9, 0.4, 0.1]])),
  )
  lens = jnp.asarray([[10.0, 0, 4.0], [0, 10.0, 5.0], [0, 0, 1]])
  camera = Cameras(world_from_camera=jnp.eye(4), intrinsics=lens, height=8, width=12)
  drawn = draw(scene, camera, jnp.asarray([0.0, 1.0, 0.5]), backend=backend)
  # The slope of the ray adds s^2 times the depth variance to an axis; s is 0.05 and -0.15.
  variance_x, variance_y = 1.3 + 0.05**2, 1.3 + 0.15**2
  covariance = -0.05 * 0.15
  determinant = variance_x * variance_y - covariance**2
  dx, dy = 2.0, 1.0
  sigma = (variance_y * dx**2 + variance_x * dy**2 - 2 * covariance * dx * dy) / determinant / 2
  for (row, column), alpha in {(3, 4): 0.8, (4, 6): 0.8 * np.exp(-sigma)}.items():
    # float32 exp and a handful of operations.
    np.testing.assert_allclose(drawn.alpha[row, column], alpha, rtol=1e-6)
    colour = alpha * np.asarray([0.9, 0.4, 0.1]) + (1 - alpha) * np.asarray([0, 1, 0.5])
    np.testing.assert_allclose(drawn.image[row, column], colour, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(drawn.depth[row, column], 2.0, rtol=1e-6)
  # 0.8 exp(-r^2 / 2.6) is 1/255 at 3.7 pixels.
  assert drawn.alpha[3, 9] == 0 and drawn.depth[3, 9] == 0
  np.testing.assert_array_equal(drawn.image[3, 9], jnp.asarray([0.0, 1.0, 0.5]))


@every
@pytest.mark.parametrize("seed", range(5))
def test_stays_within_inputs(backend, seed):
  scene, cameras = scene_and_cameras(seed)
  background = jnp.asarray([0.25, 0.5, 0.75])
  drawn = draw(scene, cameras, background, backend=backend)
  assert jnp.all((drawn.alpha >= 0) & (drawn.alpha <= 1))
  assert jnp.max(drawn.alpha) > 0.5
  rgb = jnp.maximum(0, 0.5 + harmonics.C0 * scene.harmonics[:, 0])
  candidates = np.concatenate([rgb, background[None]])
  # Rounding of a sum of up to 48 weights.
  assert np.all(np.asarray(drawn.image) >= candidates.min(0) - 1e-6)
  assert np.all(np.asarray(drawn.image) <= candidates.max(0) + 1e-6)
  seen = drawn.alpha > 0
  assert jnp.all(jnp.where(seen, drawn.depth, 2) > 1)
  assert jnp.all(jnp.where(seen, 0, drawn.depth) == 0)


@every
def test_order_of_gaussians_does_not_matter(backend):
  scene, cameras = scene_and_cameras()
  shuffled = scenes.select(scene, np.random.default_rng(0).permutation(48))
  # The same sums; only the library's matrix product may group them otherwise.
  expected = draw(scene, cameras, backend=backend)
  assert_same(draw(shuffled, cameras, backend=backend), expected, 1e-6)


@every
def test_equal_depths_keep_the_order_of_the_input(backend):
  scene, cameras = scene_and_cameras()
  level = dataclasses.replace(scene, means=scene.means.at[:, 2].set(3.0))
  cameras = dataclasses.replace(cameras, world_from_camera=jnp.tile(jnp.eye(4), (2, 1, 1)))
  behind = level.means.at[:, 2].add(jnp.arange(48) * 1e-6)
  ordered = dataclasses.replace(level, means=behind)
  # Depths differ by 5e-5 at most, which moves pixels by as little.
  expected = draw(ordered, cameras, backend=backend)
  assert_same(draw(level, cameras, backend=backend), expected, 1e-3)
  backwards = draw(scenes.select(level, slice(None, None, -1)), cameras, backend=backend)
  assert jnp.max(jnp.abs(backwards.image - expected.image)) > 0.05


@every
def test_leading_axes_broadcast(backend):
  first, cameras = scene_and_cameras(0)
  second, _ = scene_and_cameras(1)
  both_scenes = jax.tree.map(lambda *x: jnp.stack(x)[:, None], first, second)  # [2 1 n]
  drawn = draw(both_scenes, cameras, backend=backend)  # cameras [2]
  assert drawn.image.shape == (2, 2, scenes.HEIGHT, scenes.WIDTH, 3)
  assert drawn.depth.shape == drawn.alpha.shape == drawn.image.shape[:-1]
  assert drawn.overflow.shape == (2, 2)
  for i, scene in enumerate((first, second)):
    expected = draw(scene, cameras, backend=backend)
    # As above: how the matrix product groups a pixel's sum depends on its shape.
    assert_same(jax.tree.map(lambda x, i=i: x[i], drawn), expected, 1e-6)


def test_each_view_has_its_own_gaussians_and_background():
  first, cameras = scene_and_cameras(0)
  second, _ = scene_and_cameras(1)
  per_view = jax.tree.map(lambda *x: jnp.stack(x), first, second)
  backgrounds = jnp.asarray([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
  drawn = draw(per_view, cameras, backgrounds)
  for i, scene in enumerate((first, second)):
    expected = draw(scene, cameras, backgrounds[i])
    assert_same(jax.tree.map(lambda x, i=i: x[i], drawn), scenes.select(expected, i), 1e-6)


def test_vmap_equals_leading_axis():
  scene, cameras = scene_and_cameras()
  mapped = jax.jit(jax.vmap(render, in_axes=(None, 0)))(scene, cameras)
  # XLA fuses, and so rounds, the projection otherwise.
  drawn = jax.jit(render)(scene, cameras)
  assert_same(mapped, drawn, 5e-6)


@every
def test_same_inputs_give_same_bits(backend):
  scene, cameras = scene_and_cameras()
  poses = cameras.world_from_camera
  for run in (
    lambda: draw(scene, cameras, backend=backend),
    lambda: gradient(scene, poses, cameras, backend=backend),
  ):
    jax.tree.map(np.testing.assert_array_equal, run(), run())


BAD = {
  "means": (jnp.nan, jnp.inf, -1e30),
  "quaternions": (jnp.nan, jnp.inf),
  "scales": (jnp.nan, jnp.inf, 1e30),
  "opacities": (jnp.nan, jnp.inf),
  "harmonics": (jnp.nan, -jnp.inf),
}


@every
def test_bad_numbers_stay_where_they_are(backend):
  scene, cameras = scene_and_cameras()
  poses = cameras.world_from_camera
  without = scenes.change(scene, opacities=[0])
  expected = draw(without, cameras, backend=backend)
  expected_gradient = gradient(without, poses, cameras, backend=backend)
  for name, values in BAD.items():
    for value in values:
      array = getattr(scene, name)
      bad = dataclasses.replace(scene, **{name: array.at[(0,) * array.ndim].set(value)})
      # The same numbers; its place in the order, and so the grouping of the sums, may change.
      assert_same(draw(bad, cameras, backend=backend), expected, 1e-6)
      actual = gradient(bad, poses, cameras, backend=backend)
      for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected_gradient)):
        tolerance = 1e-5 * np.max(np.abs(y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=f"{name} {value}")
      assert not any(jnp.any(x[0]) for x in jax.tree.leaves(actual[0])), f"{name} {value}"


@every
def test_degenerate_gaussians_have_finite_gradients(backend):
  scene, cameras = scene_and_cameras()
  poses = cameras.world_from_camera
  degenerate = scenes.change(
    scene,
    # In the camera's centre, on the camera's plane, denormal.
    means=[poses[0, :3, 3], [0.3, 0, 0], [1e-40, 0, 2]],
    quaternions=[[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1e-30, 0, 0, 0]],
    scales=[[0, 0, 0], [1e5, 1e5, 1e5], [0, 0, 0], [1e-40, 0.1, 0], [1e5, 1e5, 1e5]],
    opacities=[1, 1, 1, 1e-40, 1],
  )
  leaves = jax.tree.leaves(gradient(degenerate, poses, cameras, backend=backend))
  assert all(jnp.all(jnp.isfinite(x)) for x in leaves)
  drawn = draw(degenerate, cameras, backend=backend)
  assert jnp.all(jnp.isfinite(drawn.image)) and jnp.all(jnp.isfinite(drawn.depth))


def test_reference_matches_finite_differences():
  """In float64, against central differences along random directions."""
  with jax.enable_x64(True):
    to_float64 = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
    scene = to_float64(scenes.gaussians(count=6, coefficients=4))
    cameras = to_float64(scenes.cameras(views=1, height=5, width=6))
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(1, 5, 6, 5)))

    @jax.jit
    @jax.value_and_grad
    def value_and_gradients(inputs):
      scene, poses, lens, background = inputs
      moved = dataclasses.replace(cameras, world_from_camera=poses, intrinsics=lens)
      drawn = render(scene, moved, backend="reference", background=background)
      layers = [drawn.image, drawn.depth[..., None], drawn.alpha[..., None]]
      return jnp.sum(weights * jnp.concatenate(layers, -1))

    background = jnp.asarray([0.3, 0.6, 0.1])
    inputs = (scene, cameras.world_from_camera, cameras.intrinsics, background)
    value, gradients = value_and_gradients(inputs)
    assert value.dtype == jnp.float64
    for _ in range(8):
      direction = jax.tree.map(lambda x: random.normal(size=x.shape), inputs)
      step = 1e-6
      ahead, back = (
        value_and_gradients(jax.tree.map(lambda x, d, s=s: x + s * d, inputs, direction))[0]
        for s in (step, -step)
      )
      along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradients, direction)))
      # Central differences leave 1e-12 of curvature and 1e-10 of rounding over the step.
      np.testing.assert_allclose((ahead - back) / (2 * step), along, rtol=1e-6)


def test_unknown_backend_names_the_known_ones():
  scene, cameras = scene_and_cameras()
  with pytest.raises(ValueError, match=r"'cude'.*auto.*reference.*tiled"):
    render(scene, cameras, backend="cude")


def test_leading_axes_that_do_not_broadcast():
  scene, cameras = scene_and_cameras()
  three = jax.tree.map(lambda x: jnp.stack([x] * 3), scene)
  with pytest.raises(ValueError, match=r"\(3,\) and cameras with \(2,\)"):
    render(three, cameras)


def test_capacity_must_be_positive():
  scene, cameras = scene_and_cameras()
  with pytest.raises(ValueError, match="capacity is 0"):
    render(scene, cameras, capacity=0)


@pytest.mark.parametrize("backend", ["reference", "tiled", "cpu"])
def test_intrinsics_and_background_have_gradients(backend):
  scene, cameras = scene_and_cameras()

  def gradients(backend):
    def loss(intrinsics, background):
      moved = dataclasses.replace(cameras, intrinsics=intrinsics)
      return jnp.sum(render(scene, moved, backend=backend, background=background).image ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))(cameras.intrinsics, jnp.asarray([0.2, 0.5, 0.7]))

  for actual, expected in zip(gradients(backend), gradients("reference")):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("backend", ["tiled", "cpu"])
def test_half_precision_is_drawn_in_single(backend):
  scene, cameras = scene_and_cameras()
  half = dataclasses.replace(scene, opacities=scene.opacities.astype(jnp.bfloat16))
  single = dataclasses.replace(scene, opacities=half.opacities.astype(jnp.float32))
  drawn, expected = (render(x, cameras, backend=backend) for x in (half, single))
  assert drawn.image.dtype == jnp.float32
  np.testing.assert_array_equal(drawn.image, expected.image)


def test_sizes_that_would_wrap_are_refused():
  scene, cameras = scene_and_cameras()
  with pytest.raises(ValueError, match="100000 x 4 pixels; expected at most 65536"):
    render(scene, dataclasses.replace(cameras, height=4, width=100_000))
  with pytest.raises(ValueError, match="tiled counts to 2147483647"):
    large = dataclasses.replace(cameras, height=60_000, width=60_000)
    jax.eval_shape(
      lambda scene, cameras: render(scene, cameras, backend="tiled", capacity=2**31 - 1),
      jax.tree.map(lambda x: jnp.broadcast_to(x, (4, 1, *x.shape)), scene),
      large,
    )


@every
def test_no_views_are_no_pictures(backend):
  scene, cameras = scene_and_cameras()
  drawn = draw(scene, cameras[:0], backend=backend)
  assert drawn.image.shape == (0, scenes.HEIGHT, scenes.WIDTH, 3)


@every
def test_no_gaussians_are_an_empty_picture(backend):
  scene, cameras = scene_and_cameras()
  drawn = draw(scenes.select(scene, slice(0)), cameras, jnp.ones(3), backend=backend)
  assert not drawn.alpha.any() and jnp.all(drawn.image == 1)
