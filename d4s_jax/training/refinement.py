"""Per-scene optimisation: a scene's own numbers, fitted to views of it.

The second stage of a two-stage method, which first makes a video and then fits Gaussians to it; and
what a prediction can be improved with. Losses, rates and schedule are those of 3D Gaussian
splatting (Kerbl et al., 2023): 0.8 L1 + 0.2 (1 - SSIM), positions ever slower. Densification and
pruning are those of 3DGS-MCMC (Kheradmand et al., 2024), made for a fixed number of Gaussians: what
has become transparent is moved to where opaque ones are, noise keeps positions exploring, and
opacities and sizes are held down. What deforms is fitted with the rest, smooth in time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from d4s_jax.geometry import rotations
from d4s_jax.geometry.deformation import at
from d4s_jax.losses.similarity import ssim
from d4s_jax.render import render
from d4s_jax.types import LOG_SCALE_RANGE, DynamicGaussians, Views

# Adam's step for each kind of number, as in 3D Gaussian splatting; positions and displacements are
# measured in the scene's median depth, or what stands for it.
_RATES = {
  "means": 1.6e-4,
  "quaternions": 1e-3,
  "raw_scales": 5e-3,
  "opacities": 5e-2,
  "harmonics": 2.5e-3,
  "deformation": 1e-3,
}
# At the end of the schedule positions and displacements move so much slower.
_SLOWEST = 0.01
_DISSIMILARITY = 0.2
# Weight of the displacement's second difference in time, squared, against the colour error.
_SMOOTHNESS = 1.0
_VIEWS_A_STEP = 4
# Of 3DGS-MCMC: weights of mean opacity and mean size (in extents); noise; when it moves what.
_OPACITY_WEIGHT = _SIZE_WEIGHT = 0.01
_NOISE, _STEEPNESS = 5e5, 100.0
_DEAD, _EVERY, _UNTIL = 0.005, 100, 0.8
_MOST_COPIES = 51
_OPTIMIZER = optax.scale_by_adam(eps=1e-15)

Fields = dict[str, Array]


def refine(
  dynamic: DynamicGaussians,
  views: Views,
  *,
  extent: float,
  key: PRNGKeyArray,
  proceed: Callable[[int], bool],
  steps: int = 2000,
) -> DynamicGaussians:
  """Fits a scene to views of it; see `refining`.

  Args:
    dynamic: the start.
    views: what it is to look like.
    extent: see there.
    key: see there.
    proceed: is asked before step 0, 1, ... whether to make it.
    steps: of the schedule, whether all are made or not.

  Returns:
    The scene after the last step.
  """
  states = refining(dynamic, views, extent=extent, key=key, steps=steps)
  number, scene = 0, lambda: dynamic
  while proceed(number):
    scene = next(states)
    number += 1
  return scene()


def refining(
  dynamic: DynamicGaussians,
  views: Views,
  *,
  extent: float,
  key: PRNGKeyArray,
  steps: int = 2000,
) -> Iterator[Callable[[], DynamicGaussians]]:
  """Fits a scene to views of it, without end; after `steps` steps the rates stay low.

  Args:
    dynamic: one scene, the start. Its number of Gaussians stays; those without opacity are room.
    views: pictures [v] with their cameras and clip times, what it is to look like; 11 pixels a
      side at least.
    extent: metres that count as one for positions: about the distance to what is seen.
    key: of the views drawn for each step, of noise and of what is moved where.
    steps: of the schedule.

  Yields:
    After each step, what returns the scene as it is then.
  """
  # A step looks views up by numbers that are traced.
  views = jax.tree.map(jnp.asarray, views)
  dynamic = jax.tree.map(jnp.asarray, dynamic)
  metres = jnp.asarray(extent, jnp.float32)
  fields = _fields(dynamic)
  footprints = jnp.asarray(np.asarray(dynamic.footprints, np.float32))
  moments, number = _OPTIMIZER.init(fields), 0
  seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
  while True:
    if number and number % _EVERY == 0 and number < _UNTIL * steps:
      random = np.random.default_rng([*seed, number])
      fields, footprints, moved = _relocated(fields, footprints, random)
      moments = jax.tree.map(functools.partial(_without, moved=moved), moments)
    slower = jnp.asarray(_SLOWEST ** min(number / steps, 1.0), jnp.float32)
    state = fields, moments, footprints
    told = dynamic, views, metres, slower, jax.random.fold_in(key, number)
    fields, moments = jax.block_until_ready(_step(*state, *told))
    number += 1
    now = fields, footprints
    yield lambda now=now: _scene(dynamic, *now)


# Compiled once for all scenes of one size.
@jax.jit
def _step(
  fields: Fields,
  moments: Any,
  footprints: Array,
  dynamic: DynamicGaussians,
  views: Views,
  extent: Array,
  slower: Array,
  key: PRNGKeyArray,
):
  """The fields and moments after a step."""
  of_views, of_noise = jax.random.split(key)
  count = views.times.shape[0]
  index = jax.random.choice(of_views, count, (min(_VIEWS_A_STEP, count),), replace=False)

  def loss(fields: Fields):
    scene = _scene(dynamic, fields, footprints)
    now = at(scene, views.times[index])
    image, target = render(now, views.cameras[index]).image, views.images[index]
    error = (1 - _DISSIMILARITY) * jnp.mean(jnp.abs(image - target))
    error = error + _DISSIMILARITY * (1 - jnp.mean(ssim(image, target)))
    held = _OPACITY_WEIGHT * jnp.mean(scene.opacities)
    held = held + _SIZE_WEIGHT * jnp.mean(now.scales) / extent
    return error + held + _SMOOTHNESS * _roughness(scene) / extent**2

  gradient: Any = jax.grad(loss)(fields)
  updates: Any
  updates, moments = _OPTIMIZER.update(gradient, moments)
  rates = {name: rate * _metres(name, extent, slower) for name, rate in _RATES.items()}
  fields = {name: x - rates[name] * updates[name] for name, x in fields.items()}
  wander = _wander(_scene(dynamic, fields, footprints), of_noise)
  return fields | {"means": fields["means"] + _NOISE * rates["means"] * wander}, moments


def _metres(name: str, extent: Array, slower: Array) -> Array | float:
  """Positions and displacements are in extents, and move ever slower."""
  return extent * slower if name in ("means", "deformation") else 1.0


def _fields(dynamic: DynamicGaussians) -> Fields:
  """What is fitted, Gaussians first: deformation [n t 10], opacities as logits."""
  # Through NumPy: what JAX calls weakly typed would be compiled for twice.
  fields = {name: jnp.asarray(np.asarray(getattr(dynamic, name), np.float32)) for name in _RATES}
  opacities = jnp.clip(fields["opacities"], 1e-3, 1 - 1e-3)
  return fields | {
    "opacities": jnp.log(opacities / (1 - opacities)),
    "deformation": jnp.swapaxes(fields["deformation"], 0, 1),
  }


def _scene(dynamic: DynamicGaussians, fields: Fields, footprints: Array) -> DynamicGaussians:
  move, turn, grow = jnp.split(jnp.swapaxes(fields["deformation"], 0, 1), (3, 7), axis=-1)
  deformation = jnp.concatenate([move, rotations.normalize(turn), grow], axis=-1)
  return dataclasses.replace(
    dynamic,
    means=fields["means"],
    quaternions=rotations.normalize(fields["quaternions"]),
    raw_scales=fields["raw_scales"],
    footprints=footprints,
    opacities=jax.nn.sigmoid(fields["opacities"]),
    harmonics=fields["harmonics"],
    deformation=deformation,
  )


def _roughness(scene: DynamicGaussians) -> Float[Array, ""]:
  """Mean squared second difference of the displacement in time, metres squared."""
  move = scene.deformation[..., :3]
  if move.shape[-3] < 3:
    return jnp.zeros(())
  return jnp.mean(jnp.square(move[2:] - 2 * move[1:-1] + move[:-2]))


def _wander(scene: DynamicGaussians, key: PRNGKeyArray) -> Float[Array, "n 3"]:
  """Noise in the shape of each Gaussian, for those that are nearly transparent."""
  shy = jax.nn.sigmoid(_STEEPNESS * (_DEAD - scene.opacities))
  noise = jax.random.normal(key, scene.means.shape) * shy[:, None]
  scales = scene.footprints[:, None] * jnp.exp(jnp.clip(scene.raw_scales, *LOG_SCALE_RANGE))
  turn = rotations.to_matrix(scene.quaternions)
  local = jnp.einsum("nij,ni->nj", turn, noise) * jnp.square(scales)
  return jnp.einsum("nij,nj->ni", turn, local)


def _relocated(
  fields: Fields, footprints: Array, random: np.random.Generator
) -> tuple[Fields, Array, np.ndarray]:
  """Dead Gaussians become copies of live ones, drawn by opacity, which fade and shrink for it.

  Returns:
    The numbers, the footprints, and which Gaussians are others now.
  """
  opacity = np.asarray(jax.nn.sigmoid(fields["opacities"]), np.float64)
  dead = np.flatnonzero(opacity <= _DEAD)
  live = np.flatnonzero(opacity > _DEAD)
  if not len(dead) or not len(live):
    return fields, footprints, np.zeros(0, int)
  weight = opacity[live]
  chosen = random.choice(live, len(dead), p=weight / weight.sum())
  copies = np.minimum(np.bincount(chosen, minlength=len(opacity)) + 1, _MOST_COPIES)
  fainter, factor = shared(opacity, copies)
  fainter = np.clip(fainter, _DEAD, 1 - 1e-6)
  changed = np.flatnonzero(copies > 1)
  arrays = {name: np.array(x) for name, x in fields.items()}
  arrays["opacities"][changed] = np.log(fainter[changed] / (1 - fainter[changed]))
  arrays["raw_scales"][changed] += np.log(factor[changed])[:, None]
  for x in arrays.values():
    x[dead] = x[chosen]
  widths = np.array(footprints)
  widths[dead] = widths[chosen]
  moved = np.concatenate([dead, changed])
  return {name: jnp.asarray(x) for name, x in arrays.items()}, jnp.asarray(widths), moved


def shared(
  opacity: Float[np.ndarray, "n"], copies: np.ndarray
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
  """Opacity and factor on the size of each of N copies that together look like one (3DGS-MCMC).

  o' = 1 - (1 - o)^(1/N); the factor is o over the sum over i = 1 ... N and k = 0 ... i - 1 of
  binomial(i - 1, k) (-1)^k o'^(k+1) / sqrt(k + 1).
  """
  fainter = 1 - (1 - opacity) ** (1 / copies)
  total = np.zeros_like(opacity)
  for i in range(1, int(copies.max()) + 1):
    part = sum(
      math.comb(i - 1, k) * (-1) ** k * fainter ** (k + 1) / math.sqrt(k + 1) for k in range(i)
    )
    total += np.where(copies >= i, part, 0)
  return fainter, np.where(copies > 1, opacity / np.maximum(total, 1e-12), 1.0)


def _without(x: Any, moved: np.ndarray) -> Any:
  """Moments of Gaussians that are others now are forgotten."""
  if x.ndim == 0 or not len(moved):
    return x
  # In NumPy: JAX would compile it for every count of what moved.
  array = np.array(x)
  array[moved] = 0
  return jnp.asarray(array)
