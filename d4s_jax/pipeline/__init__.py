"""From a photograph, a camera path and a prompt to a dynamic scene (Diff4Splat, inference)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d4s_jax.diffusion.guidance import guidance as guidance_weights
from d4s_jax.diffusion.sampler import sample, unconditional_passes
from d4s_jax.models.system import System
from d4s_jax.pipeline import progress
from d4s_jax.types import Cameras, DynamicGaussians

# The generic high-fidelity description of the supplement, section 2.1.
PROMPT = (
  "a scene with 4K ultra HD, surround motion, realistic tone, panoramic shot, wide-angle view,"
  " cinematic quality"
)

_LONGEST_PROMPT = 10_000
_LARGEST_SEED = 2**32 - 1


class Pipeline:
  """The one place where all models meet at inference.

  encode the photograph -> sample latents -> reconstruct Gaussians. Pixels of the generated video
  are never decoded: the latents go straight to the LDRM.
  """

  def __init__(
    self,
    system: System,
    params: Any,
    *,
    steps: int = 30,
    guidance: str = "cosine",
    scale: float = 7.5,
  ):
    """Prepares a sampler; the arguments but the first two are the configuration's `sampling`.

    Args:
      system: the models.
      params: their parameters, as a checkpoint holds them.
      steps: N, denoising steps.
      guidance: guidance schedule, "cosine" or "constant".
      scale: gamma_max of the cosine schedule, or the constant weight.

    Raises:
      ValueError: a setting is unknown or out of range.
    """
    if steps < 1:
      raise ValueError(f"Sampling in {steps} steps; expected at least 1.")
    weights = guidance_weights(guidance, steps, scale)
    if not (np.isfinite(weights).all() and weights.min() >= 1):
      raise ValueError(
        f"Guidance {guidance!r} of scale {scale} makes weights from {weights.min():.3g} to"
        f" {weights.max():.3g}; expected finite ones of at least 1, which is no guidance."
      )
    self._system = system
    self._params = params
    self._weights = weights
    self._sample = jax.jit(functools.partial(_sample, system, weights))
    self._reconstruct = jax.jit(functools.partial(_reconstruct, system))

  def __call__(
    self, image: Float[np.ndarray, "h w 3"], cameras: Cameras, prompt: str, seed: int = 0
  ) -> DynamicGaussians:
    """Generates the scene behind a photograph; says on standard error how far it is.

    Args:
      image: the photograph, RGB in [0, 1], of the size of `cameras`.
      cameras: the path, 1 + 4k cameras; the first took the photograph and is the identity.
      prompt: what is seen and what happens.
      seed: of the noise.

    Returns:
      One scene, without a batch axis, whose deformation is known at the times of the path's frames.

    Raises:
      ValueError: the number of frames or the image size is none that the model takes, or the
        prompt or the seed can't be used.
    """
    return self.reconstruct(self.sample(image, cameras, prompt, seed), cameras)

  def sample(
    self, image: Float[np.ndarray, "h w 3"], cameras: Cameras, prompt: str, seed: int = 0
  ) -> Float[Array, "f h w c"]:
    """The first half of `__call__`: normalised latents of the clip, the first the photograph's."""
    size = cameras.height, cameras.width
    self._system.check_size(len(cameras.world_from_camera), *size)
    if image.shape != (*size, 3):
      raise ValueError(f"The image has shape {image.shape}; its camera, {(*size, 3)}.")
    if not 0 <= seed <= _LARGEST_SEED:
      raise ValueError(f"The seed is {seed}; expected 0 to {_LARGEST_SEED}.")
    tokens = self._tokenize(prompt)
    steps = len(self._weights)
    passes = steps + unconditional_passes(self._weights)
    with progress.timed(f"compile, and sample in {steps} steps ({passes} passes)"):
      latents = self._sample(
        self._params,
        jnp.asarray(image)[None],
        _batched(cameras),
        jnp.asarray(tokens)[None],
        jax.random.key(seed),
      )
      return jax.block_until_ready(latents)[0]

  def reconstruct(self, latents: Float[Array, "f h w c"], cameras: Cameras) -> DynamicGaussians:
    """The second half of `__call__`: the scene behind latents."""
    count, size = len(cameras.world_from_camera), f"{cameras.height} x {cameras.width}"
    with progress.timed(f"compile, and reconstruct from {count} frames of {size} pixels"):
      scene = self._reconstruct(self._params, latents[None], _batched(cameras))
      return jax.tree.map(lambda x: x[0], jax.block_until_ready(scene))

  def _tokenize(self, prompt: str) -> Int[np.ndarray, "l"]:
    try:
      prompt.encode("utf-8")
    except UnicodeEncodeError as error:
      raise ValueError(f"The prompt {prompt!r:.60} is not text ({error.reason}).") from error
    if len(prompt) > _LONGEST_PROMPT:
      raise ValueError(
        f"A prompt of {len(prompt)} characters; expected at most {_LONGEST_PROMPT}. A caption of"
        " one sentence is enough."
      )
    tokens = self._system.tokenize(prompt)
    if prompt and np.array_equal(tokens, self._system.tokenize(prompt[:-1])):
      progress.say(f"note: the prompt is longer than {len(tokens)} tokens; its end is not read.")
    return tokens


def _batched(cameras: Cameras) -> Cameras:
  return jax.tree.map(lambda x: jnp.asarray(x)[None], cameras)


def _sample(
  system: System,
  weights: Float[np.ndarray, "steps"],
  params: Any,
  image: Float[Array, "b h w 3"],
  cameras: Cameras,
  tokens: Int[Array, "b l"],
  key: Array,
) -> Float[Array, "b f h w c"]:
  """Clean latents of the clip; the first is the photograph's own."""
  backbone = system.backbone
  frames = cameras.world_from_camera.shape[1]
  text = backbone.encode_text(params, tokens)
  maps = system.camera_maps(cameras)
  # As training drops conditions: prompt and camera go together.
  dropped = jnp.ones(len(tokens), bool)
  no_text = backbone.encode_text(params, tokens, dropped)
  no_maps = system.camera_maps(cameras, dropped)
  condition = backbone.condition(params, image, frames)
  noise = jax.random.normal(key, backbone.latent_shape(len(image), frames, *image.shape[1:3]))

  def conditional(latents, sigma):
    return backbone.denoise(params, latents, sigma, text, maps, condition)

  def unconditional(latents, sigma):
    return backbone.denoise(params, latents, sigma, no_text, no_maps, condition)

  latents = sample(conditional, unconditional, noise, backbone.schedule, weights)
  return jnp.concatenate([condition.first, latents[:, 1:]], axis=1)


def _reconstruct(
  system: System, params: Any, latents: Float[Array, "b f h w c"], cameras: Cameras
) -> DynamicGaussians:
  batch, frames = cameras.world_from_camera.shape[:2]
  times = jnp.broadcast_to(jnp.linspace(0, 1, frames), (batch, frames))
  return system.reconstruct(params, latents, cameras, times)
