"""From a photograph, a camera path and a prompt to a dynamic scene (Diff4Splat, inference)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from d4s_jax.diffusion import reuse as reusing
from d4s_jax.diffusion import solvers
from d4s_jax.diffusion.guidance import guidance as guidance_weights
from d4s_jax.diffusion.sampler import Passes, sample, unconditional_passes
from d4s_jax.diffusion.schedule import LEVELS
from d4s_jax.models.system import System
from d4s_jax.pipeline import progress
from d4s_jax.pipeline.passes import Denoiser, Told
from d4s_jax.pipeline.spread import beside, spread
from d4s_jax.types import Cameras, DynamicGaussians

# The generic high-fidelity description of the supplement, section 2.1.
PROMPT = (
  "a scene with 4K ultra HD, surround motion, realistic tone, panoramic shot, wide-angle view,"
  " cinematic quality"
)

_LONGEST_PROMPT = 10_000
_LARGEST_SEED = 2**32 - 1


class _Begun(NamedTuple):
  """What is known before the first step: passes, noise, the solver's key, the first latents.

  The last of them is that of the first frame, those before it are padding (`Backbone.padding`).
  """

  passes: Passes
  noise: Float[Array, "1 F h w c"]
  key: PRNGKeyArray
  first: Float[Array, "1 k h w c"]


class Pipeline:
  """The one place where all models meet at inference.

  encode prompt and photograph -> sample latents -> reconstruct Gaussians. Pixels of the generated
  video are never decoded: the latents go straight to the LDRM. `video` decodes them for people who
  want to see what the video model alone makes.

  Each part of the parameters is taken from `params` when its turn comes, and let go after it. A
  mapping that reads them from disk thus keeps one part in memory at a time; a dictionary keeps all.

  The first latent of what is sampled is the photograph's own, for every model. (The published
  image-to-video pipelines sample that one too, and decode what they get.)

  Attributes:
    sampling: the settings.
  """

  def __init__(
    self,
    system: System,
    params: Mapping[str, Any],
    *,
    steps: int = 30,
    guidance: str = "cosine",
    scale: float = 7.5,
    solver: str = "ddim",
    negative_prompt: str = "",
    reuse: Sequence[int] = (),
  ):
    """Prepares a sampler; the arguments but the first two are the configuration's `sampling`.

    Args:
      system: the models.
      params: their parameters by part. A transformer without conditioning on cameras, as one that
        was published, follows none.
      steps: N, denoising steps.
      guidance: guidance schedule, "cosine" or "constant".
      scale: gamma_max of the cosine schedule, or the constant weight.
      solver: of the sampling, a key of `diffusion.solvers.SOLVERS`.
      negative_prompt: what guidance leads away from; "" is what training drops prompts to.
      reuse: steps, from 1 on, that reuse what the transformer's blocks added in the last step that
        is not among them (`diffusion.reuse`).

    Raises:
      ValueError: a setting is unknown or out of range.
    """
    if not 1 <= steps <= LEVELS:
      raise ValueError(f"Sampling in {steps} steps; expected 1 to {LEVELS}.")
    weights = guidance_weights(guidance, steps, scale)
    if not (np.isfinite(weights).all() and weights.min() >= 1):
      raise ValueError(
        f"Guidance {guidance!r} of scale {scale} makes weights from {weights.min():.3g} to"
        f" {weights.max():.3g}; expected finite ones of at least 1, which is no guidance."
      )
    self.sampling = dict(steps=steps, guidance=guidance, scale=scale, solver=solver)
    self._reuse = reusing.check(reuse, steps)
    self.sampling |= {"negative_prompt": negative_prompt, "reuse": list(self._reuse)}
    self._system = system
    self._params = params
    self._weights = weights
    self._solver = solver
    solvers.solver(solver)
    self._no_tokens = jnp.asarray(self._tokenize(negative_prompt))[None]
    backbone = system.backbone
    self._embed = jax.jit(backbone.encode_text)
    self._condition = jax.jit(backbone.condition, static_argnums=2)
    self._decode = jax.jit(backbone.decode)
    self._denoiser = Denoiser(backbone)
    self._reconstruct = jax.jit(functools.partial(reconstruct, system))

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
      ValueError: the number of frames or the image size is none that the model takes, the prompt
        or the seed can't be used, or the weights give no numbers.
    """
    return self.reconstruct(self.sample(image, cameras, prompt, seed), cameras)

  def sample(
    self, image: Float[np.ndarray, "h w 3"], cameras: Cameras, prompt: str, seed: int = 0
  ) -> Float[Array, "f a b c"]:
    """The first half of `__call__`: normalised latents of the clip, the first the photograph's."""
    begun = self._begin(image, cameras, prompt, seed, keep=bool(self._reuse))
    count = len(self._weights)
    passes = count - len(self._reuse) + unconditional_passes(self._weights, self._reuse)
    with progress.bar(f"sample ({passes} passes)", count, "step") as bar:
      latents = sample(
        *(begun.passes, begun.noise, self._system.backbone.schedule, self._weights),
        solver=self._solver,
        key=begun.key,
        reuse=self._reuse,
        report=bar.update,
      )
    # The first latent is the photograph's own; padding goes.
    known = begun.first.shape[1]
    latents = jnp.concatenate([begun.first[:, -1:], latents[:, known:]], axis=1)[0]
    if not jnp.isfinite(latents).all():
      raise ValueError(
        "The video model gives NaN or infinite latents: its weights are damaged, or too large for"
        " their type; convert or train it again."
      )
    return latents

  def calibrate(
    self,
    image: Float[np.ndarray, "h w 3"],
    cameras: Cameras,
    prompt: str,
    seed: int = 0,
    *,
    span: int = 3,
  ) -> Float[np.ndarray, "n n"]:
    """What reuse would cost at each step of a run: `diffusion.reuse.calibrate`.

    The arguments but the last are those of a call; the settings' own `reuse` is not followed. The
    mean over several runs is what `diffusion.reuse.choose` makes a table of.
    """
    begun = self._begin(image, cameras, prompt, seed, keep=True)
    with progress.bar("calibrate", len(self._weights), "step") as bar:
      return reusing.calibrate(
        *(begun.passes, begun.noise, self._system.backbone.schedule, self._weights),
        solver=self._solver,
        key=begun.key,
        span=span,
        # The first latent is the photograph's own.
        seen=lambda latents: latents[:, begun.first.shape[1] :],
        report=bar.update,
      )

  def _begin(
    self, image: Float[np.ndarray, "h w 3"], cameras: Cameras, prompt: str, seed: int, keep: bool
  ) -> "_Begun":
    """Embeds and encodes what a run is told, and draws its noise."""
    size, frames = (cameras.height, cameras.width), len(cameras.world_from_camera)
    self._system.check_size(frames, *size)
    if image.shape != (*size, 3):
      raise ValueError(f"The image has shape {image.shape}; its camera, {(*size, 3)}.")
    if not 0 <= seed <= _LARGEST_SEED:
      raise ValueError(f"The seed is {seed}; expected 0 to {_LARGEST_SEED}.")
    shape = self._system.backbone.latent_shape(1, frames, *size)
    tokens = jnp.asarray(self._tokenize(prompt))[None]
    params = self._part("text_encoder")
    with progress.timed("compile, and embed the prompt"), beside(params):
      text = self._embed(params, tokens)
      no_text = jax.block_until_ready(self._embed(params, self._no_tokens))
    del params
    params = self._part("autoencoder", "image_encoder")
    with progress.timed("compile, and encode the photograph"), beside(params):
      picture = spread(jnp.asarray(image)[None], params, shape[2:4])
      condition = self._condition(params, picture, frames)
      jax.block_until_ready(condition)
    del params
    params = self._part("transformer", "adapter")
    maps = self._system.camera_maps(_batched(cameras))
    if "camera" not in params["transformer"]:
      maps = None
      progress.say("note: these weights know no cameras; the trajectory is not followed.")
    # As training drops conditions: prompt and camera go together.
    told = Told(text, maps), Told(no_text, None if maps is None else 0 * maps)
    passes = self._denoiser.passes(params, *told, condition, keep=keep)
    noise_key, solver_key = jax.random.split(jax.random.key(seed))
    batch, count, *rest = shape
    noisy = (batch, self._system.backbone.padding(count) + count, *rest)
    return _Begun(passes, jax.random.normal(noise_key, noisy), solver_key, condition.first)

  def reconstruct(self, latents: Float[Array, "f h w c"], cameras: Cameras) -> DynamicGaussians:
    """The second half of `__call__`: the scene behind latents, in NumPy arrays."""
    count, size = len(cameras.world_from_camera), f"{cameras.height} x {cameras.width}"
    decoded = ("autoencoder",) if self._system.ldrm.stem else ()
    params = self._part("ldrm", *decoded)
    what = f"compile, and reconstruct from {count} frames of {size} pixels"
    with progress.timed(what), beside(params):
      batch = spread(latents[None], params, latents.shape[1:3])
      scene = self._reconstruct(params, batch, _batched(cameras))
      return jax.tree.map(lambda x: np.asarray(x[0]), scene)

  def video(self, latents: Float[Array, "f h w c"]) -> Float[np.ndarray, "F H W 3"]:
    """The generated video, in [0, 1]: what the video model makes before there is a scene."""
    params = self._part("autoencoder")
    with progress.timed("compile, and decode the video"), beside(params):
      batch = spread(latents[None], params, latents.shape[1:3])
      video = np.clip(self._decode(params, batch)[0], 0, 1)
    if not np.isfinite(video).all():
      raise ValueError(
        "The autoencoder decodes NaN or infinite colours: its weights are damaged, or too large for"
        " their type; convert or train it again."
      )
    return video

  def check(self, prompt: str) -> None:
    """Raises ValueError for a prompt that can't be used; part of what `sample` does."""
    self._tokenize(prompt)

  def _part(self, name: str, *others: str) -> dict[str, Any]:
    """A part of the parameters, and those of `others` that there are."""
    return {x: self._params[x] for x in (name, *others) if x == name or x in self._params}

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
    if self._system.backbone.tokenizer.cuts(prompt):
      progress.say(f"note: the prompt is longer than {len(tokens)} tokens; its end is not read.")
    return tokens


def _batched(cameras: Cameras) -> Cameras:
  return jax.tree.map(lambda x: jnp.asarray(x)[None], cameras)


def reconstruct(
  system: System, params: Any, latents: Float[Array, "b f h w c"], cameras: Cameras
) -> DynamicGaussians:
  """The scenes behind latents, with their deformation at the times of the cameras' frames."""
  batch, frames = cameras.world_from_camera.shape[:2]
  times = jnp.broadcast_to(jnp.linspace(0, 1, frames), (batch, frames))
  return system.reconstruct(params, latents, cameras, times)[0]
