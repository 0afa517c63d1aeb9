"""Per-scene optimisation: a scene's own numbers, fitted to views of it (as 3D Gaussian splatting).

The second stage of a two-stage method, which first makes a video and then fits Gaussians to it; and
what a prediction can be improved with. The number of Gaussians stays as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from d4s_jax.geometry import rotations
from d4s_jax.geometry.deformation import at
from d4s_jax.render import render
from d4s_jax.types import DynamicGaussians, Views

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
# Weight of the displacement's second difference in time, squared, against the colour error.
_SMOOTHNESS = 1.0
_VIEWS_A_STEP = 4

Fields = dict[str, Array]


def refine(
  dynamic: DynamicGaussians,
  views: Views,
  *,
  extent: float,
  key: PRNGKeyArray,
  proceed: Callable[[int], bool],
) -> DynamicGaussians:
  """Fits a scene to views of it.

  Args:
    dynamic: one scene, the start.
    views: pictures [v] with their cameras and clip times, what it is to look like.
    extent: metres that count as one for positions: about the distance to what is seen.
    key: of the views drawn for each step.
    proceed: is asked before step 0, 1, ... whether to make it.

  Returns:
    The scene after the last step.
  """
  # A step looks views up by numbers that are traced.
  views = jax.tree.map(jnp.asarray, views)
  rates = dict(_RATES) | {name: extent * _RATES[name] for name in ("means", "deformation")}

  def descend(updates: Any, _: Any) -> Any:
    return {name: -rates[name] * value for name, value in updates.items()}

  optimizer = optax.chain(
    optax.scale_by_adam(eps=1e-15),
    optax.stateless(descend),
  )

  def loss(fields: Fields, index):
    scene = _scene(dynamic, fields)
    rendering = render(at(scene, views.times[index]), views.cameras[index])
    error = jnp.mean(jnp.abs(rendering.image - views.images[index]))
    return error + _SMOOTHNESS * _roughness(scene) / extent**2

  @jax.jit
  def step(fields: Fields, moments: Any, key: PRNGKeyArray):
    count = views.times.shape[0]
    index = jax.random.choice(key, count, (min(_VIEWS_A_STEP, count),), replace=False)
    gradient = jax.grad(loss)(fields, index)
    updates, moments = optimizer.update(gradient, moments)
    fitted: Any = optax.apply_updates(fields, updates)
    return fitted, moments

  fields = _fields(dynamic)
  moments = optimizer.init(fields)
  number = 0
  while proceed(number):
    fields, moments = jax.block_until_ready(step(fields, moments, jax.random.fold_in(key, number)))
    number += 1
  return _scene(dynamic, fields)


def _fields(dynamic: DynamicGaussians) -> Fields:
  """What is fitted, opacities as logits."""
  fields = {name: jnp.asarray(getattr(dynamic, name)) for name in _RATES}
  opacities = jnp.clip(fields["opacities"], 1e-3, 1 - 1e-3)
  return fields | {"opacities": jnp.log(opacities / (1 - opacities))}


def _scene(dynamic: DynamicGaussians, fields: Fields) -> DynamicGaussians:
  move, turn, grow = jnp.split(fields["deformation"], (3, 7), axis=-1)
  deformation = jnp.concatenate([move, rotations.normalize(turn), grow], axis=-1)
  return dataclasses.replace(
    dynamic,
    means=fields["means"],
    quaternions=rotations.normalize(fields["quaternions"]),
    raw_scales=fields["raw_scales"],
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
