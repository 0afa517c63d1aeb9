"""Scores of a scene against the truth: other views, depth, motion, and a closed path."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry.deformation import at
from d4s_jax.geometry.harmonics import from_rgb
from d4s_jax.render import render
from d4s_jax.types import Cameras, Clip, DynamicGaussians, Gaussians

ALIGNMENTS = ("none", "median", "scale", "scale and shift")
# A pixel has a depth if the scene covers more than this of it.
_COVERED = 0.5
# Metres that a point has to move to count as moving, and at most to count as standing.
MOVING, STILL = 0.02, 1e-3
# A brightness half way up, so that displacements of either sign are colours above 0.
_MIDDLE = 0.5


def depth_scores(
  depth: Float[np.ndarray, "*v h w"],
  truth: Float[np.ndarray, "*v h w"],
  *,
  align: str = "median",
  cap: float = 80.0,
) -> dict[str, float]:
  """AbsRel = mean |d - d*| / d* and delta1 = share with max(d / d*, d* / d) < 1.25.

  Over all pixels of a sequence whose truth is known and at most `cap` metres and which have a
  depth, after one alignment of the sequence.

  Args:
    depth: metres; 0 where there is none.
    truth: metres; 0 where it is unknown.
    align: a name in ALIGNMENTS: nothing; the ratio of medians; least squares of a factor; of a
      factor and a shift.
    cap: the largest true depth that counts.

  Returns:
    "absolute_relative", "delta1", "scale" (the factor) and "covered", the share of pixels with a
    known truth that have a depth.

  Raises:
    ValueError: no pixel has both, or the alignment is unknown.
  """
  if align not in ALIGNMENTS:
    raise ValueError(f"Alignment {align!r}; expected one of {', '.join(ALIGNMENTS)}.")
  truth, depth = np.asarray(truth, np.float64), np.asarray(depth, np.float64)
  known = (truth > 0) & (truth <= cap)
  both = known & (depth > 0)
  if not both.any():
    raise ValueError("No pixel has both a depth and a known true one.")
  found, wanted = depth[both], truth[both]
  scale, shift = 1.0, 0.0
  if align == "median":
    scale = float(np.median(wanted) / np.median(found))
  elif align == "scale":
    scale = float(found @ wanted / (found @ found))
  elif align == "scale and shift":
    columns = np.stack([found, np.ones_like(found)], axis=1)
    scale, shift = (float(x) for x in np.linalg.lstsq(columns, wanted, rcond=None)[0])
  found = np.maximum(scale * found + shift, 1e-6)
  ratio = np.maximum(found / wanted, wanted / found)
  return {
    "absolute_relative": float(np.mean(np.abs(found - wanted) / wanted)),
    "delta1": float(np.mean(ratio < 1.25)),
    "scale": scale,
    "covered": float(both.sum() / known.sum()),
  }


def scene_depth(
  dynamic: DynamicGaussians, cameras: Cameras, times: Float[np.ndarray, "v"]
) -> Float[np.ndarray, "v h w"]:
  """Depth of a scene where it covers more than half of a pixel, metres; 0 elsewhere."""
  drawn = _draw(dynamic, cameras, times)
  return np.asarray(jnp.where(drawn.alpha > _COVERED, drawn.depth, 0))


def scene_views(
  dynamic: DynamicGaussians, cameras: Cameras, times: Float[np.ndarray, "v"]
) -> Float[np.ndarray, "v h w 3"]:
  """What a scene looks like, over black."""
  return np.clip(np.asarray(_draw(dynamic, cameras, times).image), 0, 1)


def motion_scores(dynamic: DynamicGaussians, clip: Clip) -> dict[str, float]:
  """End-point errors of 3D motion from the first frame on, at the true tracks.

  A point's displacement is that of the Gaussians that are drawn at its pixel of the first frame,
  weighted as colours are; where nothing is drawn it is 0.

  Returns:
    "end_point" (metres, moving points at all later frames), "over_none" (its ratio to that of
    predicting no motion), "drift" (metres, points that stand). NaN where there are no such points.

  Raises:
    ValueError: the clip has no tracks that are seen in the first frame.
  """
  points, valid = np.asarray(clip.tracks.points), np.asarray(clip.tracks.valid)
  seen = np.asarray(clip.tracks.visible)[:, 0] & valid[:, 0]
  if not seen.any():
    raise ValueError("No track is seen in the first frame.")
  points, valid = points[seen], valid[seen]
  first = jax.tree.map(lambda x: np.asarray(x)[0], clip.source.cameras)
  pixels, _ = pinhole.project(points[:, 0], first)
  columns = np.clip(np.floor(np.asarray(pixels[:, 0])).astype(int), 0, first.width - 1)
  rows = np.clip(np.floor(np.asarray(pixels[:, 1])).astype(int), 0, first.height - 1)
  times = np.asarray(clip.source.times)
  flow = displacement(dynamic, first, times)[1:, rows, columns]
  true = np.moveaxis(points[:, 1:] - points[:, :1], 0, 1)
  known = np.moveaxis(valid[:, 1:], 0, 1)
  length = np.linalg.norm(true, axis=-1)
  error = np.linalg.norm(flow - true, axis=-1)
  moving, still = known & (length > MOVING), known & (length < STILL)

  def mean(values, chosen):
    return float(values[chosen].mean()) if chosen.any() else float("nan")

  end_point = mean(error, moving)
  return {
    "end_point": end_point,
    "over_none": end_point / mean(length, moving) if moving.any() else float("nan"),
    "drift": mean(np.linalg.norm(flow, axis=-1), still),
  }


def displacement(
  dynamic: DynamicGaussians, camera: Cameras, times: Float[np.ndarray, "t"]
) -> Float[np.ndarray, "t h w 3"]:
  """How far what is seen at each pixel at times[0] has gone at each time, metres."""
  start = at(dynamic, jnp.asarray(times[:1]))
  moved = at(dynamic, jnp.asarray(times)).means - start.means
  # Displacements are drawn as colours, which are cut at 0.
  unit = 2 * jnp.maximum(jnp.max(jnp.abs(moved)), 1e-6)
  # One time at a time: all of them would be as many scenes in memory.
  return np.stack([_flow(start, part, camera, unit) for part in moved])


@jax.jit
def _flow(
  start: Gaussians, moved: Float[Array, "n 3"], camera: Cameras, unit: Float[Array, ""]
) -> Float[Array, "h w 3"]:
  colours = from_rgb(_MIDDLE + moved / unit)
  drawn = render(dataclasses.replace(start, harmonics=colours[None]), _single(camera))
  alpha = drawn.alpha[0, ..., None]
  covered = alpha > 0
  return jnp.where(covered, drawn.image[0] / jnp.where(covered, alpha, 1) - _MIDDLE, 0) * unit


def cycle_psnr(first: Float[np.ndarray, "h w 3"], last: Float[np.ndarray, "h w 3"]) -> float:
  """10 log10(1 / MSE) of the first and last frame of a closed path; infinite if they are equal."""
  error = float(np.mean(np.square(np.asarray(first, np.float64) - last)))
  return float(-10 * np.log10(error)) if error > 0 else float("inf")


def _single(camera: Cameras) -> Cameras:
  return jax.tree.map(lambda x: jnp.asarray(x)[None], camera)


@functools.partial(jax.jit)
def _draw(dynamic: DynamicGaussians, cameras: Cameras, times: Float[Array, "v"]):
  return render(at(dynamic, times), cameras)
