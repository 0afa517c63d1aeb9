"""What a backbone's blocks add, kept in one pass and reused in another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.models.system import System
from tests.support import random_params, small_cogvideox, small_config

CONFIGS = {"wan": small_config, "cogvideox": small_cogvideox}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("rank", [0, 2])
def test_a_pass_reuses_what_blocks_added(family, rank):
  config = CONFIGS[family]()
  config.model.lora.rank = rank
  system = System.build(config.model.to_dict())
  backbone, params = system.backbone, random_params(system)
  rng = np.random.default_rng(0)
  latents = jnp.asarray(rng.normal(size=backbone.latent_shape(2, 5, 16, 16)), jnp.float32)
  text = backbone.encode_text(params, jnp.stack([system.tokenize(x) for x in ("a cat", "rain")]))
  maps = jnp.asarray(rng.normal(size=(2, 5, 16, 16, 6)), jnp.float32)
  rest = text, maps, backbone.condition(params, jnp.full((2, 16, 16, 3), 0.5), 5)
  level = jnp.array([0.7, 0.4])
  whole, keeping, reusing = (
    jax.jit(x) for x in (backbone.denoise, backbone.denoise_keeping, backbone.denoise_reusing)
  )
  velocity = whole(params, latents, level, *rest)
  kept, features = keeping(params, latents, level, *rest)
  np.testing.assert_allclose(kept, velocity, atol=1e-5)
  (added,) = jax.tree.leaves(features)
  assert added.shape[0] == 2 and np.abs(added).max() > 1e-2
  # The same pass again, without its blocks: x + (y - x), rounded once.
  again = reusing(params, features, latents, level, *rest)
  np.testing.assert_allclose(again, velocity, atol=1e-5 * np.abs(velocity).max())
  # At other latents the embeddings and the head see these, and the blocks nothing.
  moved = reusing(params, features, latents + 0.1, level, *rest)
  assert np.abs(moved - velocity).max() > 1e-4
  assert np.abs(moved - whole(params, latents + 0.1, level, *rest)).max() > 1e-6
  # The blocks are not computed: their weights make no difference.
  silent = params | {"transformer": params["transformer"] | {"blocks": {}}}
  lowered = jax.jit(backbone.denoise_reusing).lower
  if not rank:
    np.testing.assert_array_equal(
      lowered(silent, features, latents, level, *rest).compile()(
        silent, features, latents, level, *rest
      ),
      again,
    )
