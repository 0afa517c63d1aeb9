"""Quality over time of per-scene optimisation: how good other views are after so many steps."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from d4s_jax.evaluation.cost import Costs
from d4s_jax.formats import checked
from d4s_jax.training import fitting, refinement
from d4s_jax.types import DynamicGaussians, Views

FILE = "fit.json"
_LONGEST = 2**16
# When views are looked at; the last is the length of the schedule.
STEPS = (0, 30, 100, 300)


@dataclasses.dataclass(frozen=True)
class Moment:
  """Of an optimisation.

  Attributes:
    steps: that were made.
    seconds: they took, with making the start, without compilation and without looking.
    psnr: mean of views that are not fitted, dB.
  """

  steps: int
  seconds: float
  psnr: float


def optimise(
  start: DynamicGaussians,
  views: Views,
  others: Views,
  costs: Costs,
  seed: int = 0,
  steps: Sequence[int] = STEPS,
) -> tuple[DynamicGaussians, list[Moment]]:
  """Fits a scene to views and looks at others meanwhile.

  Args:
    start: the scene.
    views: what it is to look like.
    others: what is looked at.
    costs: gets the stage "optimisation"; the stage "start" is the start's.
    seed: of what is drawn.
    steps: when to look, the first 0.

  Returns:
    The scene after the last step, and the moments.
  """
  states = refinement.refining(
    *(start, views),
    extent=fitting.extent(start, views),
    key=jax.random.key(seed),
    steps=STEPS[-1],
  )
  begun = costs.stages["start"].seconds
  moments = [Moment(0, begun, fitting.psnr(start, others))]
  scene = start
  for done, wanted in zip(steps, steps[1:]):
    with costs.stage("optimisation"):
      for _ in range(wanted - done):
        state = next(states)
    scene = state()
    seconds = begun + costs.stages["optimisation"].seconds
    moments.append(Moment(wanted, round(seconds, 4), fitting.psnr(scene, others)))
  return scene, moments


def write(folder: pathlib.Path, moments: Sequence[Moment]) -> None:
  """Leaves fit.json."""
  value = [dataclasses.asdict(moment) for moment in moments]
  (folder / FILE).write_text(json.dumps(value, indent=1) + "\n")


def read(folder: pathlib.Path) -> list[Moment]:
  """What `write` left.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  path = folder / FILE
  value: Any = checked.parse(checked.read_bytes(path, _LONGEST, "fit"), str(path))
  if not isinstance(value, list):
    raise ValueError(f"{path}: expected a list of moments.")
  found = []
  for index, each in enumerate(value):
    where = f"{path}: [{index}]"
    fields = checked.fields(each, where, ("steps", "seconds", "psnr"))
    found.append(
      Moment(
        checked.integer(fields["steps"], f"{where}.steps", 0, 10**9),
        checked.number(fields["seconds"], f"{where}.seconds", 0),
        checked.number(fields["psnr"], f"{where}.psnr", 0),
      )
    )
  return found
