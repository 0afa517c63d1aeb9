"""Families of values that measure the machine: what a scene cost, what a view costs, fitting."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from d4s_jax.evaluation import cost, fit_curve
from d4s_jax.evaluation.metric import Case, Context, Family, Measured, one_by_one
from d4s_jax.geometry.deformation import at
from d4s_jax.render import render

# Views drawn for the latency, after one that compiles.
_VIEWS = 20


@one_by_one
def _cost(case: Case, context: Context) -> Measured:
  """Seconds add up over the stages, of memory the most counts."""
  del context
  stages = cost.read(case.sample.path)
  found = {"seconds": sum(stage.seconds for stage in stages.values())}
  for name, stage in stages.items():
    found[f"{name} seconds"] = stage.seconds
    memory = {"gib": stage.host_gib, "added": stage.added_gib, "device": stage.device_gib}
    for key, x in memory.items():
      if x is not None:
        found[f"{name} {key}"] = x
        found[key] = max(found.get(key, 0.0), x)
  return found


@one_by_one
def _latency(case: Case, context: Context) -> Measured:
  """Milliseconds from a camera and a time to a picture in the host's memory."""
  del context
  dynamic, metadata = case.sample.read  # pyright: ignore
  camera = jax.tree.map(jnp.asarray, metadata.cameras[:1])
  taken = []
  for index in range(_VIEWS + 1):
    start = time.perf_counter()
    np.asarray(_one_view(dynamic, camera, jnp.asarray([index / _VIEWS], jnp.float32)))
    taken.append(time.perf_counter() - start)
  return {"milliseconds": 1000 * float(np.median(taken[1:]))}


@jax.jit
def _one_view(dynamic, camera, time):
  return render(at(dynamic, time), camera).image


@one_by_one
def _fit(case: Case, context: Context) -> Measured:
  """Quality and seconds at each moment."""
  del context
  found = {}
  for moment in fit_curve.read(case.sample.path):
    found |= {f"psnr {moment.steps}": moment.psnr, f"seconds {moment.steps}": moment.seconds}
  return found


COST = Family(
  "cost",
  lambda settings: (
    "wall-clock/most-resident-memory-of-the-process/added=above-what-was-resident-before-the-"
    "stage/after-compilation/the-machine-of-the-set"
  ),
  _cost,
  needs=frozenset(("cost",)),
  timed=True,
)
LATENCY = Family(
  "latency",
  lambda settings: f"median-of-{_VIEWS}-views/deform+draw+copy/at-the-scene's-size/this-machine",
  _latency,
  needs=frozenset(("scene",)),
  timed=True,
)
FIT = Family(
  "fit",
  lambda settings: (
    "psnr-of-the-views-and-times-that-were-not-input/over-black/seconds-with-the-start,-without-"
    "compilation/the-machine-of-the-set"
  ),
  _fit,
  needs=frozenset(("fit",)),
  timed=True,
)
