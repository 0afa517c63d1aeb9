"""What a stage minimises: named terms from a batch of clips (Diff4Splat, training objective).

The data flow of joint training, from the left::

  video -> latents -> noisy latents -> DiT -> one-step clean latents -> LDRM -> views -> losses

In part of the batch the true clean latents stand in for the one-step estimate, so that the LDRM
learns from both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from d4s_jax import losses
from d4s_jax.geometry.deformation import deform
from d4s_jax.losses.lpips import load_weights
from d4s_jax.models.system import System
from d4s_jax.render import render
from d4s_jax.training.motion_queries import ask, motion_error, motion_queries
from d4s_jax.training.stages import Stage
from d4s_jax.training.validation import psnr
from d4s_jax.types import Clip

Terms = dict[str, Float[Array, ""]]
# Terms and, beside them, numbers that are only logged.
Outcome = tuple[Terms, Terms]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the objectives of a run are computed; the field names are configuration keys.

  Attributes:
    weights: weight of each loss term, by name.
    smoothness: weight of total variation inside the geometric term.
    motion_form: form of the motion loss, "paper" or "huber".
    motion_times: source frames a step asks the deformation for, for the motion loss.
    lpips: network of the perceptual term, "alex" or "vgg".
    condition_dropout: share of samples that lose prompt and camera, for guidance.
    estimated_share: share of samples whose LDRM input is the DiT's one-step estimate.
    estimated_highest: highest noise level of those samples.
    render_gradient: factor on the rendering losses' gradient into the DiT; 0 stops it.
  """

  weights: Mapping[str, float]
  smoothness: float = 0.1
  motion_form: str = "paper"
  motion_times: int = 2
  lpips: str = "vgg"
  condition_dropout: float = 0.1
  estimated_share: float = 0.5
  estimated_highest: float = 0.5
  render_gradient: float = 0.1


def make_objective(
  system: System, stage: Stage, settings: Settings, lpips: Any = None
) -> Callable[[Any, Clip, PRNGKeyArray], tuple[Float[Array, ""], Terms]]:
  """The function (parameters, clip, key) -> (loss, metrics) that a stage minimises.

  Args:
    system: the models.
    stage: what is minimised.
    settings: how.
    lpips: weights of the network `settings.lpips`, if they are at hand.
  """
  lpips = load_weights(settings.lpips) if lpips is None else lpips

  def objective(params: Any, clip: Clip, key: PRNGKeyArray):
    if "autoencoding" in stage.objectives:
      terms, numbers = autoencoding(system, params, clip, settings, lpips)
    elif "distillation" in stage.objectives:
      terms, numbers = distillation(system, params, clip, key, settings)
    else:
      terms, numbers = generation(system, stage, params, clip, key, settings, lpips)
    weights = {name: settings.weights[name] for name in terms}
    return losses.total(weights, terms), terms | numbers

  return objective


def autoencoding(system: System, params: Any, clip: Clip, settings: Settings, lpips) -> Outcome:
  """Reconstruction of the source video, and latents of mean 0 and deviation 1."""
  video = clip.source.images
  latents = system.backbone.encode(params, video)
  decoded = system.backbone.decode(params, latents)
  terms = {
    "photometric": losses.photometric(decoded, video),
    "perceptual": losses.perceptual(decoded, video, lpips, net=settings.lpips),
    "moments": losses.moments(latents),
  }
  return terms, {"psnr": jnp.mean(psnr(decoded, video))}


def generation(
  system: System,
  stage: Stage,
  params: Any,
  clip: Clip,
  key: PRNGKeyArray,
  settings: Settings,
  lpips,
) -> Outcome:
  """The terms of the diffusion, static and joint stages."""
  diffusion_key, reconstruction_key = jax.random.split(key)
  # The autoencoder is never trained here: tuning it with the LDRM makes both worse (Wonderland).
  latents = jax.lax.stop_gradient(system.backbone.encode(params, clip.source.images))
  sigma = jnp.zeros(len(latents))
  terms, numbers = {}, {}
  if "diffusion" in stage.objectives:
    terms, latents, sigma = diffusion(system, params, clip, latents, diffusion_key, settings)
  if "reconstruction" in stage.objectives:
    more, numbers = reconstruction(
      system, stage, params, clip, latents, sigma, reconstruction_key, settings, lpips
    )
    terms = terms | more
  return terms, numbers


