"""What each stage minimises, and which parameters each term reaches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.data.source import SOURCES
from d4s_jax.data.transforms import with_tokens
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.models.system import System
from d4s_jax.training import objectives
from d4s_jax.training.stages import stage
from tests.support import random_params, small_config

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
    names = ("flow_matching", "photometric", "perceptual", "geometric", "motion", "moments")
    chosen = objectives.Settings(
      weights={term: dict(weights).get(term, 0.0) for term in names},
      lpips="alex",
      estimated_share=1.0,
      **settings,
    )
    objective = objectives.make_objective(system, stage(name), chosen)

    # Compiled without LLVM's optimiser: each runs once.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
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


def test_motion_queries_are_the_tracks(clip):
  points, frames, (true, valid) = objectives._motion_queries(clip, jax.random.key(1), 3)
  assert frames.shape == (3,) and len(set(np.asarray(frames).tolist())) == 3
  assert bool(valid.any()) and float(jnp.abs(true).max()) > 0.05
  for sample in range(2):
    tracks = jax.tree.map(lambda x, i=sample: np.asarray(x[i]), clip.tracks)
    for n in np.flatnonzero(np.asarray(valid[sample, 0]))[:20]:
      start = int(points.frames[sample, n])
      assert tracks.visible[n, start]
      camera = dataclasses.replace(clip.source.cameras[sample][start])
      pixel, depth = pinhole.project(tracks.points[n, start][None], camera)
      np.testing.assert_allclose(points.pixels[sample, n], pixel[0], atol=1e-3)
      assert depth[0] > 0 and (0 <= pixel).all() and (pixel <= 32).all()
      expected = tracks.points[n, np.asarray(frames)] - tracks.points[n, start]
      np.testing.assert_allclose(true[sample, :, n], expected, atol=1e-5)


def test_with_the_first_frame_as_canonical_tracks_start_there(clip):
  points, _, (true, valid) = objectives._motion_queries(clip, jax.random.key(1), 2, first_only=True)
  assert bool(valid.any()) and not bool(valid.all())
  np.testing.assert_array_equal(points.frames, 0)
  np.testing.assert_array_equal(valid[:, 0], clip.tracks.visible[:, :, 0])
  assert float(jnp.abs(true).max()) > 0.05


def test_points_never_seen_are_not_valid(clip):
  hidden = dataclasses.replace(clip.tracks, visible=jnp.zeros_like(clip.tracks.visible))
  _, _, (_, valid) = objectives._motion_queries(
    dataclasses.replace(clip, tracks=hidden), jax.random.key(1), 2
  )
  assert not bool(valid.any())
