import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS
from d4s_jax.models.backbone import build
from d4s_jax.models.condition import Condition

CONFIG = dict(
  family="cogvideox",
  text_length=12,
  camera_channels=6,
  schedule=dict(snr_shift=3.0),
  autoencoder=dict(widths=(4, 4, 4, 4), z_dim=3, num_res_blocks=1, groups=2, scale=0.5),
  text_encoder=dict(
    vocabulary=384, dim=16, depth=1, heads=2, head_dim=8, ffn_dim=16, per_layer_bias=False
  ),
  transformer=dict(heads=2, head_dim=16, depth=1),
)
MODES = {
  "t2v": {},
  "i2v": dict(takes_image=True, positions="learned", grid=(3, 2, 2)),
  "1.5-i2v": dict(takes_image=True, patch=(2, 2, 2), offset=True),
  "1.5": dict(patch=(2, 2, 2)),
}
# With nine frames, those of tokens of two latents have padding.
FRAMES = {"t2v": 5, "i2v": 5, "1.5-i2v": 9, "1.5": 9}


def _build(mode):
  autoencoder = CONFIG["autoencoder"] | {"inverted": mode.startswith("1.5")}
  transformer = CONFIG["transformer"] | MODES[mode]
  return build(CONFIG | {"autoencoder": autoencoder, "transformer": transformer})


def _params(backbone):
  """Random parameters in which nothing is exactly zero, so that every input has an effect."""
  draw = np.random.default_rng(0).standard_normal

  def parameter(path, leaf):
    return jnp.asarray(0.2 * draw(leaf.shape, np.float32) + (path[-1].key == "scale"))

  return jax.tree_util.tree_map_with_path(
    parameter, jax.eval_shape(backbone.init, jax.random.key(0))
  )


def test_it_says_what_it_is():
  backbone = _build("1.5-i2v")
  assert (backbone.latent_channels, backbone.strides, backbone.patch) == (3, (4, 8, 8), (2, 2, 2))
  assert backbone.schedule.snr_shift == 3.0
  # Divided by the scale, 0.5, where the latents of a video are multiplied by it.
  assert backbone.transformer.image_scale == 4.0
  assert _build("i2v").transformer.image_scale == 1.0
  # Tokens of two latent frames: the 21 of the published 81 frames are 22 with the padding.
  backbone.check_size(81, 768, 1360)
  assert [backbone.padding(latents) for latents in (1, 2, 21, 22)] == [1, 0, 1, 0]
  assert _build("i2v").padding(21) == 0
  with pytest.raises(ValueError, match=r"frames 82 \(legal is 1 \+ 4k, nearest 81 or 85\)"):
    backbone.check_size(82, 768, 1360)


def test_latents_are_scaled_and_padding_is_read_as_text(key):
  backbone = _build("t2v")
  params = _params(backbone)
  video = jax.random.uniform(key, (1, 5, 16, 16, 3))
  raw = backbone.autoencoder.clone(scale=1.0)
  variables = {"params": params["autoencoder"]}
  mean, _ = jax.jit(functools.partial(raw.apply, method="encode"))(variables, 2 * video - 1)
  np.testing.assert_allclose(jax.jit(backbone.encode)(params, video), 0.5 * mean, atol=1e-6)

  tokens = jnp.stack([backbone.tokenizer(text) for text in ("a cat", "")])
  text = jax.jit(backbone.encode_text)(params, tokens)
  assert text.mask.all()
  encoder = {"params": params["text_encoder"]}
  want = jax.jit(backbone.text_encoder.apply)(encoder, tokens, jnp.ones(tokens.shape, bool))
  np.testing.assert_array_equal(text.embeddings, want)


