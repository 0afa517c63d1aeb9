"""Where and when motion is asked for: tracked points as cells of the Gaussians' map."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.models.ldrm import SourcePoints
from d4s_jax.models.system import System
from d4s_jax.types import Clip

# Metres from which a displacement counts as motion.
MOVING = 0.05


def motion_queries(clip: Clip, key: PRNGKeyArray, count: int, *, first_only: bool = False):
  """Where and when the motion loss looks.

  Args:
    clip: a batch.
    key: of the choices.
    count: how many source frames.
    first_only: Gaussians are those of the first frame, so tracks start there.

  Returns:
    The tracks' points, each at a source frame in which it is visible; `count` source frames, the
    same for the whole batch; and true displacement [b count n 3] to those frames with its validity.
  """
  tracks = clip.tracks
  start_key, frame_key = jax.random.split(key)
  # The visible frame with the highest random score; a point never visible is not valid.
  length = clip.source.times.shape[1]
  seen_at = tracks.visible & (jnp.arange(length) == 0)[None, None] if first_only else tracks.visible
  score = jnp.where(seen_at, jax.random.uniform(start_key, seen_at.shape), -1.0)
  start = jnp.argmax(score, axis=-1)
  seen = jnp.max(score, axis=-1) >= 0
  frames = jax.random.choice(frame_key, length, (min(count, length),), replace=False)

  origin = jnp.take_along_axis(tracks.points, start[..., None, None], axis=2)[:, :, 0]
  camera = jax.vmap(lambda cameras, index: cameras[index])(clip.source.cameras, start)
  pixels, _ = pinhole.project(origin[:, :, None], camera)
  points = SourcePoints(start, pixels[:, :, 0])

  true = jnp.moveaxis(tracks.points[:, :, frames], 2, 1) - origin[:, None]
  valid = jnp.moveaxis(tracks.valid[:, :, frames], 2, 1) & seen[:, None]
  return points, frames, (true, valid)


def ask(
  system: System,
  params: Any,
  clip: Clip,
  latents: Float[Array, "b f h w c"],
  key: PRNGKeyArray,
  count: int,
) -> tuple[Float[Array, "b F H W"], Float[Array, "b q n 3"], tuple[Array, Array]]:
  """The depth of the Gaussians' map, and the displacement of tracked points at `count` times.

  Of the scene nothing is used: one Gaussian is kept.

  Returns:
    Depth and displacement as predicted, and the true displacement with its validity.
  """
  points, frames, truth = motion_queries(
    clip, key, count, first_only=system.ldrm.canonical == "first"
  )
  times = clip.source.times[:, frames]
  _, auxiliary = system.reconstruct(
    params, latents, clip.source.cameras, times, gaussians=1, points=points
  )
  return auxiliary.depth, auxiliary.displacement, truth


def motion_error(
  predicted: Float[Array, "b q n 3"], true: Float[Array, "b q n 3"], valid: Bool[Array, "b q n"]
) -> Float[Array, ""]:
  """End-point error of the points that move, over that of predicting no motion."""
  length = jnp.linalg.norm(true, axis=-1)
  moving = valid & (length > MOVING)
  error = jnp.linalg.norm(predicted - true, axis=-1)
  return jnp.sum(error * moving) / jnp.maximum(jnp.sum(length * moving), 1e-6)
