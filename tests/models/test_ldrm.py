"""The LDRM as a whole: shapes, geometry, the identity before training, gradients."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.geometry.cameras import pixel_grid, project
from d4s_jax.geometry.deformation import deform, identity
from d4s_jax.models.ldrm import LDRM, SourcePoints
from d4s_jax.types import Cameras

# 5 frames of 16 x 16, latents 2 x 4 x 4, a map of 5 x 8 x 8.
SMALL = LDRM(
  gaussians=100,
  width=24,
  depth=4,
  heads=2,
  strides=(4, 4, 4),
  patch=2,
  pixels_per_cell=2,
  motion_channels=8,
)
TIMES = jnp.array([[0.0, 0.4, 1.0], [0.1, 0.5, 0.6]])


def make_cameras(batch, frames, height, width):
  """A dolly to the right that turns a little; the first camera is the identity."""
  angle = np.linspace(0, 0.2, frames)
  pose = np.tile(np.eye(4, dtype=np.float32), (batch, frames, 1, 1))
  pose[..., 0, 0] = pose[..., 2, 2] = np.cos(angle)
  pose[..., 0, 2], pose[..., 2, 0] = np.sin(angle), -np.sin(angle)
  pose[..., 0, 3] = np.linspace(0, 0.5, frames)
  intrinsics = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], np.float32)
  return Cameras(
    world_from_camera=jnp.asarray(pose),
    intrinsics=jnp.tile(jnp.asarray(intrinsics), (batch, frames, 1, 1)),
    height=height,
    width=width,
  )


@pytest.fixture(scope="module")
def latents():
  return jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 6))


@pytest.fixture(scope="module")
def cameras():
  return make_cameras(2, 5, 16, 16)


@pytest.fixture(scope="module")
def untrained(latents, cameras):
  # This generator compiles much faster than the default one.
  key = jax.random.key(1, impl="unsafe_rbg")
  return nn.unbox(jax.jit(SMALL.init)(key, latents, cameras, TIMES))


@pytest.fixture(scope="module")
def trained(untrained):
  """Parameters away from their initial zeros."""
  numbers = np.random.default_rng(2)

  def move(x):
    return jnp.asarray(x + 0.1 * numbers.normal(size=x.shape), jnp.float32)

  return jax.tree.map(move, untrained)


@pytest.fixture(scope="module")
def points():
  """A point in the second cell of the third cell row of frame 1, and one in the last of frame 4."""
  pixels = jnp.array([[[3.0, 5.5], [15.9, 14.1]]] * 2)
  return SourcePoints(jnp.array([[1, 4]] * 2), pixels)


@jax.jit
def reconstruct(params, latents, cameras, points, sigma):
  return SMALL.apply(params, latents, cameras, TIMES, points=points, sigma=sigma)


CLEAN = jnp.zeros(2)


def test_outputs_of_a_small_model(untrained, latents, cameras, points):
  scene, auxiliary = reconstruct(untrained, latents, cameras, points, CLEAN)
  assert scene.means.shape == (2, 100, 3)
  assert scene.deformation.shape == (2, 3, 100, 10)
  assert scene.harmonics.shape == (2, 100, 1, 3)
  assert auxiliary.depth.shape == (2, 5, 8, 8)
  assert auxiliary.displacement.shape == (2, 3, 2, 3)
  np.testing.assert_array_equal(scene.times, TIMES)
  assert set(untrained["params"]) == {"trunk", "gaussian", "deformation"}
  # About 4 m and sigmoid(-2); the first weights are random, not zero.
  assert 3.5 < jnp.median(auxiliary.depth) < 4.5
  assert 0.08 < jnp.median(scene.opacities) < 0.18


def test_untrained_or_frozen_motion_is_none(untrained, trained, latents, cameras, points):
  frozen = {"params": {**trained["params"], "deformation": untrained["params"]["deformation"]}}
  for params in (untrained, frozen):
    scene, auxiliary = reconstruct(params, latents, cameras, points, CLEAN)
    np.testing.assert_array_equal(scene.deformation, identity(2, 3, 100))
    np.testing.assert_array_equal(auxiliary.displacement, 0.0)
    still = deform(scene)
    for field in dataclasses.fields(still):
      over_time = getattr(still, field.name)
      np.testing.assert_array_equal(over_time, np.broadcast_to(over_time[:, :1], over_time.shape))
    np.testing.assert_array_equal(still.means[:, 0], scene.means)


def test_gaussians_lie_on_the_rays_of_their_cells(trained, latents, cameras, points):
  scene, auxiliary = reconstruct(trained, latents, cameras, points, CLEAN)
  frame, row, column = np.unravel_index(np.asarray(auxiliary.kept), (5, 8, 8))
  own = jax.vmap(lambda cameras, frame: cameras[frame])(cameras, jnp.asarray(frame))
  pixels, depth = project(scene.means[:, :, None], own)
  centres = pixel_grid(8, 8)[row, column] * 2
  # Float32 through unprojection and projection, in pixels.
  np.testing.assert_allclose(pixels[:, :, 0], centres, atol=1e-3)
  mapped = auxiliary.depth.reshape(2, -1)
  np.testing.assert_allclose(
    depth[:, :, 0], jnp.take_along_axis(mapped, auxiliary.kept, axis=1), rtol=1e-4
  )


def test_displacement_of_source_points_is_that_of_their_gaussians(
  trained, latents, cameras, points
):
  # All Gaussians kept, so that the points' own are among them.
  model = SMALL.clone(gaussians=320)
  scene, auxiliary = jax.jit(model.apply)(trained, latents, cameras, TIMES, points=points)
  cells = np.ravel_multi_index(([1, 4], [2, 7], [1, 7]), (5, 8, 8))
  for index in range(2):
    own = np.array([list(kept).index(cells[index]) for kept in np.asarray(auxiliary.kept)])
    expected = scene.deformation[np.arange(2), :, own, :3]
    np.testing.assert_array_equal(auxiliary.displacement[:, :, index], expected)
  assert jnp.max(jnp.abs(auxiliary.displacement)) > 0.01
  assert jnp.any(auxiliary.displacement[:, :, 0] != auxiliary.displacement[:, :, 1])


def test_points_at_the_border_and_outside_have_the_nearest_cell(trained, latents, cameras, points):
  def displacement(x, y, frame):
    pixels = jnp.array([[[15.9, 15.9], [x, y]]] * 2)
    asked = SourcePoints(jnp.array([[4, frame]] * 2), pixels)
    moved = reconstruct(trained, latents, cameras, asked, CLEAN)[1].displacement
    return moved[:, :, 0], moved[:, :, 1]

  for x, y, frame in ((16.0, 16.0, 4), (40.0, 15.0, 4), (15.0, 15.0, 9)):
    corner, asked = displacement(x, y, frame)
    np.testing.assert_array_equal(asked, corner)
  corner, other = displacement(-3.0, 16.0, 4)
  assert jnp.any(other != corner)


def test_key_changes_which_gaussians_are_kept(untrained, latents, cameras):
  @jax.jit
  def kept(key):
    return SMALL.apply(untrained, latents, cameras, TIMES, key=key)[1].kept

  first, again, other = (kept(jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert jnp.any(first != other)


def test_transparent_gaussians_are_switched_off(untrained, latents, cameras, points):
  params = jax.tree.map(lambda x: x, untrained)
  bias = params["params"]["gaussian"]["map"]["bias"]
  params["params"]["gaussian"]["map"]["bias"] = bias.at[11].set(-3.4)
  scene, _ = reconstruct(params, latents, cameras, points, CLEAN)
  # sigmoid(-2 - 3.4) is 0.0045; random weights put some cells on either side of 0.005.
  assert jnp.any(scene.opacities == 0)
  assert jnp.all((scene.opacities == 0) | (scene.opacities >= 0.005))
  assert jnp.any(scene.opacities > 0)


def test_noise_level_enters_after_training_and_none_is_clean(
  untrained, trained, latents, cameras, points
):
  noisy = jnp.array([0.0, 0.5])

  def depth(params, sigma):
    return reconstruct(params, latents, cameras, points, sigma)[1].depth

  np.testing.assert_array_equal(depth(untrained, CLEAN), depth(untrained, noisy))
  clean, half = depth(trained, CLEAN), depth(trained, noisy)
  np.testing.assert_array_equal(clean[0], half[0])
  assert jnp.max(jnp.abs(clean[1] / half[1] - 1)) > 1e-3
  default = jax.jit(SMALL.apply)(trained, latents, cameras, TIMES)[1].depth
  np.testing.assert_allclose(default, clean, rtol=1e-5)  # another program, another order of sums


def test_cameras_matter_beyond_where_gaussians_are_put(trained, latents, cameras, points):
  depth = reconstruct(trained, latents, cameras, points, CLEAN)[1].depth
  pose = cameras.world_from_camera.at[:, 1:, 1, 3].add(1.0)
  moved = dataclasses.replace(cameras, world_from_camera=pose)
  changed = reconstruct(trained, latents, moved, points, CLEAN)[1].depth
  assert jnp.max(jnp.abs(depth / changed - 1)) > 1e-3


def test_metres_and_scene_scale_are_one_choice_of_unit(trained, latents, cameras, points):
  """A scene twice as large seen by a model whose unit is twice as long is the same to the model."""
  scene, _ = reconstruct(trained, latents, cameras, points, CLEAN)
  pose = cameras.world_from_camera.at[..., :3, 3].multiply(2.0)
  cameras = dataclasses.replace(cameras, world_from_camera=pose)
  model = SMALL.clone(scene_scale=20.0, initial_depth=8.0)
  large, _ = jax.jit(model.apply)(trained, latents, cameras, TIMES)
  np.testing.assert_allclose(large.means, 2 * scene.means, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(large.footprints, 2 * scene.footprints, rtol=1e-4)


def test_gradients_are_finite_and_reach_every_parameter(
  untrained, trained, latents, cameras, points
):
  @jax.jit
  @jax.grad
  def gradient(params):
    scene, auxiliary = SMALL.apply(
      params, latents, cameras, TIMES, sigma=jnp.ones(2), points=points, key=jax.random.key(3)
    )
    leaves = jax.tree.leaves((scene, auxiliary.displacement))
    return sum(jnp.sum(jnp.square(x - 0.1)) for x in leaves)

  def zeros(params):
    paths = jax.tree_util.tree_leaves_with_path(gradient(params)["params"])
    assert all(jnp.isfinite(x).all() for _, x in paths)
    return {"/".join(k.key for k in path) for path, x in paths if jnp.all(x == 0)}

  assert zeros(trained) == set()
  # At the start exactly what lies behind the zero-initialised layers waits for them.
  waiting = zeros(untrained)
  assert "deformation/out/kernel" not in waiting
  assert "trunk/noise_out/kernel" not in waiting
  assert "gaussian/colour/kernel" not in waiting
  behind = ("deformation/", "trunk/noise_in/")
  assert all(path.startswith(behind) for path in waiting)


def test_first_frame_as_the_canonical_one(trained, latents, cameras):
  model = SMALL.clone(canonical="first", gaussians=40)
  scene, auxiliary = jax.jit(model.apply)(trained, latents, cameras, TIMES)
  assert auxiliary.depth.shape == (2, 1, 8, 8)
  pixels, _ = project(scene.means, cameras[:, 0])
  centres = pixel_grid(8, 8).reshape(64, 2)[np.asarray(auxiliary.kept)] * 2
  np.testing.assert_allclose(pixels, centres, atol=1e-3)  # float32, in pixels


def test_flat_camera_encoding(latents, cameras):
  model = SMALL.clone(encoding="flat")
  params = jax.eval_shape(model.init, jax.random.key(1), latents, cameras, TIMES)
  assert nn.unbox(params)["params"]["trunk"]["cameras_patch"]["kernel"].shape == (4, 8, 8, 12, 24)


def test_bfloat16_compute_keeps_float32_parameters_and_gaussians(trained, latents, cameras, points):
  model = SMALL.clone(dtype=jnp.bfloat16)
  (half, auxiliary), params = jax.eval_shape(
    model.init_with_output, jax.random.key(1), latents, cameras, TIMES
  )
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  floats = [x for x in jax.tree.leaves((half, auxiliary)) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert {x.dtype for x in floats} == {jnp.dtype("float32")}
  _, exact = reconstruct(trained, latents, cameras, points, CLEAN)
  _, rounded = jax.jit(model.apply)(trained, latents, cameras, TIMES)
  # Eight bits of mantissa through four blocks; depth is the exponential of the result.
  np.testing.assert_allclose(jnp.log(rounded.depth), jnp.log(exact.depth), atol=0.15)


def test_full_size_is_sound_without_computing_it():
  """49 x 512 x 512 in, 50,000 of a map of 49 x 256 x 256 out, about 240 M parameters."""
  model = LDRM(gaussians=50_000, pixels_per_cell=2, dtype=jnp.bfloat16, remat="all")
  latents = jax.ShapeDtypeStruct((1, 13, 64, 64, 16), jnp.float32)
  cameras = jax.eval_shape(lambda: make_cameras(1, 49, 512, 512))
  times = jax.ShapeDtypeStruct((1, 8), jnp.float32)
  (scene, auxiliary), params = jax.eval_shape(
    model.init_with_output, jax.random.key(0), latents, cameras, times
  )
  assert auxiliary.depth.shape == (1, 49, 256, 256)
  assert scene.deformation.shape == (1, 8, 50_000, 10)
  params = nn.unbox(params)["params"]
  kernel = params["gaussian"]["map"]["kernel"]
  assert kernel.shape == (5, 8, 8, 1024, 12)
  count = sum(x.size for x in jax.tree.leaves(params))
  assert 2.1e8 < count < 2.7e8


def test_sizes_that_do_not_fit_are_refused(latents, cameras):
  def run(model=SMALL, latents=latents, cameras=cameras):
    return jax.eval_shape(model.init, jax.random.key(0), latents, cameras, TIMES)

  with pytest.raises(ValueError, match="video of 5x16x16, but the cameras are for 4x16x16"):
    run(cameras=cameras[:, :4])
  with pytest.raises(ValueError, match="cameras are for 5x32x16.*tokens must be equally many"):
    run(cameras=dataclasses.replace(cameras, height=32))
  with pytest.raises(ValueError, match="patches of 3x3.*multiples of 12 and 12"):
    run(SMALL.clone(patch=3))
  with pytest.raises(ValueError, match="Cells of 3 pixels don't divide a latent of 4x4"):
    run(SMALL.clone(pixels_per_cell=3))
  with pytest.raises(ValueError, match="budget of 321 Gaussians exceeds the 320"):
    run(SMALL.clone(gaussians=321))
  with pytest.raises(ValueError, match="canonical 'last'"):
    run(SMALL.clone(canonical="last"))
