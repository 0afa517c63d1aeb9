"""Activations of the Gaussian map against values computed by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.geometry import harmonics
from d4s_jax.geometry.cameras import pixel_grid, project
from d4s_jax.models.gaussian_head import CHANNELS, GaussianHead, activate
from d4s_jax.types import Cameras

UP = (4, 2, 2)


@jax.jit
def activated(raw, cameras):
  return activate(raw, cameras, scene_scale=10.0, initial_depth=4.0)


@pytest.fixture
def cameras():
  """Two source cameras of 32 x 64 pixels: the identity, and one turned and moved."""
  turn = np.deg2rad(20)
  pose = np.eye(4, dtype=np.float32)
  pose[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
  pose[:3, 3] = [0.5, -0.2, 1.0]
  intrinsics = np.array([[50, 0, 30], [0, 50, 17], [0, 0, 1]], np.float32)
  return Cameras(
    world_from_camera=jnp.stack([jnp.eye(4), jnp.asarray(pose)])[None],
    intrinsics=jnp.tile(jnp.asarray(intrinsics), (1, 2, 1, 1)),
    height=32,
    width=64,
  )


def test_raw_zeros_are_grey_round_and_at_the_initial_depth(cameras):
  gaussians = activated(jnp.zeros((1, 2, 8, 16, CHANNELS)), cameras)
  np.testing.assert_allclose(gaussians.depth, 4.0)
  np.testing.assert_allclose(gaussians.opacities, 1 / (1 + np.exp(2)), rtol=1e-6)
  np.testing.assert_allclose(gaussians.harmonics, 0.0)
  np.testing.assert_array_equal(gaussians.quaternions, np.tile([1.0, 0, 0, 0], (1, 2, 8, 16, 1)))
  # A cell is 4 pixels wide and a pixel is depth / 50 metres: 0.32 m.
  np.testing.assert_allclose(gaussians.footprints, 0.32, rtol=1e-6)
  np.testing.assert_allclose(jnp.exp(gaussians.raw_scales), 0.37, rtol=1e-6)


def test_channels_are_depth_rgb_scale_quaternion_opacity(cameras):
  def one(channel, value):
    raw = jnp.zeros((1, 2, 8, 16, CHANNELS)).at[..., channel].set(value)
    return jax.tree.map(lambda x: x[0, 0, 0, 0], activated(raw, cameras))

  np.testing.assert_allclose(one(0, np.log(2)).depth, 8.0, rtol=1e-6)
  for channel in range(3):
    rgb = 0.5 + harmonics.C0 * one(1 + channel, 100.0).harmonics[0]
    np.testing.assert_allclose(rgb, np.where(np.arange(3) == channel, 1.0, 0.5), rtol=1e-6)
    scales = jnp.exp(one(4 + channel, 1.0).raw_scales) / 0.37
    np.testing.assert_allclose(scales, np.where(np.arange(3) == channel, np.e, 1.0), rtol=1e-6)
  half = np.sqrt(0.5)
  np.testing.assert_allclose(one(9, 1.0).quaternions, [half, 0, half, 0], rtol=1e-6)
  np.testing.assert_allclose(one(11, 2.0).opacities, 0.5, rtol=1e-6)


def test_means_lie_behind_the_centres_of_their_cells(cameras, key):
  raw = jax.random.normal(key, (1, 2, 8, 16, CHANNELS))
  gaussians = activated(raw, cameras)
  points = gaussians.means.reshape(1, 2, 8 * 16, 3)
  pixels, depth = project(points, cameras)
  cells = (pixels / 4).reshape(1, 2, 8, 16, 2)
  # Float32 through unprojection and projection, in cells.
  np.testing.assert_allclose(cells, np.broadcast_to(pixel_grid(8, 16), cells.shape), atol=1e-4)
  np.testing.assert_allclose(depth.reshape(gaussians.depth.shape), gaussians.depth, rtol=1e-5)


def test_depth_is_bounded_in_scene_units(cameras):
  raw = jnp.zeros((1, 2, 8, 16, CHANNELS)).at[:, 0, ..., 0].set(99.0).at[:, 1, ..., 0].set(-99.0)
  depth = activated(raw, cameras).depth
  np.testing.assert_allclose(depth[:, 0], 1000.0, rtol=1e-5)
  np.testing.assert_allclose(depth[:, 1], 0.1, rtol=1e-5)


def test_size_does_not_move_a_gaussian(cameras):
  def footprint(raw):
    return jnp.sum(activated(raw, cameras).footprints)

  gradient = jax.grad(footprint)(jnp.ones((1, 2, 8, 16, CHANNELS)))
  np.testing.assert_array_equal(gradient, 0.0)


def test_head_adds_a_linear_map_of_latents_to_the_colours_only(key):
  tokens, latents = jnp.ones((1, 2, 3, 3, 8)), jax.random.normal(key, (1, 2, 6, 6, 4))
  head = GaussianHead((4, 4, 4), UP)
  key = jax.random.key(0, impl="unsafe_rbg")
  params = nn.unbox(jax.jit(head.init)(key, tokens, latents))["params"]
  apply = jax.jit(head.apply)
  before = apply({"params": params}, tokens, latents)
  np.testing.assert_array_equal(before, apply({"params": params}, tokens, 2 * latents))

  params["colour"]["kernel"] = jnp.ones_like(params["colour"]["kernel"])
  once = apply({"params": params}, tokens, latents) - before
  twice = apply({"params": params}, tokens, 2 * latents) - before
  assert before.shape == (1, 5, 12, 12, CHANNELS)
  assert jnp.all(jnp.delete(once, jnp.array([1, 2, 3]), axis=-1) == 0)
  assert jnp.any(jnp.abs(once[..., 1:4]) > 0.1)
  np.testing.assert_allclose(twice, 2 * once, rtol=1e-5, atol=1e-5)  # float32 differences


def test_a_latent_colours_the_frames_it_was_encoded_from(key):
  tokens, latents = jnp.zeros((1, 3, 3, 3, 8)), jax.random.normal(key, (1, 3, 6, 6, 4))
  head = GaussianHead((4, 4, 4), UP)
  params = nn.unbox(jax.jit(head.init)(key, tokens, latents))["params"]
  params["colour"]["kernel"] = jnp.ones_like(params["colour"]["kernel"])
  apply = jax.jit(head.apply)
  before = apply({"params": params}, tokens, latents)
  changed = apply({"params": params}, tokens, latents.at[0, 1, 2, 3].add(1.0)) != before
  # Latent 1 of a causal autoencoder is made of frames 1 to 4; its neighbours see it too.
  np.testing.assert_array_equal(jnp.any(changed, (0, 2, 3, 4)), [0, 1, 1, 1, 1, 0, 0, 0, 0])
  row, column = (np.flatnonzero(jnp.any(changed, axes)) for axes in ((0, 1, 3, 4), (0, 1, 2, 4)))
  np.testing.assert_array_equal(row, np.arange(2, 8))
  np.testing.assert_array_equal(column, np.arange(4, 10))


def test_degree_one_harmonics_start_small(cameras, key):
  head = GaussianHead((4, 4, 4), UP, degree=1)
  tokens, latents = jnp.ones((1, 2, 2, 4, 8)), jnp.ones((1, 2, 4, 8, 4))
  raw, _ = jax.eval_shape(head.init_with_output, key, tokens, latents)
  assert raw.shape == (1, 5, 8, 16, 21)
  coefficients = activated(jnp.ones((1, 2, 8, 16, 21)), cameras).harmonics
  assert coefficients.shape == (1, 2, 8, 16, 4, 3)
  np.testing.assert_allclose(coefficients[..., 1:, :], 0.025)


def test_other_degrees_are_refused(key):
  with pytest.raises(ValueError, match="degree 2"):
    GaussianHead(UP, UP, degree=2).init(key, jnp.ones((1, 1, 1, 1, 4)), jnp.ones((1, 1, 1, 1, 4)))
