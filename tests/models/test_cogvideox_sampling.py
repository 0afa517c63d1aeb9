"""The complete loop, from a photograph and noise to latents and video, against diffusers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.diffusion.guidance import guidance
from d4s_jax.diffusion.sampler import apart, sample
from d4s_jax.models.backbone import Text, build
from d4s_jax.models.system import System
from d4s_jax.pipeline import Pipeline, shot
from tests.models.cogvideox_oracle import (
  autoencoder_parameters,
  channel_last,
  torch_autoencoder,
  torch_transformer,
  transformer_parameters,
)
from tests.support import random_params, small_config

STEPS, SCALE, LENGTH, WIDTH = 5, 3.0, 7, 16
AUTOENCODER = dict(widths=(4, 4, 4, 4), z_dim=4, num_res_blocks=1, groups=2, scale=0.7)
# Transformer, SNR shift, frames; pictures are 32 x 48.
VARIANTS = {
  "2b": (dict(positions="sine"), 3.0, 9),
  "5b": (dict(grid=(3, 3, 5)), 1.0, 9),
  "5b-i2v": (dict(positions="learned", grid=(3, 2, 3), takes_image=True), 1.0, 9),
  "1.5-5b": (dict(patch=(2, 2, 2)), 1.0, 13),
  "1.5-5b-i2v": (dict(patch=(2, 2, 2), takes_image=True, offset=True), 1.0, 13),
  # Three latents, as the published 21 an odd number: a fourth is padded in front.
  "1.5-5b-padded": (dict(patch=(2, 2, 2)), 1.0, 9),
  "1.5-5b-i2v-padded": (dict(patch=(2, 2, 2), takes_image=True, offset=True), 1.0, 9),
}


def _backbone(transformer, snr_shift, dtype=jnp.float32):
  return build(
    dict(
      family="cogvideox",
      text_length=LENGTH,
      camera_channels=6,
      schedule=dict(snr_shift=snr_shift),
      autoencoder=AUTOENCODER | dict(inverted="patch" in transformer, dtype=dtype),
      text_encoder=dict(
        vocabulary=384, dim=WIDTH, depth=1, heads=2, head_dim=8, ffn_dim=16, per_layer_bias=False
      ),
      transformer=dict(heads=2, head_dim=16, depth=2, time_dim=24, dtype=dtype) | transformer,
    )
  )


def _pipeline(backbone, snr_shift, scheduler="CogVideoXDDIMScheduler"):
  """Theirs, with random weights."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  torch.manual_seed(0)
  fields = {name: getattr(backbone.transformer, name) for name in ("heads", "head_dim", "depth")}
  fields |= {
    name: getattr(backbone.transformer, name)
    for name in ("time_dim", "patch", "positions", "grid", "takes_image", "offset", "text_length")
  }
  fields["out_channels"] = 4
  transformer = torch_transformer(fields, WIDTH)
  if fields["positions"] == "learned":
    torch.nn.init.normal_(transformer.patch_embed.pos_embedding)
  vae = torch_autoencoder(AUTOENCODER, inverted=backbone.autoencoder.inverted)
  # No variance: they sample the latents of the image, and we take the mean.
  last = vae.encoder.conv_out.conv
  last.weight.data[4:], last.bias.data[4:] = 0.0, -100.0
  scheduler = getattr(diffusers, scheduler)(
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    snr_shift_scale=snr_shift,
  )
  name = "CogVideoXImageToVideoPipeline" if fields["takes_image"] else "CogVideoXPipeline"
  pipeline = getattr(diffusers, name)(
    tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
  )
  pipeline.set_progress_bar_config(disable=True)
  params = {
    "transformer": transformer_parameters(_arrays(transformer), fields),
    "autoencoder": autoencoder_parameters(_arrays(vae), AUTOENCODER),
  }
  return torch, pipeline, params


def _made(pipeline, prompt, negative, noise, frames, **more):
  """What theirs makes of embedded prompts and noise."""
  (made,) = pipeline(
    **more,
    prompt_embeds=prompt,
    negative_prompt_embeds=negative,
    latents=noise,
    height=32,
    width=48,
    num_frames=frames,
    num_inference_steps=STEPS,
    guidance_scale=SCALE,
    return_dict=False,
    max_sequence_length=LENGTH,
  )
  return made


def _arrays(model):
  return {name: value.numpy() for name, value in model.state_dict().items()}


def _adding(monkeypatch, scheduler, key, shape):
  """Has their solver add the noise that ours does, one a step, in place of its own."""
  torch = pytest.importorskip("torch")
  drawn = (jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(STEPS))
  noises = [torch.from_numpy(np.array(x)).movedim(-1, 2) for x in drawn]
  module = "diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor"
  monkeypatch.setattr(module, lambda shape, generator, **_: generator)
  step, noises = scheduler.step, iter(noises)
  scheduler.step = lambda *args, **named: step(*args, generator=next(noises), **named)


