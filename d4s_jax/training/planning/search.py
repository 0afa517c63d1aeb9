"""Which mesh, what to compute again, how many samples: tried one after the other."""

import itertools
import math
import sys

import jax

from d4s_jax.config import Config
from d4s_jax.training.planning import report
from d4s_jax.training.planning.chips import open_topology
from d4s_jax.training.planning.plan import Plan, plan_training

# Devices that share the parameters, and parts of a sample's tokens.
_FSDP, _ULYSSES = (8, 16, 32, 64), (1, 4)
_REMAT, _SAMPLES = ("all", "products"), (1, 2)


def best(config: Config, topology: str) -> tuple[Config, int]:
  """The settings with the most samples a second by the roofline, of those that fit.

  Prints every try to standard error; leaves out what needs more memory than one that didn't fit.

  Returns:
    The configuration, changed, and samples of each part of the devices.

  Raises:
    ValueError: nothing fits.
  """
  _, devices = open_topology(topology)
  found: list[tuple[float, int, Config, int]] = []
  refused: set[tuple] = set()
  tries = [
    (fsdp, ulysses, remat, samples)
    for fsdp, ulysses, remat, samples in itertools.product(_FSDP, _ULYSSES, _REMAT, _SAMPLES)
    if len(devices) % (fsdp * ulysses * config.mesh.ring * config.mesh.tensor) == 0
  ]
  if not tries:
    raise ValueError(f"{topology} has {len(devices)} devices; a search starts at {min(_FSDP)}.")
  for number, (fsdp, ulysses, remat, samples) in enumerate(tries, 1):
    if any(
      fsdp <= f and ulysses <= u and samples >= s and (remat == r or remat == "products")
      for f, u, r, s in refused
    ):
      continue
    trial = config.copy_and_resolve_references()
    trial.mesh.update(fsdp=fsdp, ulysses=ulysses)
    trial.model.backbone.transformer.remat = trial.model.ldrm.remat = remat
    name = f"{number}/{len(tries)} fsdp {fsdp} ulysses {ulysses} remat {remat} samples {samples}"
    try:
      plan = plan_training(trial, topology, samples)
    # Such as tokens that ulysses doesn't divide, or what XLA can't compile.
    except (ValueError, jax.errors.JaxRuntimeError) as error:
      print(f"{name:<60} {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
      continue
    print(report.row(name, plan), file=sys.stderr, flush=True)
    if plan.refusal:
      refused.add((fsdp, ulysses, remat, samples))
    else:
      found.append((_rate(plan), -number, trial, samples))
  if not found:
    raise ValueError(f"Nothing that was tried fits {topology}; give more devices.")
  _, _, config, samples = max(found, key=lambda x: x[:2])
  return config, samples


def _rate(plan: Plan) -> float:
  """Samples a second of all devices by the roofline."""
  slowest = max(plan.terms.values())
  return plan.samples / slowest if math.isfinite(slowest) else 0.0
