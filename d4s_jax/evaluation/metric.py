"""What a metric is: measured sample by sample, kept, and then reduced to one number."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from d4s_jax.evaluation.samples import Sample
from d4s_jax.evaluation.settings import Settings

Values = dict[str, np.ndarray]
Measured = Mapping[str, ArrayLike]

# What a case may have, and where it comes from.
NEEDS = {
  "text": "prompts: NAME.txt beside the video, or a scene",
  "cameras": "cameras: NAME.json beside the video, or a scene",
  "scene": "scenes, not videos",
  "cost": "scenes with a cost.json, as d4s_jax.benchmark leaves them",
  "fit": "scenes with a fit.json, as rows of a sweep leave them that fit Gaussians to a video",
  "reference": "a true video of the same name: config.reference",
  "references": "true videos: config.reference",
  "clip": "a reference with depth, tracks and other views: config.reference with a source.json",
  "mask": "a mask of the same name: config.masks",
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A sample and what belongs to it.

  Attributes:
    sample: what is scored.
    reference: the truth of the same name, if there is one.
    mask: the subject's mask of the same name, if there is one.
  """

  sample: Sample
  reference: Sample | None = None
  mask: Sample | None = None

  def lacks(self, needs: frozenset[str], references: bool) -> str:
    """What is missing of `needs`, of NEEDS; "" for nothing.

    Args:
      needs: names.
      references: whether there is a set of true videos.
    """
    has = self.sample.has - {"clip"}
    has |= {"reference"} if self.reference else set()
    has |= {"clip"} if self.reference and "clip" in self.reference.has else set()
    has |= {"mask"} if self.mask else set()
    has |= {"references"} if references else set()
    return "; ".join(NEEDS[name] for name in sorted(needs - has))


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a sample has no value; it is counted and listed, never left out in silence.

  Attributes:
    reason: in one line.
  """

  reason: str


@dataclasses.dataclass(frozen=True)
class Context:
  """What measuring takes beside cases.

  Attributes:
    settings: of the evaluation.
    tools: what the family's `tools` opened to, by name.
  """

  settings: Settings
  tools: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
  """Values that are measured together.

  Attributes:
    name: of the family.
    protocol: says how, completely, with the settings that change the numbers.
    measure: values of each case, or why there are none.
    needs: what a case must have, of NEEDS.
    tools: names of TOOLS.
    of_references: whether references are measured too, as samples.
    timed: whether it measures the machine, so that two machines differ.
  """

  name: str
  protocol: Callable[[Settings], str]
  measure: Callable[[Sequence[Case], Context], list[Values | Failure]]
  needs: frozenset[str] = frozenset()
  tools: tuple[str, ...] = ()
  of_references: bool = False
  timed: bool = False


@dataclasses.dataclass(frozen=True)
class Metric:
  """One number.

  Attributes:
    family: where its values come from.
    key: of the family's values.
    label: as it is printed.
    better: "higher" or "lower".
    digits: after the point.
    of_sets: takes the values of all samples and of all references and makes one number; None for
      the mean over samples.
    paper: what Diff4Splat reports for itself, on its own data and protocol; None if it doesn't.
    absent: why a sample that was measured has no such number.
    formula: of `of_sets`, as it stands before the family's protocol.
  """

  family: Family
  key: str
  label: str
  better: str
  digits: int = 2
  of_sets: Callable[[np.ndarray, np.ndarray], float] | None = None
  paper: float | None = None
  absent: str = "it has no such stage"
  formula: str = ""

  def protocol(self, settings: Settings) -> str:
    """How the number is made, completely."""
    return "/".join(filter(None, (self.formula, self.family.protocol(settings))))


def one_by_one(measure: Callable[[Case, Context], Measured]):
  """A family's `measure` from one of single cases, whose ValueErrors become failures."""

  def all_of(cases: Sequence[Case], context: Context) -> list[Values | Failure]:
    return [guarded(lambda case=case: measure(case, context)) for case in cases]

  return all_of


def guarded(measure: Callable[[], Measured]) -> Values | Failure:
  """The values, or the error as a failure: of bad input, not of the machine."""
  try:
    return {name: np.asarray(x) for name, x in measure().items()}
  except (ValueError, FileNotFoundError) as error:
    return Failure(" ".join(str(error).split()))


@contextlib.contextmanager
def foreign(name: str) -> Iterator[None]:
  """Errors of others' code, whatever their type, are ValueErrors that name it: of one sample."""
  try:
    yield
  except MemoryError:
    raise
  except Exception as error:
    raise ValueError(f"{name} failed ({type(error).__name__}: {error})") from error


def frames_in_chunks(count: int, most: int) -> list[np.ndarray]:
  """Indices 0 to count - 1 in the fewest rows of equal length, at most `most`.

  So that a network is compiled for one size of a video, and hardly a frame is looked at twice: the
  last row repeats its last index.
  """
  size = -(-count // -(-count // most))
  return [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
