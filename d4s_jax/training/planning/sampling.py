"""What a generated scene would take on accelerators that aren't here."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax

from d4s_jax.config import Config
from d4s_jax.layers.partitioning import laid_out
from d4s_jax.models.system import System
from d4s_jax.training import inference
from d4s_jax.training.planning import flops
from d4s_jax.training.planning.chips import open_topology
from d4s_jax.training.planning.plan import Plan, bytes_of, measure, plain
from d4s_jax.training.planning.report import REACHED

# What paper and supplement print: about 30 s for a scene, 25 GB for reconstruction.
_SECONDS, _MEMORY = 30.0, 25e9


def open_models(config: Config, topology: str) -> tuple[System, dict[str, Any]]:
  """The models of a configuration, and their parameters as `generate` would lay them out.

  Returns:
    The system, and shapes, types and shardings by part; nothing is in memory.
  """
  chip, devices = open_topology(topology)
  system = System.build(config.model.to_dict())
  clip = config.clip
  system.check_size(clip.frames, clip.height, clip.width)
  parts = system.abstract()
  return system, {name: inference.layout(system, name, devices, chip.memory) for name in parts}


def plan_programs(topology: str, programs: Iterable[Any]) -> list[tuple[str, int, Plan]]:
  """Compiles programs (`pipeline.programs`), one after the other.

  Returns:
    Name, calls and plan of each.
  """
  chip, _ = open_topology(topology)
  plans = []
  for name, calls, function, arguments, within in programs:
    mesh = jax.tree.leaves(arguments[0])[0].sharding.mesh
    # On one device, too, the mesh says what it is: attention asks.
    with laid_out(mesh), within():
      memory = {"parameters": bytes_of(arguments[0])}
      lower = functools.partial(function.lower, *arguments)
      plan = measure(chip, mesh, 1, lower, memory)
    operations = flops.count(function, *plain(arguments))
    plan = dataclasses.replace(plan, executed=operations, useful=operations)
    plans.append((name, calls, plan))
  return plans


def describe(plans: Iterable[tuple[str, int, Plan]]) -> str:
  """All programs of a scene, line by line, and their sum."""
  plans = list(plans)
  chip, gib = plans[0][2].chip, 2**30
  lines = [
    f"one scene on {plans[0][2].devices} devices; of each of them, for one call:",
    f"  {'program':<24}{'calls':>6}{'peak GiB':>10}{'TFLOP':>9}{'GB moved':>10}{'GB sent':>9}"
    f"{'roofline':>12}  limit",
  ]
  for name, calls, plan in plans:
    numbers = f"  {name:<24}{calls:>6}"
    if plan.refusal:
      lines += [f"{numbers}  DOES NOT FIT: {plan.refusal}"]
      continue
    sent = sum(x.received for x in plan.collectives)
    lines += [
      f"{numbers}{plan.memory['peak'] / gib:>10.1f}{plan.executed / plan.devices / 1e12:>9.2f}"
      f"{plan.moved / 1e9:>10.1f}{sent / 1e9:>9.2f}{1e3 * max(plan.terms.values()):>9.1f} ms"
      f"  {plan.limit}"
    ]
  lines += [
    "  [peak, whether it fits: compiler; operations: arithmetic; bytes: read from the compiled"
    " program]",
  ]
  if any(plan.refusal for _, _, plan in plans):
    return "\n".join(lines)
  roofline = sum(calls * max(plan.terms.values()) for _, calls, plan in plans)
  seconds = sum(calls * _seconds(plan) for _, calls, plan in plans)
  peak = max(plan.memory["peak"] for _, _, plan in plans)
  parameters = sum(plan.memory["parameters"] for plan in _by_part(plans))
  return "\n".join(
    [
      *lines,
      f"peak {peak / gib:.1f} GiB of {chip.memory / gib:.0f}, with one part of the parameters at a"
      f" time (all of them: {parameters / gib:.1f} GiB); the paper says {_MEMORY / 1e9:.0f} GB",
      f"roofline {roofline:.1f} s; at {REACHED:.0%} MFU, or the bound where that is lower  "
      f" [assumed]: {seconds:.1f} s; the paper says {_SECONDS:.0f} s",
      "without reading parameters from disk, compiling, and the solver between the passes",
    ]
  )


def _seconds(plan: Plan) -> float:
  return plan.useful / plan.devices / plan.chip.flops / min(REACHED, plan.bound)


def _by_part(plans: list[tuple[str, int, Plan]]) -> list[Plan]:
  """One plan for each part of the parameters: both kinds of pass have the same ones."""
  return list({name.partition(",")[0]: plan for name, _, plan in plans}.values())