def diffusion(
  system: System,
  params: Any,
  clip: Clip,
  clean: Float[Array, "b f h w c"],
  key: PRNGKeyArray,
  settings: Settings,
) -> tuple[Terms, Float[Array, "b f h w c"], Float[Array, "b"]]:
  """Flow matching, and the latents that the LDRM is to reconstruct from, with their noise level.

  One pass of the DiT serves both: samples chosen to feed the LDRM are noised only up to
  `estimated_highest`, the others up to pure noise.
  """
  backbone, schedule = system.backbone, system.backbone.schedule
  padding, clean = backbone.padding(clean.shape[1]), backbone.padded(clean)
  batch, frames = clean.shape[:2]
  level_key, low_key, pick_key, noise_key, drop_key = jax.random.split(key, 5)
  estimated = jax.random.bernoulli(pick_key, settings.estimated_share, (batch,))
  sigma = jnp.where(
    estimated,
    schedule.sample_sigma(low_key, batch, settings.estimated_highest),
    schedule.sample_sigma(level_key, batch),
  )
  noise = jax.random.normal(noise_key, clean.shape)
  noisy = schedule.add_noise(clean, noise, sigma)
  images = clip.source.images
  # Of the encoders nothing is trained here.
  condition = jax.lax.stop_gradient(backbone.condition(params, images[:, 0], images.shape[1]))

  dropped = jax.random.bernoulli(drop_key, settings.condition_dropout, (batch,))
  text = backbone.encode_text(params, clip.text, dropped)
  velocity = backbone.denoise(
    params, noisy, sigma, text, system.camera_maps(clip.source.cameras, dropped), condition
  )
  target = schedule.velocity(clean, noise, sigma)
  # The first frame, and padding before it, is given clean: there is nothing to predict.
  predicted = jnp.broadcast_to(jnp.arange(frames) > padding, (batch, frames))
  terms = {"flow_matching": losses.flow_matching(velocity, target, mask=predicted)}

  estimate, clean = schedule.to_clean(noisy, velocity, sigma)[:, padding:], clean[:, padding:]
  estimate = jnp.concatenate([clean[:, :1], estimate[:, 1:]], axis=1)
  estimate = _scale_gradient(estimate, settings.render_gradient)
  chosen = estimated.reshape(-1, 1, 1, 1, 1)
  return terms, jnp.where(chosen, estimate, clean), jnp.where(estimated, sigma, 0.0)


def reconstruction(
  system: System,
  stage: Stage,
  params: Any,
  clip: Clip,
  latents: Float[Array, "b f h w c"],
  sigma: Float[Array, "b"],
  key: PRNGKeyArray,
  settings: Settings,
  lpips,
) -> Outcome:
  """Renders the target views and compares colour, depth and, unless static, motion."""
  target = clip.target
  frame_key, prune_key = jax.random.split(key)
  points, frames, asked = motion_queries(
    clip, frame_key, settings.motion_times, first_only=system.ldrm.canonical == "first"
  )
  times = jnp.concatenate([target.times, clip.source.times[:, frames]], axis=1)
  views = target.times.shape[1]

  dynamic, auxiliary = system.reconstruct(
    params, latents, clip.source.cameras, times, sigma=sigma, points=points, key=prune_key
  )
  at_views = dataclasses.replace(
    dynamic, times=target.times, deformation=dynamic.deformation[:, :views]
  )
  rendering = render(deform(at_views), target.cameras)
  terms = {
    "photometric": losses.photometric(rendering.image, target.images),
    "perceptual": losses.perceptual(rendering.image, target.images, lpips, net=settings.lpips),
    "geometric": losses.geometric(
      rendering.depth, rendering.alpha, target.depth, smoothness=settings.smoothness
    ),
  }
  numbers = {
    "psnr": jnp.mean(psnr(rendering.image, target.images)),
    "alpha": jnp.mean(rendering.alpha),
    "opacity": jnp.mean(dynamic.opacities),
    "dead": jnp.mean(dynamic.opacities == 0),
    "overflow": jnp.sum(rendering.overflow),
  }
  if stage.kind != "static":
    predicted = auxiliary.displacement[:, views:]
    true, valid = asked
    terms["motion"] = losses.motion(predicted, true, valid, form=settings.motion_form)
    numbers["motion_error"] = motion_error(predicted, true, valid)
  return terms, numbers


def distillation(
  system: System, params: Any, clip: Clip, key: PRNGKeyArray, settings: Settings
) -> Outcome:
  """Depth of the Gaussians' map and displacement of tracked points, both exact; nothing is drawn.

  Not of the paper. A step takes a third of one that draws, and what a renderer says about motion
  is faint until depth is right.
  """
  latents = jax.lax.stop_gradient(system.backbone.encode(params, clip.source.images))
  depth, displacement, truth = ask(system, params, clip, latents, key, settings.motion_times)
  terms = {
    "depth": losses.log_depth(depth, clip.source.depth),
    "motion": losses.motion(displacement, *truth, form=settings.motion_form),
  }
  return terms, {"motion_error": motion_error(displacement, *truth)}


def _scale_gradient(x: Array, factor: float) -> Array:
  """`x` itself, with `factor` times its gradient."""
  return factor * x + (1 - factor) * jax.lax.stop_gradient(x)
