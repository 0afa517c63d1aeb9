import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.diffusion.schedule import FlowMatching
from d4s_jax.models.backbone import Backbone, Text
from d4s_jax.models.condition import Condition
from d4s_jax.models.system import System
from d4s_jax.models.tokenizer import ByteTokenizer
from d4s_jax.pipeline import PROMPT, Pipeline, shot
from tests.support import random_params, small_cogvideox, small_config

FRAMES, SIDE = 5, 16


@pytest.fixture(scope="module")
def system():
  return System.build(small_config().model.to_dict())


@pytest.fixture(scope="module")
def params(system):
  return random_params(system)


@pytest.fixture(scope="module")
def pipeline(system, params):
  return Pipeline(system, params, steps=3)


def photo_and_cameras(trajectory="spiral", frames=FRAMES):
  photo = np.random.default_rng(0).random((40, 30, 3), dtype=np.float32)
  return shot.photograph(photo, shot.camera_path(trajectory, frames), SIDE, SIDE)


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_scene_follows_from_its_inputs_and_seed(pipeline, system, params, capsys):
  image, cameras = photo_and_cameras()
  dynamic = pipeline(image, cameras, "a cat", seed=3)
  assert "sample (5 passes)" in capsys.readouterr().err
  assert dynamic.means.shape == (128, 3)
  assert dynamic.deformation.shape == (FRAMES, 128, 10)
  np.testing.assert_allclose(dynamic.times, np.linspace(0, 1, FRAMES), atol=1e-6)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(dynamic))
  latents = pipeline.sample(image, cameras, "a cat", seed=3)
  assert same(pipeline.reconstruct(latents, cameras), dynamic)

  # Every input is heard. The first latent is the photograph's own, whatever else is asked.
  first = jax.jit(system.backbone.encode)(params, jnp.asarray(image)[None, None])[0]
  np.testing.assert_allclose(latents[:1], first, atol=1e-5)
  others = {
    "seed": pipeline.sample(image, cameras, "a cat", seed=4),
    "prompt": pipeline.sample(image, cameras, "dogs", seed=3),
    "camera": pipeline.sample(image, photo_and_cameras("down")[1], "a cat", seed=3),
  }
  for name, other in others.items():
    np.testing.assert_array_equal(other[:1], latents[:1])
    assert np.abs(other[1:] - latents[1:]).max() > 1e-3, name
  other = pipeline.sample(image[::-1], cameras, "a cat", seed=3)
  assert np.abs(other - latents).max(axis=(1, 2, 3)).min() > 1e-3


# Parameters that a toy doesn't look at.
ANY = collections.defaultdict(lambda: {"camera": {}})


class ToyBackbone(Backbone):
  """Encodes an image as its mean; its denoiser points at a latent that tells the conditions."""

  schedule = FlowMatching(shift=5.0)
  tokenizer = ByteTokenizer(24)

  def __init__(self):
    vars(self).update(calls=[], texts=[], reused=[])

  def latent_shape(self, batch, frames, height, width):
    return batch, 1 + (frames - 1) // 4, 1, 1, 1

  def padding(self, latents):
    return 0

  def encode(self, params, video):
    return jnp.mean(video, axis=(2, 3, 4), keepdims=True)

  def decode(self, params, latents):
    return latents

  def encode_text(self, params, tokens):
    return Text(tokens[..., None].astype(jnp.float32), tokens > 0)

  def condition(self, params, image, frames):
    return Condition(self.encode(params, image[:, None]))

  def denoise(self, params, latents, sigma, text, maps, condition):
    conditional = bool(jnp.any(maps != 0))
    self.texts.append((conditional, np.asarray(text.embeddings)[0, :, 0]))
    self.calls.append((conditional, float(sigma[0]), np.asarray(condition.first)))
    return (latents - (2.0 if conditional else 1.0)) / sigma.reshape(-1, 1, 1, 1, 1)

  def denoise_keeping(self, params, *args):
    return self.denoise(params, *args), self.calls[-1][:2]

  def denoise_reusing(self, params, features, *args):
    self.reused.append((features, float(args[1][0])))
    return self.denoise(params, *args)


class ToySystem(System):
  """Takes every size; its maps of cameras only say whether there are any."""

  def __init__(self, backbone):
    vars(self).update(backbone=backbone)

  def check_size(self, frames, height, width):
    pass

  def camera_maps(self, cameras, dropped=None):
    return jnp.full((1, FRAMES), float(dropped is None))


@pytest.mark.parametrize(
  "sampling, unguided",
  [
    ({"steps": 30}, 15),
    ({"steps": 30, "negative_prompt": "rain"}, 15),
    ({"steps": 4, "guidance": "constant", "scale": 1.0}, 4),
    ({"steps": 4, "guidance": "constant", "scale": 3.0}, 0),
  ],
)
def test_the_unconditional_pass_is_made_only_where_guidance_needs_it(sampling, unguided):
  backbone = ToyBackbone()
  pipeline = Pipeline(ToySystem(backbone), ANY, **sampling)
  image, cameras = photo_and_cameras()
  with jax.disable_jit():  # The toy looks at concrete values.
    latents = pipeline.sample(image, cameras, "a cat")
  # Prompt and camera go together.
  texts = {True: "a cat", False: sampling.get("negative_prompt", "")}
  for flag, tokens in backbone.texts:
    np.testing.assert_array_equal(tokens, backbone.tokenizer(texts[flag]))
  steps = sampling["steps"]
  conditional = [level for flag, level, _ in backbone.calls if flag]
  unconditional = [level for flag, level, _ in backbone.calls if not flag]
  np.testing.assert_allclose(conditional, backbone.schedule.levels(steps).sigma[:-1], rtol=1e-6)
  # Guidance falls, so the passes that are saved are the last ones.
  assert unconditional == conditional[: steps - unguided]
  assert all(np.allclose(first, image.mean(), atol=1e-5) for _, _, first in backbone.calls)
  # The last step goes to its prediction: 1 + weight * (2 - 1).
  last = 2.0 if unguided else 1 + sampling["scale"]
  np.testing.assert_allclose(latents[1:], last, atol=1e-4)
  np.testing.assert_allclose(latents[:1], image.mean(), atol=1e-5)


