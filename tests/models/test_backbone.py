import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS
from d4s_jax.models.backbone import BACKBONES, build
from d4s_jax.models.condition import Condition

TINY = PRESETS["tiny"]["backbone"]
CONFIG = dict(
  family="wan",
  text_length=12,
  camera_channels=6,
  schedule=dict(shift=3.0),
  autoencoder=dict(
    TINY["autoencoder"],
    base_dim=4,
    dim_mult=(1, 1, 1),
    temporal_downsample=(True, True),
    z_dim=3,
    latents_mean=(0.0, 1.0, 2.0),
    latents_std=(1, 2, 3),
  ),
  text_encoder=dict(TINY["text_encoder"], dim=16, heads=2, head_dim=8, ffn_dim=16, depth=1),
  transformer=dict(dim=24, ffn_dim=24, heads=2, depth=1),
)


@pytest.fixture(scope="module")
def backbone():
  return build(CONFIG)


@pytest.fixture(scope="module")
def params(backbone):
  return jax.jit(backbone.init)(jax.random.key(0))


def test_it_says_what_it_is(backbone):
  assert backbone.latent_channels == 3
  assert backbone.strides == (4, 8, 8)
  assert backbone.latent_shape(2, 9, 16, 32) == (2, 3, 2, 4, 3)
  assert backbone.schedule.shift == 3.0
  assert set(BACKBONES) == {"wan", "cogvideox"}


def test_parameters_are_plain_and_know_their_axes(backbone, params):
  assert params.keys() == {"autoencoder", "text_encoder", "transformer"}
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  boxed = jax.eval_shape(backbone.boxed, jax.random.key(0))
  assert jax.tree.map(jnp.shape, nn.unbox(boxed)) == jax.tree.map(jnp.shape, params)
  spec = nn.get_partition_spec(boxed)["transformer"]["blocks"]["mlp_in"]["kernel"]
  assert tuple(spec) == ("layers", "embed", "mlp")


def test_latents_are_normalised_and_decode_undoes_it(backbone, params, key):
  video = jax.random.uniform(key, (1, 5, 16, 16, 3))
  latents = jax.jit(backbone.encode)(params, video)
  assert latents.shape == backbone.latent_shape(1, 5, 16, 16)
  raw = backbone.autoencoder.clone(latents_mean=(), latents_std=())
  apply = jax.jit(raw.apply, static_argnames="method")
  variables = {"params": params["autoencoder"]}
  mean, _ = apply(variables, 2 * video - 1, method="encode")
  offset, scale = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 2.0, 3.0])
  want = (mean - offset.reshape(1, 1, 1, 1, 3)) / scale.reshape(1, 1, 1, 1, 3)
  np.testing.assert_allclose(latents, want, atol=1e-6)
  decoded = jax.jit(backbone.decode)(params, latents)
  want = (apply(variables, mean, method="decode") + 1) / 2
  # 1e-3: normalisations of an untrained decoder enlarge the rounding of the latents.
  np.testing.assert_allclose(decoded, want, atol=1e-3)


def test_text_is_zero_beyond_its_end_and_dropped_text_is_the_empty_prompt(backbone, params):
  tokens = jnp.stack([backbone.tokenizer(text) for text in ("a cat", "a dog", "")])
  encode = jax.jit(backbone.encode_text)
  text = encode(params, tokens)
  assert text.embeddings.shape == (3, 12, 16)
  np.testing.assert_array_equal(text.mask.sum(1), [6, 6, 1])
  np.testing.assert_array_equal(text.embeddings[~text.mask], 0.0)
  dropped = encode(params, tokens, jnp.array([False, True, False]))
  np.testing.assert_array_equal(dropped.embeddings[0], text.embeddings[0])
  np.testing.assert_array_equal(dropped.embeddings[1], text.embeddings[2])
  assert not np.allclose(text.embeddings[0], text.embeddings[1])