@pytest.mark.parametrize("mode", MODES)
def test_denoise_hears_every_condition(mode, key):
  backbone = _build(mode)
  params = _params(backbone)
  frames = FRAMES[mode]
  latents = backbone.padded(jax.random.normal(key, backbone.latent_shape(1, frames, 32, 32)))
  maps = jax.random.normal(key, (1, frames, 32, 32, 6))
  text = jax.jit(backbone.encode_text)(params, jnp.asarray(backbone.tokenizer("a cat"))[None])
  denoise = jax.jit(backbone.denoise)
  padding = backbone.padding((frames + 3) // 4)
  sigma, first = jnp.full(1, 0.5), latents[:, : padding + 1]
  velocity = denoise(params, latents, sigma, text, maps, Condition(first))
  assert velocity.shape == latents.shape
  silent = type(text)(jnp.zeros_like(text.embeddings), text.mask)
  others = (
    denoise(params, latents, sigma, text, jnp.zeros_like(maps), Condition(first)),
    denoise(params, latents, sigma, text, maps, Condition(first + 1.0)),
    denoise(params, latents, sigma, text, maps, None),
    denoise(params, latents, sigma, silent, maps, Condition(first)),
    denoise(params, latents, sigma + 0.1, text, maps, Condition(first)),
  )
  for other in others:
    assert np.abs(velocity - other)[:, padding + 1 :].max() > 1e-4


def test_a_photograph_and_its_cameras_stand_for_the_padding_too(key):
  # In a text-to-video model they replace the noise; an image-to-video model has the photograph
  # beside the first latent, which is padding, as in diffusers (`test_cogvideox_sampling`).
  backbone = _build("1.5")
  params = _params(backbone)
  image = jax.random.uniform(key, (1, 32, 32, 3))
  first = jax.jit(backbone.condition, static_argnums=2)(params, image, 9).first
  np.testing.assert_array_equal(first[:, 0], first[:, 1])
  assert first.shape[1] == 2 and backbone.condition(params, image, 5).first.shape[1] == 1
  latents = jax.random.normal(key, (1, 4, 4, 4, 3))
  maps = jax.random.normal(key, (1, 9, 32, 32, 6))
  text = jax.jit(backbone.encode_text)(params, jnp.asarray(backbone.tokenizer("a cat"))[None])
  denoise, sigma = jax.jit(backbone.denoise), jnp.full(1, 0.5)
  want = denoise(params, latents, sigma, text, maps, Condition(first))
  other = denoise(params, latents.at[:, :2].add(1.0), sigma, text, maps, Condition(first))
  np.testing.assert_array_equal(other, want)
  # As if the first camera had stood still for the four frames of one more latent.
  maps = jnp.concatenate([jnp.repeat(maps[:, :1], 4, axis=1), maps], axis=1)
  np.testing.assert_array_equal(denoise(params, latents, sigma, text, maps, Condition(first)), want)


PUBLISHED = {
  "cogvideox-2b": (49, 480, 720),
  "cogvideox-5b": (49, 480, 720),
  "cogvideox-5b-i2v": (49, 480, 720),
  "cogvideox-1.5-5b": (81, 768, 1360),
  "cogvideox-1.5-5b-i2v": (81, 768, 1360),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_full_sizes_fit_together(preset):
  size = PUBLISHED[preset]
  backbone = build(PRESETS[preset]["backbone"] | {"camera_channels": 6})
  backbone.check_size(*size)
  padding = int(size[0] == 81)
  params = jax.eval_shape(backbone.init, jax.random.key(0))
  latents = jax.ShapeDtypeStruct(backbone.latent_shape(1, *size), jnp.float32)
  maps = jax.ShapeDtypeStruct((1, *size, 6), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, 226), jnp.int32)
  sigma = jax.ShapeDtypeStruct((1,), jnp.float32)

  def velocity(params, latents, sigma, tokens, maps):
    text = backbone.encode_text(params, tokens)
    padded = backbone.padded(latents)
    return backbone.denoise(params, padded, sigma, text, maps, Condition(latents[:, :1]))

  padded = jax.eval_shape(velocity, params, latents, sigma, tokens, maps).shape
  assert padded == (1, latents.shape[1] + padding, *latents.shape[2:])
  video = jax.eval_shape(backbone.decode, params, latents)
  assert video.shape == (1, *size, 3)
  assert jax.eval_shape(backbone.encode, params, video).shape == latents.shape
