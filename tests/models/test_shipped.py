"""The weights that come with the package do what their card says, roughly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import base
from d4s_jax.data.source import open_source
from d4s_jax.models import shipped
from d4s_jax.models.system import System
from d4s_jax.training import validation
from d4s_jax.training.motion_queries import ask, motion_error

PARTS = ("autoencoder", "text_encoder", "transformer", "ldrm")


@pytest.fixture(scope="module")
def trained():
  system = System.build(base("tiny").model.to_dict())
  abstract = system.abstract()
  return system, {part: shipped.load("tiny", part, abstract[part]) for part in PARTS}


def test_all_of_it_is_small_and_finite(trained):
  size = sum(shipped.path("tiny", part).stat().st_size for part in PARTS)
  assert size < 40e6
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained[1]))


def test_held_out_scenes_are_reconstructed(trained):
  system, params = trained
  source = open_source("synthetic", split="heldout", kind="dynamic", views=4)
  (clip,) = validation.HeldOut(source, system.backbone.tokenizer, 4, 1)

  @jax.jit
  def scores(params, clip):
    latents = system.backbone.encode(params, clip.source.images)
    decoded = system.backbone.decode(params, latents)
    dynamic, _ = system.reconstruct(params, latents, clip.source.cameras, clip.target.times)
    drawn = validation.draw(dynamic, clip.target.cameras)
    # With their own words, and with those of other scenes.
    (estimate, of_others), (loss, _) = jax.lax.map(
      lambda text: validation.denoised(
        system, params, dataclasses.replace(clip, text=text), latents
      ),
      jnp.stack([clip.text, jnp.roll(clip.text, 1, axis=0)]),
    )
    _, displacement, truth = ask(system, params, clip, latents, jax.random.key(0), 9)
    return {
      "decoded": validation.psnr(decoded, clip.source.images).mean(),
      "drawn": validation.psnr(drawn.image, clip.target.images).mean(),
      "depth": validation.correlation(drawn.depth, clip.target.depth).mean(),
      "motion": motion_error(displacement, *truth),
      "denoising": loss,
      "effect of words": jnp.sqrt(jnp.mean(jnp.square(of_others - estimate))),
    }

  found = scores(params, clip)
  # Four scenes in which something moves.
  assert found["decoded"] > 28
  assert found["drawn"] > 23.5
  assert found["depth"] > 0.8
  assert found["motion"] < 0.85
  # 2.2 before training.
  assert found["denoising"] < 0.25
  assert found["effect of words"] > 0.008