@pytest.mark.parity
@pytest.mark.parametrize(
  ("variant", "solver", "dtype"),
  [
    *((name, "ddim", jnp.float32) for name in VARIANTS),
    ("5b", "dpm", jnp.float32),
    ("2b", "ddim", jnp.bfloat16),
    ("1.5-5b-i2v", "ddim", jnp.bfloat16),
  ],
)
def test_sampling_with_guidance_equals_the_pipeline_of_diffusers(
  variant, solver, dtype, monkeypatch
):
  transformer, snr_shift, frames = VARIANTS[variant]
  backbone = _backbone(transformer, snr_shift, dtype)
  torch, pipeline, params = _pipeline(backbone, snr_shift, f"CogVideoX{solver.upper()}Scheduler")
  count = 1 + (frames - 1) // 4
  padding = backbone.padding(count)
  assert padding == variant.endswith("padded")
  noise = torch.randn(1, padding + count, 4, 4, 6)
  prompt, empty = torch.randn(2, 1, LENGTH, WIDTH)
  image = torch.rand(1, 3, 32, 48)
  given = {"image": image} if backbone.transformer.takes_image else {}
  key = jax.random.key(3)
  if solver == "dpm":
    _adding(monkeypatch, pipeline.scheduler, key, channel_last(noise).shape)
  latents = []
  video = _made(
    *(pipeline, prompt, empty, noise, frames),
    **given,
    callback_on_step_end=lambda *args: latents.append(args[-1]["latents"]) or args[-1],
    output_type="pt",
  )

  condition = jax.jit(backbone.condition, static_argnums=2)
  denoise = jax.jit(backbone.denoise)

  def ours(noise, image, prompt, empty):
    known = condition(params, image, frames) if given else None

    def velocity(text):
      text = Text(text, jnp.ones(text.shape[:2], bool))
      return lambda latents, sigma: denoise(params, latents, sigma, text, None, known)

    weights = guidance("constant", STEPS, SCALE)
    passes = apart(velocity(prompt), velocity(empty))
    return sample(passes, noise, backbone.schedule, weights, solver=solver, key=key)

  inputs = channel_last(noise), channel_last(image, 1), prompt.numpy(), empty.numpy()
  got = ours(*(jnp.asarray(x) for x in inputs))
  want = channel_last(latents[-1])
  if dtype == jnp.bfloat16:
    # 2% of the spread: eight bits of mantissa, ten passes, guidance.
    assert 1e-4 < np.std(got - want) / np.std(want) < 0.02
    return
  # 1e-4 of the largest: ten float32 passes, their differences enlarged by guidance.
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  if count % 2:  # Of an even number they decode four frames of the first.
    decoded = jax.jit(backbone.decode)(params, got[:, padding:])
    assert decoded.shape == (1, frames, 32, 48, 3)
    np.testing.assert_allclose(np.clip(decoded, 0, 1), channel_last(video), atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(
  ("variant", "solver"),
  [
    *(("2b", "ddim"), ("1.5-5b-i2v-padded", "ddim")),
    pytest.param("5b", "dpm", marks=pytest.mark.slow),
    pytest.param("5b-i2v", "dpm", marks=pytest.mark.slow),
    pytest.param("1.5-5b-padded", "ddim", marks=pytest.mark.slow),
    pytest.param("1.5-5b-i2v", "ddim", marks=pytest.mark.slow),
  ],
)
def test_our_pipeline_equals_that_of_diffusers_from_photograph_to_video(
  variant, solver, monkeypatch
):
  transformer, snr_shift, frames = VARIANTS[variant]
  backbone = _backbone(transformer, snr_shift)
  system = dataclasses.replace(System.build(small_config().model.to_dict()), backbone=backbone)
  torch, theirs, params = _pipeline(backbone, snr_shift, f"CogVideoX{solver.upper()}Scheduler")
  params["text_encoder"] = random_params(system)["text_encoder"]
  settings = dict(steps=STEPS, guidance="constant", scale=SCALE, solver=solver)
  ours = Pipeline(system, params, **settings, negative_prompt="dark")
  photograph = np.random.default_rng(0).random((32, 48, 3), np.float32)
  _, cameras = shot.photograph(photograph, shot.camera_path("spiral", frames), 32, 48)
  begun = []
  begin = ours._begin
  ours._begin = lambda *args, **named: begun.append(begin(*args, **named)) or begun[0]
  takes_image, passes = backbone.transformer.takes_image, ours._denoiser.passes
  if not takes_image:
    # Ours has the photograph in the place of the first latents, theirs knows none.
    ours._denoiser.passes = lambda *told, keep: passes(*told[:-1], None, keep=keep)
  got = ours.sample(photograph, cameras, "a cat")
  video = ours.video(got)

  def embedded(prompt):
    tokens = jnp.asarray(backbone.tokenizer(prompt))[None]
    return torch.from_numpy(np.array(backbone.encode_text(params, tokens).embeddings))

  def as_theirs(x):
    return torch.from_numpy(np.array(x)).movedim(-1, 2)

  if solver == "dpm":
    _adding(monkeypatch, theirs.scheduler, begun[0].key, begun[0].noise.shape)
  noise, first = as_theirs(begun[0].noise), as_theirs(begun[0].first)
  given = {"image": torch.from_numpy(photograph).movedim(-1, 0)[None]} if takes_image else {}
  prompts = embedded("a cat"), embedded("dark")
  latents = _made(theirs, *prompts, noise, frames, **given, output_type="latent")
  padding = backbone.padding(1 + (frames - 1) // 4)
  # Those of images sample its latents too; ours are the photograph's own. They throw padding away
  # with the frames, or with the latents.
  want = latents[:, latents.shape[1] - len(got) :].clone()
  want[:, :1] = first[:, -1:]
  np.testing.assert_allclose(
    got, channel_last(want)[0], atol=1e-4 * float(want.abs().max()), err_msg=f"{padding} padded"
  )
  with torch.no_grad():
    decoded = theirs.decode_latents(want)
  if len(got) % 2:  # Of an even number they decode four frames of the first.
    expected = np.clip(0.5 * (channel_last(decoded, 1)[0] + 1), 0, 1)
    np.testing.assert_allclose(video, expected, atol=2e-4)
