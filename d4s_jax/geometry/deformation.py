"""From canonical Gaussians and their deformation to Gaussians at a time (supplement, equation 2).

mu_t = mu_0 + dmu; q_t = q_0 (x) dq, the delta on the right; scale = footprint * exp(raw scale + ds)
with the exponent clipped to LOG_SCALE_RANGE. Opacity and colour do not deform.
"""

from typing import Any

import jax.numpy as jnp
from einops import repeat
from jaxtyping import Float

from d4s_jax.geometry import EitherArray, namespace, rotations
from d4s_jax.types import LOG_SCALE_RANGE, DynamicGaussians, Gaussians

# dmu (3), dq (4), ds (3).
CHANNELS = 10


def identity(*shape: int, xp: Any = jnp) -> Float[EitherArray, "*shape 10"]:
  """The deformation that changes nothing, repeated to `shape`, in the namespace `xp`."""
  still = xp.asarray([0, 0, 0, 1, 0, 0, 0, 0, 0, 0], dtype=xp.float32)
  return xp.broadcast_to(still, (*shape, CHANNELS))


def deform(dynamic: DynamicGaussians) -> Gaussians:
  """The Gaussians at every stored time, [*b t n]."""
  return _apply(dynamic, dynamic.deformation)


def at(dynamic: DynamicGaussians, times: Float[EitherArray, "*b q"]) -> Gaussians:
  """The Gaussians at any times, [*b q n].

  Between two stored times dmu and ds run on straight lines and dq on the shorter arc; before the
  first and after the last stored time the scene stands still.

  Args:
    dynamic: a scene or a batch of scenes.
    times: clip times, for all scenes (`q`) or for each (`*b q`).
  """
  xp = namespace(dynamic.times, dynamic.deformation, times)
  stored, deformation = xp.asarray(dynamic.times), xp.asarray(dynamic.deformation)
  times = xp.broadcast_to(times, (*stored.shape[:-1], times.shape[-1]))
  passed = xp.sum(stored[..., None, :] <= times[..., :, None], axis=-1)
  last = stored.shape[-1] - 1
  before = xp.clip(passed - 1, 0, max(last - 1, 0))
  after = xp.minimum(before + 1, last)
  start = xp.take_along_axis(stored, before, axis=-1)
  gap = xp.take_along_axis(stored, after, axis=-1) - start
  fraction = xp.clip((times - start) / xp.where(gap > 0, gap, 1.0), 0.0, 1.0)
  return _apply(
    dynamic,
    _blend(
      xp.take_along_axis(deformation, before[..., None, None], axis=-3),
      xp.take_along_axis(deformation, after[..., None, None], axis=-3),
      fraction[..., None],
    ),
  )


def _blend(start, end, fraction):
  xp = namespace(start, end, fraction)
  line = start + fraction[..., None] * (end - start)
  arc = rotations.slerp(start[..., 3:7], end[..., 3:7], fraction)
  return xp.concatenate([line[..., :3], arc, line[..., 7:]], axis=-1)


def _apply(dynamic: DynamicGaussians, deformation: Float[EitherArray, "*b t n 10"]) -> Gaussians:
  xp = namespace(deformation, dynamic.raw_scales, dynamic.footprints)
  times = deformation.shape[-3]
  log_scales = repeat(dynamic.raw_scales, "... n c -> ... t n c", t=times) + deformation[..., 7:]
  footprints = repeat(dynamic.footprints, "... n -> ... t n 1", t=times)
  canonical_means = repeat(dynamic.means, "... n c -> ... t n c", t=times)
  canonical_quaternions = repeat(dynamic.quaternions, "... n c -> ... t n c", t=times)
  return Gaussians(
    means=canonical_means + deformation[..., :3],
    quaternions=rotations.multiply(canonical_quaternions, deformation[..., 3:7]),
    scales=footprints * xp.exp(xp.clip(log_scales, *LOG_SCALE_RANGE)),
    opacities=repeat(dynamic.opacities, "... n -> ... t n", t=times),
    harmonics=repeat(dynamic.harmonics, "... n k c -> ... t n k c", t=times),
  )
