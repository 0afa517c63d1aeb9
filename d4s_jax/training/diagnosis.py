"""Where numbers that are not finite come from: an update that failed is computed once more.

It is asked only when a run is about to end; updates that go well pay nothing for it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from d4s_jax.losses import LOSSES
from d4s_jax.training import sharding
from d4s_jax.training.state import TrainState
from d4s_jax.training.step import MODULES, Objective, make_gradient, module_of, step_key

# Names in a list, before it says how many more there are.
_SHOWN = 3


def make(
  objective: Objective, *, seed: int, accumulate: int = 1
) -> Callable[[TrainState, Any, Any], str]:
  """Builds the function that says where an update failed.

  Args:
    objective: what the run minimises; its loss terms are among its metrics, by name.
    seed: of the run.
    accumulate: parts of a batch, as in the run.

  Returns:
    A function from the state that the update left, the batch on the host and the batch on the
    devices to a few sentences. All processes call it together; each looks at its own part of the
    batch.
  """

  def diagnose(state: TrainState, batch: Any, placed: Any) -> str:
    key = step_key(seed, state.step)

    def finite(term: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
      """Whether each metric, and the gradient of a term (None: of the loss) by path, is finite."""

      def chosen(params, clip, key):
        loss, metrics = objective(params, clip, key)
        return metrics[term] if term else loss, metrics

      def computed(state, placed, key):
        (_, metrics), gradients = make_gradient(chosen, accumulate)(state, placed, key)
        return _all_finite(metrics), _all_finite(gradients)

      return jax.device_get(jax.jit(computed, out_shardings=sharding.whole())(state, placed, key))

    metrics, gradients = finite(None)
    terms = [name for name in LOSSES if name in metrics]
    return " ".join(
      [_origin(finite, terms, metrics, gradients), _of_batch(batch), _of_parameters(state)]
    )

  return diagnose


def _origin(
  finite: Callable[[str], tuple[dict[str, Any], dict[str, Any]]],
  terms: list[str],
  metrics: Mapping[str, Any],
  gradients: Mapping[str, Any],
) -> str:
  """The first term that is not finite, going forward, else the first gradient, going backward."""
  bad = [name for name in terms if not metrics[name]]
  if bad:
    return f"the loss term {bad[0]}{_beside(bad[1:])} is not."
  if all(gradients.values()):
    return (
      "but computed once more, it is finite: not the numbers are at fault, but the device, or a"
      " program that is not the same each time."
    )
  for term in terms:
    _, of_term = finite(term)
    if not all(of_term.values()):
      return f"all loss terms are, but the gradient of {term} is not, {_where(of_term)}."
  return (
    f"all loss terms and their gradients are, but that of their sum is not, {_where(gradients)}."
  )


def _where(gradients: Mapping[str, Any]) -> str:
  """The module that the backward pass comes to first, of those whose gradient is not finite."""
  paths = [path for path, fine in gradients.items() if not fine]
  modules = {module_of(path) for path in paths}
  order = [name for name in reversed(MODULES) if name in modules] or sorted(modules)
  inside = [path for path in paths if module_of(path) == order[0]]
  return f"first in {order[0]} ({_names(inside)}){_beside(order[1:])}"


def _of_batch(batch: Any) -> str:
  """Which leaves of a batch on the host have numbers that are not finite."""
  bad = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      count = leaf.size - np.count_nonzero(np.isfinite(leaf))
      if count:
        bad.append(f"{count} in {jax.tree_util.keystr(path, simple=True, separator='.')}")
  return f"The batch has numbers that are not: {', '.join(bad)}." if bad else "The batch is."


def _of_parameters(state: TrainState) -> str:
  """Which parameters of a state are not finite."""
  parts = {"trainable": state.trainable, "frozen": state.frozen}
  of = jax.jit(lambda x: jax.tree.map(_is_finite, x), out_shardings=sharding.whole())
  found = jax.device_get(of(parts))
  bad = [path for part in found.values() for path, fine in part.items() if not fine]
  return f"Of the parameters, these are not: {_names(bad)}." if bad else "The parameters are."


def _all_finite(arrays: Mapping[str, Array]) -> dict[str, Bool[Array, ""]]:
  return {name: _is_finite(value) for name, value in arrays.items()}


def _is_finite(value: Array) -> Bool[Array, ""]:
  return jnp.all(jnp.isfinite(value))


def _beside(names: Iterable[str]) -> str:
  names = list(names)
  return f" (and then {_names(names)})" if names else ""


def _names(names: list[str]) -> str:
  more = len(names) - _SHOWN
  return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
