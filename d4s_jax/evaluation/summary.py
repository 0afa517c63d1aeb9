"""From values of samples to the number of a metric, with its interval and what it leaves out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from d4s_jax.evaluation.distances import frechet
from d4s_jax.evaluation.metric import Failure, Metric, Values

_RESAMPLES = 2000
_LEVEL = (2.5, 97.5)
# Dimensions of the features whose covariance FVD takes.
_RANK = 400
# Stands before the names of references among failures.
REFERENCE = "reference "


@dataclasses.dataclass(frozen=True)
class Result:
  """A metric on a set.

  Attributes:
    value: None if no sample has one.
    count: samples that it is of.
    total: samples of the set.
    interval: of 95%, by resampling the samples 2000 times; None for few samples and distances of
      sets, whose resamples repeat samples and so are farther apart.
    samples: value of each sample, by name.
    failures: why a sample has none, by name; of distances of sets why a reference has none, too.
    notes: what a reader has to know.
  """

  value: float | None
  count: int
  total: int
  interval: tuple[float, float] | None = None
  samples: Mapping[str, float] = dataclasses.field(default_factory=dict)
  failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()


def reduce(
  metric: Metric, found: Mapping[str, Values | Failure], references: Mapping[str, Values | Failure]
) -> Result:
  """The number of a metric.

  Args:
    metric: which.
    found: of each sample.
    references: of each reference, for metrics of sets.
  """
  failures = {name: x.reason for name, x in found.items() if isinstance(x, Failure)}
  measured = {name: x for name, x in found.items() if not isinstance(x, Failure)}
  values = {name: x[metric.key] for name, x in measured.items() if metric.key in x}
  failures |= {name: metric.absent for name in measured if name not in values}
  if metric.of_sets is not None:
    return _of_sets(metric, values, failures, references, len(found))
  numbers = {name: float(x) for name, x in values.items()}
  known = {name: x for name, x in numbers.items() if np.isfinite(x)}
  failures |= {name: "nothing to measure" for name in numbers if name not in known}
  array = np.array([known[name] for name in sorted(known)])
  if not len(array):
    return Result(None, 0, len(found), failures=failures)
  # In order of names, so that the order of files changes no digit.
  return Result(float(array.mean()), len(array), len(found), bootstrap(array), known, failures)


def bootstrap(values: np.ndarray) -> tuple[float, float] | None:
  """Interval of the mean of values, of 95%; None for fewer than 3."""
  if len(values) < 3:
    return None
  rng = np.random.default_rng(0)
  means = values[rng.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1)
  low, high = np.percentile(means, _LEVEL)
  return float(low), float(high)


def _of_sets(metric: Metric, values: Mapping[str, Any], failures, references, total) -> Result:
  known = {name: x[metric.key] for name, x in references.items() if not isinstance(x, Failure)}
  failures = dict(failures) | {
    f"{REFERENCE}{name}": x.reason for name, x in references.items() if isinstance(x, Failure)
  }
  if min(len(values), len(known)) < 2:
    note = f"{len(values)} samples and {len(known)} references; a distance needs 2 of each"
    return Result(None, len(values), total, failures=failures, notes=(note,))
  arrays = [np.stack([x[name] for name in sorted(x)]) for x in (values, known)]
  notes = [f"{len(known)} references"]
  if metric.of_sets is frechet and min(map(len, arrays)) <= _RANK:
    notes.append(
      f"covariances of {_RANK} features from {len(values)} and {len(known)} videos have no full"
      " rank: it compares columns of this report and nothing else"
    )
  assert metric.of_sets is not None
  value = metric.of_sets(*arrays)
  return Result(value, len(values), total, failures=failures, notes=tuple(notes))
