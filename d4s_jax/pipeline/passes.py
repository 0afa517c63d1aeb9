"""The two passes of guidance, compiled: side by side on two halves of the devices, or in turn."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from d4s_jax.diffusion.sampler import Passes, Velocities
from d4s_jax.layers.partitioning import BRANCH, laid_out
from d4s_jax.models.backbone import Backbone, Text
from d4s_jax.models.condition import Condition
from d4s_jax.pipeline.spread import beside, mesh_of, shares


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
  both passes at once: each half of the devices has a copy and makes one. When guidance is over,
  each half computes half of the tokens of the one pass that is left (attention exchanges heads:
  `layers.sequence_parallel`); if they can't be halved, both make the same pass.
  """

  def __init__(self, backbone: Backbone):
    """Prepares the passes."""
    self._backbone = backbone
    self.whole = jax.jit(backbone.denoise)
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
    mesh, branches = mesh_of(params), [(*x, condition) for x in (conditional, unconditional)]
    if mesh is not None and mesh.shape.get(BRANCH, 1) == 2:
      return _SideBySide(self, params, branches, keep, mesh)
    return _InTurn(self, params, branches, keep)

  def can_halve(self, devices: int, params: Any, *args: Any) -> bool:
    """Whether halves of the devices can have halves of a pass's tokens.

    Tokens must be even, and heads, which are cut over all devices inside attention, a multiple.
    """
    _, features = self._keeping.eval_shape(params, *args)
    (tokens,) = jax.tree.leaves(features)
    heads: Any = self._backbone.transformer.heads
    return tokens.shape[1] % 2 == 0 and heads % devices == 0

  def make(self, params: Any, keep: bool, features: Any, *args: Any) -> tuple[Array, Any]:
    """One pass over a batch, and its features if they are to be kept."""
    if features is not None:
      return self._reusing(params, features, *args), None
    return self._keeping(params, *args) if keep else (self.whole(params, *args), None)


class _InTurn:
  """The conditional pass and, at guided steps, the unconditional one after it."""

  def __init__(self, denoiser: Denoiser, params: Any, branches: Sequence[Any], keep: bool):
    self._make = functools.partial(denoiser.make, params, keep)
    self._params, self._branches = params, branches

  def __call__(
    self, latents: Array, level: Array, guided: bool, features: Any = None
  ) -> Velocities:
    count = 1 + guided
    before = (None,) * count if features is None else features[:count]
    with beside(self._params):
      made = [
        self._make(kept, latents, level, *told)
        for told, kept in zip(self._branches[:count], before, strict=True)
      ]
    velocities, kept = zip(*made)
    return Velocities(velocities[0], velocities[1] if guided else None, kept)


class _SideBySide:
  """Both passes as one batch, or the conditional one alone."""

  def __init__(
    self, denoiser: Denoiser, params: Any, branches: Sequence[Any], keep: bool, mesh: Mesh
  ):
    self._denoiser, self._params, self._keep, self._mesh = denoiser, params, keep, mesh
    self._everywhere = NamedSharding(mesh, PartitionSpec())
    self._alone = jax.device_put(branches[0], self._everywhere)
    self._both = self._halves(*branches)

  def __call__(
    self, latents: Array, level: Array, guided: bool, features: Any = None
  ) -> Velocities:
    count, cut = len(latents), shares(self._mesh)
    if guided:
      args = (*self._halves((latents, level), (latents, level)), *self._both)
      rules = {"batch": BRANCH}
    else:
      # Wherever they come from, or the pass would be compiled again for where they lie.
      args = (*jax.device_put((latents, level), self._everywhere), *self._alone)
      fits = self._denoiser.can_halve(self._mesh.size, self._params, *args)
      rules = {"tokens": BRANCH, "spread_heads": (*cut, BRANCH)} if fits else {}
      # Those of an earlier step may be of both passes.
      features = jax.tree.map(lambda x: x[:count], features)
    with laid_out(self._mesh, heads=cut, mlp=cut, **rules):
      velocity, kept = self._denoiser.make(self._params, self._keep, features, *args)
    return Velocities(velocity[:count], velocity[count:] if guided else None, kept)

  def _halves(self, *branches: Any) -> Any:
    """One batch of both, a half of it on each half of the devices."""
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *branches)
    return jax.device_put(joined, NamedSharding(self._mesh, PartitionSpec(BRANCH)))
