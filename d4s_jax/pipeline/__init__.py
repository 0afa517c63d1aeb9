"""From a photograph, a camera path and a prompt to a dynamic scene (Diff4Splat, inference)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d4s_jax.diffusion.guidance import guidance
from d4s_jax.diffusion.sampler import sample
from d4s_jax.models.system import System
from d4s_jax.types import Cameras, DynamicGaussians


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
    guidance_name: str = "cosine",
    guidance_scale: float = 7.5,
  ):
    """Prepares a sampler.

    Args:
      system: the models.
      params: their parameters, as a checkpoint holds them.
      steps: N, denoising steps.
      guidance_name: guidance schedule, "cosine" or "constant".
      guidance_scale: gamma_max of the cosine schedule, or the constant weight.
    """
    self._system = system
    self._params = params
    weights = guidance(guidance_name, steps, guidance_scale)
    self._reconstruct = jax.jit(functools.partial(_photo_to_scene, system, weights))

  def __call__(
    self, image: Float[np.ndarray, "h w 3"], cameras: Cameras, prompt: str, seed: int = 0
  ) -> DynamicGaussians:
    """Generates the scene behind a photograph.

    Args:
      image: the photograph, RGB in [0, 1], of the size of `cameras`.
      cameras: the path, 1 + 4k cameras; the first took the photograph and is the identity.
      prompt: what is seen and what happens.
      seed: of the noise.

    Returns:
      One scene, without a batch axis, whose deformation is known at the times of the path's frames.

    Raises:
      ValueError: the number of frames or the image size is none that the model takes.
    """
    frames, height, width = len(cameras.world_from_camera), cameras.height, cameras.width
    self._system.check_size(frames, height, width)
    if image.shape != (height, width, 3):
      raise ValueError(f"The image has shape {image.shape}; the cameras expect {(height, width, 3)}.")
    tokens = self._system.tokenize(prompt)
    scene = self._reconstruct(
      self._params, jnp.asarray(image)[None], cameras[None], tokens[None], jax.random.key(seed)
    )
    return jax.tree.map(lambda x: x[0], scene)


def _photo_to_scene(
  system: System,
  weights: Float[np.ndarray, "steps"],
  params: Any,
  image: Float[Array, "b h w 3"],
  cameras: Cameras,
  tokens: Int[Array, "b l"],
  key: Array,
) -> DynamicGaussians:
  """The forward pass of the paper's overview figure."""
  backbone = system.backbone
  maps = system.camera_maps(cameras)
  text = backbone.encode_text(params, tokens)
  empty = backbone.encode_text(params, tokens, drop=jnp.ones(len(tokens), bool))
  first = backbone.encode(params, image[:, None])

  frames = cameras.world_from_camera.shape[1]
  noise = jax.random.normal(key, backbone.latent_shape(len(image), frames, *image.shape[1:3]))

  def conditional(latents, sigma):
    return backbone.denoise(params, latents, sigma, text, maps, first)

  def unconditional(latents, sigma):
    return backbone.denoise(params, latents, sigma, empty, jnp.zeros_like(maps), first)

  latents = sample(conditional, unconditional, noise, backbone.schedule, weights)
  latents = jnp.concatenate([first, latents[:, 1:]], axis=1)
  times = jnp.broadcast_to(jnp.linspace(0, 1, frames), (len(image), frames))
  return system.reconstruct(params, latents, cameras, times)
