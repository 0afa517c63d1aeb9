"""Scores on held-out clips, with the baselines that a model has to beat."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax import losses
from d4s_jax.data.loader import Loader, Tokenize, make_loader
from d4s_jax.data.source import Source
from d4s_jax.geometry.deformation import deform, identity
from d4s_jax.models.system import System
from d4s_jax.render import render
from d4s_jax.training.motion_queries import ask, motion_error
from d4s_jax.training.sharding import whole
from d4s_jax.training.stages import Stage
from d4s_jax.types import Cameras, Clip, DynamicGaussians, Rendering

Scores = dict[str, float]
# Noise level at which the DiT is scored.
LEVEL = 0.7


def psnr(image: Float[Array, "*b h w 3"], target: Float[Array, "*b h w 3"]) -> Float[Array, "*b"]:
  """Peak signal-to-noise ratio in dB of images in [0, 1]; at most 100."""
  error = jnp.mean(jnp.square(image - target), axis=(-3, -2, -1))
  return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def correlation(rendered: Float[Array, "*b h w"], depth: Float[Array, "*b h w"]):
  """Pearson correlation of rendered and true depth over the pixels whose truth is known."""
  known = depth > 0

  def mean(x):
    return jnp.sum(jnp.where(known, x, 0), axis=(-2, -1), keepdims=True) / jnp.maximum(
      jnp.sum(known, axis=(-2, -1), keepdims=True), 1
    )

  x, y = rendered - mean(rendered), depth - mean(depth)
  scale = jnp.sqrt(mean(x * x) * mean(y * y))
  return (mean(x * y) / jnp.maximum(scale, 1e-6))[..., 0, 0]


class HeldOut(Iterable[Clip]):
  """The first batches of a source, the same clips in the same order whenever one looks.

  They are made anew each time, since those of a large model fill a host's memory. Where the source
  has too few clips for whole batches, it begins again.
  """

  def __init__(
    self,
    source: Source,
    tokenize: Tokenize,
    batch_size: int,
    batches: int,
    rows: Sequence[int] | None = None,
  ):
    """Makes nothing yet; see `make_loader` for the arguments.

    Args:
      source: the clips.
      tokenize: caption to token ids.
      batch_size: clips a batch, over all processes.
      batches: how many, fewer if the source has not so many clips.
      rows: which clips of each batch are made here; None is all of them.
    """
    self.batches = min(batches, -(-len(source) // batch_size))
    self._source, self._tokenize = _Round(source, self.batches * batch_size), tokenize
    self.batch_size, self._rows = batch_size, rows

  def __iter__(self) -> Iterator[Clip]:
    with self._loader(self.batch_size, self._rows) as loader:
      yield from loader

  def example(self) -> Clip:
    """A batch of one clip."""
    with self._loader(1) as loader:
      return next(loader)

  def _loader(self, size: int, rows: Sequence[int] | None = None) -> Loader:
    return make_loader(self._source, self._tokenize, batch_size=size, seed=None, rows=rows)


class _Round:
  """So many clips of a source, from its first one on, and from there again."""

  def __init__(self, source: Source, length: int):
    self._source, self._length = source, length

  def __len__(self) -> int:
    return self._length

  def read(self, index: int) -> Clip:
    return self._source.read(index % len(self._source))


def draw(dynamic: DynamicGaussians, cameras: Cameras) -> Rendering:
  """Draws each camera of `cameras` [*b t] at the stored time of the same index."""
  return render(deform(dynamic), cameras)


def without_motion(dynamic: DynamicGaussians) -> DynamicGaussians:
  """The same scene with the deformation switched off."""
  return dataclasses.replace(dynamic, deformation=identity(*dynamic.deformation.shape[:-1]))


def make_validation(system: System, stage: Stage) -> Callable[..., Scores]:
  """The function from parameters and batches to mean scores of what the stage trains.

  It takes one function more, which it tells after each batch how many are done, and which says
  whether to stop there, without scores.
  """

  @functools.partial(jax.jit, out_shardings=whole())
  def one(params, clip: Clip):
    latents = system.backbone.encode(params, clip.source.images)
    scores = {}
    for objective in stage.objectives:
      scores |= _SCORES[objective](system, params, clip, latents)
    return scores

  def validate(
    params: Any, batches: Iterable[Clip], stop: Callable[[int], bool] = lambda done: False
  ) -> Scores:
    scores = []
    for batch in batches:
      scores.append(jax.device_get(one(params, batch)))
      if stop(len(scores)):
        return {}
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}

  return validate


def denoised(
  system: System,
  params: Any,
  clip: Clip,
  latents: Float[Array, "b f h w c"],
  level: float = LEVEL,
  seed: int = 0,
) -> tuple[Float[Array, "b f h w c"], Float[Array, ""]]:
  """The DiT's one-step estimates from a noise level, and their flow-matching loss.

  Of a seed always the same noise, so that the numbers of two steps compare.
  """
  backbone, schedule = system.backbone, system.backbone.schedule
  padding, latents = backbone.padding(latents.shape[1]), backbone.padded(latents)
  sigma = jnp.full(len(latents), level)
  noise = jax.random.normal(jax.random.key(seed), latents.shape)
  noisy = schedule.add_noise(latents, noise, sigma)
  text = backbone.encode_text(params, clip.text)
  maps = system.camera_maps(clip.source.cameras)
  images = clip.source.images
  condition = backbone.condition(params, images[:, 0], images.shape[1])
  velocity = backbone.denoise(params, noisy, sigma, text, maps, condition)
  predicted = jnp.broadcast_to(jnp.arange(latents.shape[1]) > padding, latents.shape[:2])
  loss = losses.flow_matching(velocity, schedule.velocity(latents, noise, sigma), mask=predicted)
  estimate = schedule.to_clean(noisy, velocity, sigma)[:, padding:]
  return jnp.concatenate([latents[:, :1], estimate[:, 1:]], axis=1), loss


def _diffusion_scores(system: System, params: Any, clip: Clip, latents) -> dict[str, Array]:
  return {"flow_matching": denoised(system, params, clip, latents)[1]}


def _autoencoding_scores(system: System, params: Any, clip: Clip, latents) -> dict[str, Array]:
  decoded = jnp.clip(system.backbone.decode(params, latents), 0, 1)
  return {
    "psnr": jnp.mean(psnr(decoded, clip.source.images)),
    "latent_mean": jnp.mean(jnp.abs(jnp.mean(latents, axis=(0, 1, 2, 3)))),
    "latent_deviation": jnp.mean(jnp.std(latents, axis=(0, 1, 2, 3))),
  }


def _reconstruction_scores(system: System, params: Any, clip: Clip, latents) -> dict[str, Array]:
  dynamic, _ = system.reconstruct(params, latents, clip.source.cameras, clip.target.times)
  rendering = draw(dynamic, clip.target.cameras)
  still = draw(without_motion(dynamic), clip.target.cameras)
  target = clip.target
  return {
    "psnr": jnp.mean(psnr(rendering.image, target.images)),
    "psnr_without_motion": jnp.mean(psnr(still.image, target.images)),
    "psnr_nearest_time": jnp.mean(psnr(nearest_time(clip), target.images)),
    "psnr_nearest_camera": jnp.mean(psnr(nearest_camera(clip), target.images)),
    "depth_correlation": jnp.mean(correlation(rendering.depth, target.depth)),
    "overflow": jnp.mean(rendering.overflow.astype(jnp.float32)),
  }


def nearest_time(clip: Clip) -> Float[Array, "b v h w 3"]:
  """Baseline: the source frame nearest in time, repeated."""
  gap = jnp.abs(clip.target.times[:, :, None] - clip.source.times[:, None])
  return _pick(clip.source.images, gap)


def nearest_camera(clip: Clip) -> Float[Array, "b v h w 3"]:
  """Baseline: the source frame whose camera is nearest, by distance and turn."""
  ours, theirs = clip.source.cameras.world_from_camera, clip.target.cameras.world_from_camera
  shift = jnp.linalg.norm(theirs[:, :, None, :3, 3] - ours[:, None, :, :3, 3], axis=-1)
  turn = jnp.linalg.norm(theirs[:, :, None, :3, :3] - ours[:, None, :, :3, :3], axis=(-2, -1))
  return _pick(clip.source.images, shift + turn)


def _pick(images: Float[Array, "b f h w 3"], cost: Float[Array, "b v f"]):
  index = jnp.argmin(cost, axis=-1)
  return jnp.take_along_axis(images, index[:, :, None, None, None], axis=1)


def _distillation_scores(system: System, params: Any, clip: Clip, latents) -> dict[str, Array]:
  count = clip.source.times.shape[1]
  depth, displacement, truth = ask(system, params, clip, latents, jax.random.key(0), count)
  return {
    "log_depth": losses.log_depth(depth, clip.source.depth),
    "motion_error": motion_error(displacement, *truth),
  }


# By the names of `training.objectives`.
_SCORES = {
  "distillation": _distillation_scores,
  "autoencoding": _autoencoding_scores,
  "diffusion": _diffusion_scores,
  "reconstruction": _reconstruction_scores,
}
