"""What each stage minimises, and which parameters each term reaches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.models.system import System
from d4s_jax.training import objectives, validation
from d4s_jax.training.stages import stage
from tests.support import random_params, small_cogvideox, small_config

PARTS = ("autoencoder", "text_encoder", "transformer", "ldrm")


@pytest.fixture(scope="module")
def system():
  return System.build(small_config().model.to_dict())


@pytest.fixture(scope="module")
def params(system):
  return random_params(system)


@pytest.fixture(scope="module")
def clip(system):
  """Two clips in which something moves; LPIPS needs 31 pixels."""
  source = SOURCES["synthetic"](kind="dynamic", frames=5, height=32, width=32, views=2)
  clips = [with_tokens(source.read(i), system.backbone.tokenizer) for i in range(2)]
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *clips)


@pytest.fixture(scope="module")
def gradients(system, params, clip):
  """Terms, and the largest gradient in each part of the parameters, of a stage under weights."""

  @functools.cache
  def compute(name, weights, **settings):
    names = (
      "flow_matching",
      "photometric",
      "perceptual",
      "geometric",
      "motion",
      "moments",
      "depth",
    )
    chosen = objectives.Settings(
      weights={term: dict(weights).get(term, 0.0) for term in names},
      lpips="alex",
      estimated_share=1.0,
      **settings,
    )
    objective = objectives.make_objective(system, stage(name), chosen)

    @jax.jit
    def run(params):
      return jax.value_and_grad(objective, has_aux=True)(params, clip, jax.random.key(0))

    (loss, terms), gradient = run(params)
    largest = {
      part: max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(gradient[part]))
      for part in PARTS
    }
    return float(loss), terms, largest, gradient

  return compute


RENDERING = (("photometric", 1.0), ("perceptual", 0.5), ("geometric", 0.5))


def test_flow_matching_reaches_the_video_model_only(gradients):
  _, _, largest, _ = gradients("joint", (("flow_matching", 1.0),), render_gradient=1.0)
  assert largest["transformer"] > 0 and largest["text_encoder"] > 0
  assert largest["ldrm"] == 0 and largest["autoencoder"] == 0


@pytest.mark.slow
def test_rendering_reaches_the_video_model_by_its_factor(gradients):
  results = {
    factor: gradients("joint", RENDERING, render_gradient=factor) for factor in (0.0, 0.5, 1.0)
  }
  assert results[0.0][2]["transformer"] == 0 and results[0.0][2]["ldrm"] > 0
  half, whole = (results[factor][3]["transformer"] for factor in (0.5, 1.0))
  # The factor multiplies one gradient; float32 sums in another order.
  jax.tree.map(lambda h, w: np.testing.assert_allclose(2 * h, w, rtol=1e-3, atol=1e-6), half, whole)
  assert results[1.0][2]["transformer"] > 0
  # The factor is on the gradient alone.
  assert results[0.0][0] == pytest.approx(results[1.0][0], rel=1e-5)
  assert all(largest["autoencoder"] == 0 for _, _, largest, _ in results.values())


@pytest.mark.slow
def test_the_loss_is_the_weighted_sum_of_its_terms(gradients):
  loss, terms, _, _ = gradients("joint", RENDERING, render_gradient=1.0)
  assert loss == pytest.approx(sum(weight * float(terms[name]) for name, weight in RENDERING))
  assert {"flow_matching", "motion", "psnr", "overflow", "motion_error"} <= terms.keys()


@pytest.mark.slow
def test_static_stage_has_no_motion_and_no_diffusion(gradients):
  _, terms, largest, _ = gradients("static", RENDERING)
  assert not {"motion", "flow_matching"} & terms.keys()
  assert largest["ldrm"] > 0 and largest["transformer"] == 0


def test_exact_depth_and_motion_reach_the_reconstruction_model_only(gradients):
  _, terms, largest, gradient = gradients("geometry", (("depth", 1.0), ("motion", 1.0)))
  assert {"depth", "motion", "motion_error"} <= terms.keys()
  assert not {"photometric", "flow_matching"} & terms.keys()
  assert largest["ldrm"] > 0 and largest["transformer"] == 0 and largest["autoencoder"] == 0
  # Both heads.
  for head in ("gaussian", "deformation"):
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient["ldrm"][head])) > 0


def test_the_map_is_compared_with_the_depth_of_its_cells(system, params, clip):
  @jax.jit
  def both(params):
    settings = objectives.Settings(weights={})
    terms, _ = objectives.distillation(system, params, clip, jax.random.key(0), settings)
    latents = system.backbone.encode(params, clip.source.images)
    times = clip.source.times[:, :1]
    return terms, system.reconstruct(params, latents, clip.source.cameras, times)[1]

  terms, auxiliary = both(params)
  step = clip.source.depth.shape[2] // auxiliary.depth.shape[2]
  true = clip.source.depth[:, :, step // 2 :: step, step // 2 :: step]
  error = np.abs(np.log(auxiliary.depth) - np.log(true))
  assert float(terms["depth"]) == pytest.approx(float(error[np.asarray(true) > 0].mean()), rel=1e-4)


def test_padding_in_front_of_latents_is_neither_predicted_nor_reconstructed():
  # Tokens of two latents, and a clip of three.
  system = System.build(small_cogvideox(patch=(2, 2, 2)).model.to_dict())
  backbone, params = system.backbone, random_params(system)
  source = SOURCES["synthetic"](kind="dynamic", frames=9, height=16, width=16, views=2)
  clip = with_tokens(source.read(0), backbone.tokenizer)
  clip = jax.tree.map(lambda x: jnp.asarray(x)[None], clip)
  clean = jax.random.normal(jax.random.key(1), backbone.latent_shape(1, 9, 16, 16))
  settings = objectives.Settings(weights={}, estimated_share=1.0)

  class Watched(type(backbone)):
    def denoise(self, params, latents, sigma, text, maps, condition):
      assert latents.shape[1] == 4 and condition.first.shape[1] == 2
      velocity = super().denoise(params, latents, sigma, text, maps, condition)
      # What it says of what it is given clean counts for nothing.
      return velocity.at[:, :2].set(jnp.nan)

  fields = {x.name: getattr(backbone, x.name) for x in dataclasses.fields(backbone)}
  watched = dataclasses.replace(system, backbone=Watched(**fields))

  @jax.jit
  def run(params, clean):
    found = objectives.diffusion(watched, params, clip, clean, jax.random.key(0), settings)
    return found, validation.denoised(watched, params, clip, clean)

  (terms, latents, sigma), (estimate, loss) = run(params, clean)
  assert sigma[0] > 0 and np.isfinite([terms["flow_matching"], loss]).all()
  for found in (latents, estimate):
    assert found.shape == clean.shape and np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], clean[:, 0], atol=1e-6)
    assert np.abs(found - clean)[:, 1:].max(axis=(0, 2, 3, 4)).min() > 1e-3
