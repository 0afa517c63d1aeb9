"""A plan in words: tables for a terminal, and the best of several."""

import math

from d4s_jax.training.planning.plan import Plan

# Share of the roofline that well-tuned training reaches, for times and costs: MaxDiffusion's
# measured Wan steps are at 0.30 (v5p) and 0.40 (tpu7x) of peak.
REACHED = 0.4


def describe(plan: Plan, tokens: int, clips: int) -> str:
  """All of a plan, line by line.

  Args:
    plan: of a training step.
    tokens: of the video transformer in a sample.
    clips: samples that the whole schedule trains on.
  """
  chip, gib = plan.chip, 2**30
  axes = ", ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1)
  lines = [
    f"{plan.devices} devices ({axes or 'one'}), {plan.samples} samples a step; compiled in"
    f" {plan.seconds:.0f} s",
    "",
    f"memory of a device, GiB of {chip.memory / gib:.1f}   [parts but temporaries: arithmetic;"
    " temporaries, peak: compiler]",
  ]
  lines += [f"  {name:<30}{size / gib:8.2f}" for name, size in plan.memory.items()]
  lines += [f"  {'DOES NOT FIT: ' + plan.refusal if plan.refusal else 'fits'}", ""]
  each = 1e12 * plan.devices
  lines += [
    "a step, on each device",
    f"  {plan.executed / each:10.2f} TFLOP, {plan.useful / each:.2f} without what is computed"
    "  twice   [arithmetic: from the traced program, loops multiplied out]",
  ]
  if plan.refusal and math.isnan(plan.moved):
    return "\n".join(lines)
  lines += [
    f"  {plan.moved / 1e9:10.2f} GB from and to memory   [read from the compiled program, loops"
    " multiplied out; kernels inside fusions count what they touch]",
    *(
      f"  {x.received / 1e9:10.3f} GB {x.kind} along {' x '.join(x.axes) or '?'}, {x.calls} calls"
      "   [compiled program]"
      for x in plan.collectives
    ),
  ]
  if plan.unknown_loops:
    lines += [
      f"  {plan.unknown_loops} loops (of the renderer, over lists of splats) run as long as data"
      f" ask; counted once: each more of their turns moves {plan.turn / 1e9:.1f} GB"
      "   [compiled program]"
    ]
  lines += ["", "roofline   [arithmetic: the above over published peaks]"]
  for name, seconds in plan.terms.items():
    lines += [f"  {name:<10}{seconds * 1e3:10.1f} ms{'   <- limit' if name == plan.limit else ''}"]
  lines += [f"  MFU bound {plan.bound:.0%}", ""]
  lines += [_time(plan, REACHED, tokens, clips)]
  return "\n".join(lines)


def _time(plan: Plan, utilisation: float, tokens: int, clips: int) -> str:
  """Time and cost of the schedule at an assumed utilisation, no better than the bound."""
  assumed = min(utilisation, plan.bound)
  seconds = plan.useful / plan.devices / plan.chip.flops / assumed
  chips = plan.devices / plan.chip.devices
  hours = clips / plan.samples * seconds * chips / 3600
  price = plan.chip.price
  cost = f", ${hours * price:,.0f} at ${price:.2f} a chip-hour" if price else ""
  return (
    f"at {assumed:.0%} MFU   [assumed]: {seconds:.2f} s a step, {plan.samples / seconds:.1f}"
    f" samples and {plan.samples * tokens / seconds:,.0f} tokens a second; {clips:,} samples take"
    f" {hours:,.0f} chip-hours ({hours / chips / 24:.1f} days){cost}"
  )


def row(name: str, plan: Plan) -> str:
  """A plan in one line, for tables and searches."""
  if plan.refusal:
    return f"{name:<60} does not fit"
  terms = " ".join(f"{key} {1e3 * value:.0f}" for key, value in plan.terms.items())
  return (
    f"{name:<60} peak {plan.memory['peak'] / 2**30:5.1f} GiB  ms: {terms}  MFU bound"
    f" {plan.bound:.0%}  compiled in {plan.seconds:.0f} s"
  )