def test_steps_reuse_features_of_their_own_branch(capsys):
  backbone = ToyBackbone()
  pipeline = Pipeline(ToySystem(backbone), ANY, steps=6, reuse=[4, 1])
  assert pipeline.sampling["reuse"] == [1, 4]
  image, cameras = photo_and_cameras()
  with jax.disable_jit():  # The toy looks at concrete values.
    pipeline.sample(image, cameras, "a cat")
  # Of six steps, three are guided.
  assert "sample (6 passes)" in capsys.readouterr().err
  levels = [float(level) for level in backbone.schedule.levels(6).sigma[:-1]]
  wanted = [(True, 0, 1), (False, 0, 1), (True, 3, 4)]
  assert len(backbone.reused) == len(wanted)
  for ((flag, kept), level), (branch, full, step) in zip(backbone.reused, wanted):
    assert flag == branch
    np.testing.assert_allclose([kept, level], [levels[full], levels[step]], rtol=1e-6)


@pytest.mark.parametrize(
  "sampling, message",
  [
    ({"steps": 8, "reuse": (0,)}, "none to be 0: before the first step there is nothing to reuse"),
    ({"steps": 0}, "0 steps; expected 1 to 1000"),
    ({"steps": 1001}, "1001 steps; expected 1 to 1000"),
    ({"guidance": "linear"}, "Unknown guidance 'linear'"),
    ({"scale": float("nan")}, "scale nan"),
    ({"scale": -1.0}, "expected finite ones of at least 1"),
    ({"guidance": "constant", "scale": 0.5}, "weights from 0.5 to 0.5"),
  ],
)
def test_settings_that_cant_be_sampled_with_are_refused(system, sampling, message):
  with pytest.raises(ValueError, match=message):
    Pipeline(system, {}, **sampling)


def test_inputs_that_cant_be_used_are_refused_before_the_work(system):
  pipeline = Pipeline(system, {})  # Without parameters any work would fail.
  image, cameras = photo_and_cameras()
  with pytest.raises(ValueError, match=r"frames 4 \(legal is 1 \+ 4k, nearest 1 or 5\)"):
    pipeline(*photo_and_cameras(frames=4), "a cat")
  with pytest.raises(ValueError, match=r"image has shape \(16, 15, 3\)"):
    pipeline(image[:, 1:], cameras, "a cat")
  with pytest.raises(ValueError, match="not text"):
    pipeline(image, cameras, b"caf\xe9".decode("utf-8", errors="surrogateescape"))
  with pytest.raises(ValueError, match="prompt of 20000 characters"):
    pipeline(image, cameras, "miaow" * 4000)
  for seed in (-1, 2**32):
    with pytest.raises(ValueError, match=f"seed is {seed}"):
      pipeline(image, cameras, "a cat", seed)


def test_weights_that_are_no_numbers_are_told_before_anything_is_decoded(system, params):
  damaged = params | {"transformer": jax.tree.map(lambda x: x * np.nan, params["transformer"])}
  with pytest.raises(ValueError, match="NaN or infinite latents: its weights are damaged"):
    Pipeline(system, damaged, steps=1).sample(*photo_and_cameras(), "a cat")


def test_a_damaged_autoencoder_is_not_blamed_on_the_picture(system, params):
  damaged = params | {"autoencoder": jax.tree.map(lambda x: x * np.nan, params["autoencoder"])}
  with pytest.raises(ValueError, match="decodes NaN or infinite colours: its weights are damaged"):
    Pipeline(system, damaged, steps=1).video(
      jnp.zeros(system.backbone.latent_shape(1, 5, 16, 16)[1:])
    )


def test_seeds_reach_over_32_bits_without_collision():
  keys = [jax.random.key_data(jax.random.key(seed)) for seed in (0, 1, 2**31, 2**32 - 1)]
  assert len({tuple(key.tolist()) for key in keys}) == 4


@pytest.mark.parametrize(
  "prompt, noted", [("", False), ("x" * 23, False), ("x" * 24, True), ("é" * 12, True)]
)
def test_a_prompt_that_is_cut_is_noted(prompt, noted, capsys):
  pipeline = Pipeline(ToySystem(ToyBackbone()), {})
  pipeline._tokenize(prompt)
  assert ("longer than 24 tokens" in capsys.readouterr().err) == noted


def test_the_generic_prompt_fits_the_tiny_model():
  assert len(PROMPT) < 128


def test_what_is_sampled_beside_a_video_is_thrown_away():
  # Tokens of two latents, and a video of three: a fourth is padded in front.
  system = System.build(small_cogvideox(patch=(2, 2, 2)).model.to_dict())
  pipeline = Pipeline(system, random_params(system), steps=2)
  image, cameras = photo_and_cameras(frames=9)
  latents = pipeline.sample(image, cameras, "a cat")
  assert latents.shape == system.backbone.latent_shape(1, 9, SIDE, SIDE)[1:]
  assert pipeline.video(latents).shape == (9, SIDE, SIDE, 3)
  assert np.isfinite(pipeline.calibrate(image, cameras, "a cat")[1, 0])
