"""The two passes of guidance, compiled: side by side on two halves of the devices, or in turn."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from d4s_jax.diffusion.sampler import Passes, Velocities
from d4s_jax.layers.partitioning import BRANCH
from d4s_jax.models.backbone import Backbone, Text
from d4s_jax.models.condition import Condition

# (parameters, features to reuse or None, arguments of `Backbone.denoise`) -> velocity, features
Make = Callable[..., tuple[Array, Any]]


class Told(NamedTuple):
  """What a pass is told beside the photograph.

  Attributes:
    text: the embedded prompt.
    maps: of the cameras; None for none.
  """

  text: Text
  maps: Float[Array, "b F H W m"] | None


class Denoiser:
  """A backbone's passes; they are compiled at their first call, once for all runs.

  Where the transformer's parameters lie on a mesh with two places along `BRANCH`, guided steps make
  both passes at once: each half of the devices has a copy and makes one. When guidance is over, the
  parameters are cut over all devices, and these share the one pass that is left.
  """

  def __init__(self, backbone: Backbone):
    """Prepares the passes."""
    self._whole = jax.jit(backbone.denoise)
    self._keeping = jax.jit(backbone.denoise_keeping)
    self._reusing = jax.jit(backbone.denoise_reusing)

  def passes(
    self, params: Any, conditional: Told, unconditional: Told, condition: Condition, *, keep: bool
  ) -> Passes:
    """The passes of one run.

    Args:
      params: the transformer's parameters and its adapter's.
      conditional: what guidance leads to.
      unconditional: what it leads away from.
      condition: the photograph.
      keep: whether they keep features.
    """

    def make(params, features, *args) -> tuple[Array, Any]:
      if features is not None:
        return self._reusing(params, features, *args), None
      return self._keeping(params, *args) if keep else (self._whole(params, *args), None)

    sharding = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
    halves = isinstance(sharding, NamedSharding) and sharding.mesh.shape.get(BRANCH, 1) == 2
    kind = _SideBySide if halves else _InTurn
    return kind(make, params, (conditional, unconditional), condition)


class _InTurn:
  """The conditional pass and, at guided steps, the unconditional one after it."""

  def __init__(self, make: Make, params: Any, told: Sequence[Told], condition: Condition):
    self._make, self._params, self._told = make, params, told
    self._condition = condition

  def __call__(
    self, latents: Array, level: Array, guided: bool, features: Any = None
  ) -> Velocities:
    count = 1 + guided
    kept = (None,) * count if features is None else features[:count]
    made = [
      self._make(self._params, before, latents, level, *told, self._condition)
      for told, before in zip(self._told[:count], kept, strict=True)
    ]
    velocities, kept = zip(*made)
    return Velocities(velocities[0], velocities[1] if guided else None, kept)


class _SideBySide:
  """Both passes as one batch, or the conditional one alone on all devices."""

  def __init__(self, make: Make, params: Any, told: Sequence[Told], condition: Condition):
    self._make, self._params = make, params
    self._alone = *told[0], condition
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    self._halves = NamedSharding(mesh, PartitionSpec(BRANCH))
    self._both = self._place(*[(*told, condition) for told in told])
    shardings = jax.tree.map(lambda x: x.sharding, params)
    self._guided = True
    self._layouts = {True: shardings, False: jax.tree.map(_over_all, params)}

  def __call__(
    self, latents: Array, level: Array, guided: bool, features: Any = None
  ) -> Velocities:
    if guided != self._guided:
      self._guided = guided
      self._params = jax.device_put(self._params, self._layouts[guided])
    count = len(latents)
    if not guided:
      features = jax.tree.map(lambda x: x[:count], features)
      velocity, kept = self._make(self._params, features, latents, level, *self._alone)
      return Velocities(velocity, None, kept)
    latents, level = self._place((latents, level), (latents, level))
    velocity, kept = self._make(self._params, features, latents, level, *self._both)
    return Velocities(velocity[:count], velocity[count:], kept)

  def _place(self, *branches: Any) -> Any:
    """One batch of both, a half of it on each half of the devices."""
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *branches)
    return jax.device_put(joined, self._halves)


def _over_all(x: jax.Array) -> NamedSharding:
  """The sharding of a parameter, of which two copies are there, cut over the devices of both."""
  sharding: Any = x.sharding
  axes = [
    (axis, BRANCH) if axis and size % (sharding.mesh.shape[axis] * 2) == 0 else axis
    for axis, size in zip(sharding.spec, x.shape)
  ]
  return NamedSharding(sharding.mesh, PartitionSpec(*axes))
