"""The complete loop, from a photograph and noise to latents, against diffusers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.diffusion.guidance import guidance
from d4s_jax.diffusion.sampler import apart, sample
from d4s_jax.models.backbone import Text, build
from d4s_jax.models.system import System
from d4s_jax.pipeline import Pipeline, shot
from d4s_jax.weights.clip import ENCODER
from d4s_jax.weights.wan import AUTOENCODER, TRANSFORMER
from tests.models.test_clip import torch_encoder
from tests.published_pipelines import wan_transformer
from tests.support import from_torch, random_params, small_config

# Diffusers takes all but 512 tokens of context for the image's.
STEPS, SCALE, SHIFT, LENGTH, WIDTH = 5, 3.0, 3.0, 512, 16
CLIP = dict(dim=20, ffn_dim=24, heads=2, depth=3, size=32, patch=8)
MODES = ("t2v", "i2v", "ti2v")
FRAMES, HEIGHT, WIDE = 9, 32, 48


def _backbone(mode, dtype, **schedule):
  parts = dict(
    autoencoder=dict(
      base_dim=4,
      z_dim=4,
      num_res_blocks=1,
      latents_mean=(0.5, -0.25, 0.0, 0.125),
      latents_std=(2.0, 1.0, 4.0, 0.5),
    ),
    text_encoder=dict(vocabulary=384, dim=WIDTH, depth=1, heads=2, head_dim=8, ffn_dim=16),
    transformer=dict(dim=32, ffn_dim=48, heads=2, depth=2, freq_dim=16),
  )
  parts |= {"image_encoder": CLIP} if mode == "i2v" else {}
  parts = {name: fields | {"dtype": dtype} for name, fields in parts.items()}
  settings = dict(family="wan", text_length=LENGTH, camera_channels=6)
  settings["schedule"] = dict(shift=SHIFT, **schedule)
  return build(settings | parts)


def _euler(diffusers):
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT)
  # Ours are evenly spaced down to 0 itself, theirs to the lowest level that they train at.
  levels = np.linspace(1, 0, STEPS + 1)[:-1]
  scheduler.set_timesteps = functools.partial(scheduler.set_timesteps, sigmas=levels.tolist())
  return scheduler


def _unipc(diffusers):
  """As published."""
  return diffusers.UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
  )


def _pipeline(backbone, mode, torch, scheduler=_euler):
  """Theirs with random weights, and ours with the same."""
  diffusers = pytest.importorskip("diffusers")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  image = dict(in_channels=12, image_dim=CLIP["dim"], added_kv_proj_dim=32)
  image = image if mode == "i2v" else {}
  transformer = wan_transformer(text_dim=WIDTH, freq_dim=16, ffn_dim=48, **image)
  vae = diffusers.AutoencoderKLWan(
    base_dim=4,
    z_dim=4,
    num_res_blocks=1,
    latents_mean=list(backbone.autoencoder.latents_mean),
    latents_std=list(backbone.autoencoder.latents_std),
  )
  parts = dict(tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=transformer.eval())
  params = {
    "transformer": (TRANSFORMER, transformer),
    "autoencoder": (AUTOENCODER, vae),
  }
  if mode == "i2v":
    size = CLIP["size"]
    parts["image_encoder"] = torch_encoder(CLIP)
    parts["image_processor"] = transformers.CLIPImageProcessor(
      size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    params["image_encoder"] = ENCODER, parts["image_encoder"]
  name = "WanPipeline" if mode == "t2v" else "WanImageToVideoPipeline"
  pipeline = getattr(diffusers, name)(
    scheduler=scheduler(diffusers), expand_timesteps=mode == "ti2v", **parts
  )
  pipeline.set_progress_bar_config(disable=True)
  shapes = jax.eval_shape(backbone.init, jax.random.key(0))
  shapes["transformer"].pop("camera")
  ours = {
    name: from_torch(rules, {"params": shapes[name]}, _named(model, name))
    for name, (rules, model) in params.items()
  }
  return pipeline, ours


def _named(model, part):
  prefix = "vision_model." if part == "image_encoder" else ""
  return {f"{prefix}{name}": value.numpy() for name, value in model.state_dict().items()}


def _both(mode, dtype, batch=1, solver="ddim"):
  """Latents of theirs in float32 and of ours in `dtype`, from the same noise."""
  torch = pytest.importorskip("torch")
  image_module = pytest.importorskip("PIL.Image")
  spacing, scheduler = {"ddim": ("even", _euler), "unipc": ("unipc", _unipc)}[solver]
  backbone = _backbone(mode, dtype, spacing=spacing)
  pipeline, params = _pipeline(backbone, mode, torch, scheduler)
  noise = torch.randn(batch, 4, 1 + (FRAMES - 1) // 4, HEIGHT // 8, WIDE // 8)
  prompt, empty = torch.randn(2, batch, LENGTH, WIDTH)
  pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDE, 3), np.uint8)
  given = {} if mode == "t2v" else {"image": image_module.fromarray(pixels)}
  want = _theirs(pipeline, given, noise, prompt, empty)

  denoise = jax.jit(backbone.denoise)

  def ours(noise, image, prompt, empty):
    condition = None
    if given:
      condition = jax.jit(backbone.condition, static_argnums=2)(params, image, FRAMES)

    def velocity(text):
      text = Text(text, jnp.ones(text.shape[:2], bool))
      return lambda latents, sigma: denoise(params, latents, sigma, text, None, condition)

    weights = guidance("constant", STEPS, SCALE)
    passes = apart(velocity(prompt), velocity(empty))
    latents = sample(passes, noise, backbone.schedule, weights, solver=solver)
    if mode != "ti2v":
      return latents
    return jnp.concatenate([condition.first, latents[:, 1:]], axis=1)

  image = jnp.broadcast_to(jnp.asarray(pixels)[None] / 255.0, (batch, HEIGHT, WIDE, 3))
  inputs = _channel_last(noise), image, prompt.numpy(), empty.numpy()
  got = ours(*(jnp.asarray(x) for x in inputs))
  return np.asarray(got), want


def _theirs(pipeline, given, noise, prompt, empty):
  """Latents of theirs, channel-last."""
  (latents,) = pipeline(
    **given,
    prompt_embeds=prompt,
    negative_prompt_embeds=empty,
    latents=noise,
    height=HEIGHT,
    width=WIDE,
    num_frames=FRAMES,
    num_inference_steps=STEPS,
    guidance_scale=SCALE,
    output_type="latent",
    return_dict=False,
  )
  return _channel_last(latents)


def _channel_last(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.mark.parity
@pytest.mark.parametrize(
  "mode, batch, solver", [("i2v", 2, "ddim"), ("ti2v", 2, "ddim"), ("t2v", 1, "unipc")]
)
def test_sampling_with_guidance_equals_the_pipeline_of_diffusers(mode, batch, solver):
  got, want = _both(mode, jnp.float32, batch, solver)
  # 1e-4 of the largest: ten float32 passes, their differences enlarged by guidance.
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("mode", MODES)
def test_sampling_in_bfloat16_goes_to_the_same_latents(mode):
  got, want = _both(mode, jnp.bfloat16)
  # 2% of the spread: eight bits of mantissa, ten passes, guidance.
  assert np.std(got - want) < 0.02 * np.std(want)


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["ti2v", pytest.param("i2v", marks=pytest.mark.slow)])
def test_our_pipeline_with_the_published_solver_equals_that_of_diffusers(mode):
  torch = pytest.importorskip("torch")
  image_module = pytest.importorskip("PIL.Image")
  backbone = _backbone(mode, jnp.float32, spacing="unipc")
  system = dataclasses.replace(System.build(small_config().model.to_dict()), backbone=backbone)
  theirs, params = _pipeline(backbone, mode, torch, _unipc)
  params["text_encoder"] = random_params(system)["text_encoder"]
  settings = dict(steps=STEPS, guidance="constant", scale=SCALE, solver="unipc")
  ours = Pipeline(system, params, **settings, negative_prompt="dark")
  pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDE, 3), np.uint8)
  photograph = pixels.astype(np.float32) / 255
  _, cameras = shot.photograph(photograph, shot.camera_path("spiral", FRAMES), HEIGHT, WIDE)
  begun = []
  begin = ours._begin
  ours._begin = lambda *args, **named: begun.append(begin(*args, **named)) or begun[0]
  got = ours.sample(photograph, cameras, "a cat")

  def embedded(prompt):
    tokens = jnp.asarray(backbone.tokenizer(prompt))[None]
    return torch.from_numpy(np.array(backbone.encode_text(params, tokens).embeddings))

  noise = torch.from_numpy(np.moveaxis(np.array(begun[0].noise), -1, 1).copy())
  given = {"image": image_module.fromarray(pixels)}
  want = _theirs(theirs, given, noise, embedded("a cat"), embedded("dark"))[0]
  # The published models for images sample the first latent, too; ours is the photograph's.
  np.testing.assert_allclose(got[1:], want[1:], atol=1e-4 * np.abs(want).max())
  if mode == "ti2v":
    np.testing.assert_allclose(got[0], want[0], atol=1e-4 * np.abs(want).max())
