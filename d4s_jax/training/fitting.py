"""A scene and the video it is fitted to."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry.deformation import at
from d4s_jax.render import render
from d4s_jax.training import refinement, validation
from d4s_jax.types import DynamicGaussians, Views

# How far the aspect of a video may be from its scene's.
_SAME = 0.02
# Metres to what is seen where nothing is.
_NOWHERE = 2.0
_MOST_STEPS = 1_000_000
# Which frames a fit doesn't see: the fifth and every eighth after it.
_HELD, _EVERY = 4, 8


def video_views(video: Float[np.ndarray, "f h w 3"], metadata: SceneMetadata) -> Views:
  """A video as views from a scene's own cameras, at their times.

  Raises:
    ValueError: it has not a frame for each camera, another aspect, or less than 11 pixels a side.
  """
  cameras = metadata.cameras
  frames, height, width, _ = video.shape
  if frames != len(cameras.world_from_camera):
    raise ValueError(
      f"The video has {frames} frames and the scene {len(cameras.world_from_camera)} cameras;"
      " expected a frame for each."
    )
  if abs(math.log(width / height * cameras.height / cameras.width)) > _SAME:
    raise ValueError(
      f"The video has {width} x {height} pixels and the scene {cameras.width} x {cameras.height};"
      " expected the same aspect."
    )
  if min(height, width) < 11:
    raise ValueError(f"A video of {width} x {height} pixels; expected at least 11 a side.")
  depth: Any = np.zeros(video.shape[:3], np.float32)
  images: Any = video
  resized = pinhole.resize(cameras, height, width)
  return Views(images=images, depth=depth, cameras=resized, times=metadata.times)


def hold_out(views: Views) -> tuple[Views, Views | None]:
  """The views to fit, and the fifth and every eighth after it, to see whether fitting helps.

  Returns:
    Both; of fewer than five views all and None.
  """
  count = len(views.times)
  held = np.arange(count) % _EVERY == _HELD
  if not held.any():
    return views, None

  def chosen(which: np.ndarray) -> Views:
    return jax.tree.map(lambda x: np.asarray(x)[which], views)

  return chosen(~held), chosen(held)


def psnr(dynamic: DynamicGaussians, views: Views) -> float:
  """Mean PSNR of the views, dB."""
  return float(np.mean(psnr_of_views(dynamic, views)))


def psnr_of_views(dynamic: DynamicGaussians, views: Views) -> Float[np.ndarray, "v"]:
  """PSNR of each view, dB."""
  drawn = jnp.clip(_draw(dynamic, views.cameras, jnp.asarray(views.times)).image, 0, 1)
  return np.asarray(validation.psnr(drawn, jnp.asarray(views.images)))


def extent(dynamic: DynamicGaussians, views: Views) -> float:
  """Median depth of what the first view sees, metres."""
  first = jax.tree.map(lambda x: x[:1], (views.cameras, views.times))
  depth = np.asarray(_draw(dynamic, first[0], jnp.asarray(first[1])).depth)
  return float(np.median(depth[depth > 0])) if (depth > 0).any() else _NOWHERE


def fit(
  dynamic: DynamicGaussians,
  views: Views,
  steps: int,
  seed: int = 0,
  report: Callable[[], Any] = lambda: None,
) -> DynamicGaussians:
  """The scene after so many steps of `refinement.refine`.

  Args:
    dynamic: the start.
    views: what it is to look like.
    steps: of the schedule, all of which are made.
    seed: of what is drawn.
    report: is called after each step.

  Raises:
    ValueError: the number of steps is out of range.
  """
  if not 1 <= steps <= _MOST_STEPS:
    raise ValueError(f"{steps} steps; expected 1 to {_MOST_STEPS}.")

  def proceed(number: int) -> bool:
    if number:
      report()
    return number < steps

  return refinement.refine(
    *(dynamic, views),
    extent=extent(dynamic, views),
    key=jax.random.key(seed),
    proceed=proceed,
    steps=steps,
  )


def refined(metadata: SceneMetadata, steps: int) -> SceneMetadata:
  """The metadata of a scene that was refined."""
  origin = f"{metadata.checkpoint or 'unknown'}, refined in {steps} steps"
  return dataclasses.replace(metadata, checkpoint=origin)


@jax.jit
def _draw(dynamic, cameras, times):
  return render(at(dynamic, times), cameras)