def test_denoise_hears_every_condition_once_it_is_trained(backbone, params, key):
  latents = jax.random.normal(key, backbone.latent_shape(1, 5, 16, 16))
  maps = jax.random.normal(key, (1, 5, 16, 16, 6))
  text = jax.jit(backbone.encode_text)(params, jnp.asarray(backbone.tokenizer("a cat"))[None])
  draw = np.random.default_rng(0).standard_normal
  noisy = jax.tree.map(lambda p: np.asarray(p) + 0.2 * draw(p.shape, np.float32), params)
  denoise = jax.jit(backbone.denoise)
  sigma, first = jnp.full(1, 0.5), latents[:, :1]
  velocity = denoise(noisy, latents, sigma, text, maps, Condition(first))
  assert velocity.shape == latents.shape
  silent = type(text)(jnp.zeros_like(text.embeddings), text.mask)
  others = (
    denoise(noisy, latents, sigma, text, jnp.zeros_like(maps), Condition(first)),
    denoise(noisy, latents, sigma, text, maps, Condition(first + 1.0)),
    denoise(noisy, latents, sigma, silent, maps, Condition(first)),
    denoise(noisy, latents, sigma + 0.1, text, maps, Condition(first)),
  )
  for other in others:
    assert np.abs(velocity - other)[:, 1:].max() > 1e-3
  # The noisy latents of the first frame are not looked at.
  ignored = denoise(noisy, latents.at[:, 0].set(9.0), sigma, text, maps, Condition(first))
  np.testing.assert_array_equal(velocity, ignored)


@pytest.mark.parametrize("size", [(1, 16, 16), (9, 64, 64), (49, 480, 720)])
def test_legal_sizes_pass(backbone, size):
  backbone.check_size(*size)


@pytest.mark.parametrize(
  "size, message",
  [
    ((10, 64, 64), r"frames 10 \(legal is 1 \+ 4k, nearest 9 or 13\)\.$"),
    ((9, 65, 64), r"height 65 \(legal is 16k, nearest 64 or 80\)"),
    ((9, 64, 8), r"width 8 \(legal is 16k, nearest 16\)"),
    (
      (0, 0, 64),
      r"frames 0 \(legal is 1 \+ 4k, nearest 1\), height 0 \(legal is 16k, nearest 16\)",
    ),
  ],
)
def test_illegal_sizes_are_refused_with_the_nearest_legal_ones(backbone, size, message):
  with pytest.raises(ValueError, match=message):
    backbone.check_size(*size)


def test_unknown_family_and_misspelt_keys_are_refused():
  with pytest.raises(ValueError, match="Unknown backbone family 'sora'"):
    build(CONFIG | {"family": "sora"})
  with pytest.raises(TypeError, match="dept"):
    build(CONFIG | {"transformer": dict(CONFIG["transformer"], dept=2)})


@pytest.mark.parametrize("preset", ["wan14b", "paper"])
def test_full_sizes_fit_together(preset):
  backbone = build(CONFIG | PRESETS[preset]["backbone"])
  params = jax.eval_shape(backbone.init, jax.random.key(0))
  latents = jax.ShapeDtypeStruct(backbone.latent_shape(1, 49, 480, 720), jnp.float32)
  maps = jax.ShapeDtypeStruct((1, 49, 480, 720, 6), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, 512), jnp.int32)
  sigma = jax.ShapeDtypeStruct((1,), jnp.float32)

  def velocity(params, latents, sigma, tokens, maps):
    text = backbone.encode_text(params, tokens)
    return backbone.denoise(params, latents, sigma, text, maps, Condition(latents[:, :1]))

  assert jax.eval_shape(velocity, params, latents, sigma, tokens, maps).shape == latents.shape


# As public indexes of the published files count them; written down here, not computed.
PUBLISHED = {
  "wan1.3b": dict(transformer=1_418_996_800, autoencoder=126_892_531, text_encoder=5_680_910_336),
  "wan14b": dict(transformer=14_288_491_584, autoencoder=126_892_531),
  "wan14b-i2v-480p": dict(transformer=16_394_878_784, image_encoder=630_766_080),
  "wan2.2-5b-ti2v": dict(
    transformer=4_999_787_712, autoencoder=704_688_668, text_encoder=5_680_910_336
  ),
  "cogvideox-5b": dict(text_encoder=4_762_310_656),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_full_sizes_have_the_published_numbers_of_parameters(preset):
  backbone = build(CONFIG | PRESETS[preset]["backbone"])
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  # The cameras' are ours.
  shapes["transformer"].pop("camera")
  counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes.items()}
  assert {name: counts[name] for name in PUBLISHED[preset]} == PUBLISHED[preset]
