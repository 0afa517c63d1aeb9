"""Scores sets of samples: a few in memory at a time, and nothing is computed twice.

What a family finds for a sample is kept in the cache under the hash of the family's protocol, of
its weights and of the contents of the files, so an evaluation that was interrupted goes on, and
sets that share videos share their features.
"""

import dataclasses
import hashlib
import json
import pathlib
import platform
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from d4s_jax.evaluation import families, summary
from d4s_jax.evaluation.metric import Case, Context, Failure, Family, Metric, Values
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.sample_sets import SampleSet, open_set
from d4s_jax.evaluation.settings import Settings
from d4s_jax.evaluation.tools import TOOLS
from d4s_jax.formats import atomic
from d4s_jax.pipeline import progress

# Changes when a family's numbers do for another reason than its protocol.
_VERSION = 4
# Names that a note lists.
_MOST_NAMES = 10

Found = dict[str, Values | Failure]


@dataclasses.dataclass(frozen=True)
class Row:
  """One metric on all sets.

  Attributes:
    name: key of METRICS.
    protocol: how it is measured.
    weights: what it is measured with, to the bit.
    results: by set.
    missing: what it needs that isn't there, for no set; "" if it is measured.
  """

  name: str
  protocol: str
  weights: str
  results: dict[str, summary.Result]
  missing: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
  """All that was found.

  Attributes:
    settings: what was asked for.
    sets: the sets by name, and the references if there are any.
    reference: name of the references among `sets`; "" for none.
    notes: of each set.
    rows: of each metric.
    paper: what the paper prints for a set, by metric: of the rows of a sweep.
  """

  settings: Settings
  sets: dict[str, SampleSet]
  reference: str
  notes: dict[str, list[str]]
  rows: list[Row]
  paper: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def evaluate(settings: Settings) -> Report:
  """Scores all sets.

  Raises:
    ValueError: there are no samples, or a name is unknown.
    FileNotFoundError: a folder is not there.
  """
  metrics = _chosen(settings.metrics)
  sets = _sets(settings.samples)
  references = _optional(settings.reference)
  masks = _optional(settings.masks)
  cases = {name: _cases(found, references, masks) for name, found in sets.items()}
  _check_names(settings, sets, references)
  gone = {
    x.family.name: _missing(x.family, settings, cases, bool(references)) for x in metrics.values()
  }
  wanted = {x.family.name: x.family for x in metrics.values() if not gone[x.family.name]}
  # Once: weights may be gigabytes. At the beginning: what is wrong with them is told at once.
  identities = {
    name: TOOLS[name].identity(settings)
    for name in sorted({name for family in wanted.values() for name in family.tools})
  }
  chosen = [families.FACTS, *wanted.values()]
  measuring = _Measuring(settings, chosen, identities, bool(references))

  found = {name: measuring.all_of(name, cases[name]) for name in cases}
  true: dict[str, Found] = {}
  if references:
    of_references = [families.FACTS, *(x for x in wanted.values() if x.of_references)]
    measuring = _Measuring(settings, of_references, identities, True)
    true = measuring.all_of("references", [Case(x, x) for x in references.samples.values()])

  rows = []
  for name, metric in metrics.items():
    family = metric.family
    told, missing = metric.protocol(settings), gone[family.name]
    weights = "" if missing else _told(family, identities)
    results = {
      key: summary.reduce(metric, each[family.name], true.get(family.name, {}))
      for key, each in found.items()
      if not missing
    }
    rows.append(Row(name, told, weights, results, missing))
  notes = {
    key: [*_notes(sets[key], each["facts"]), *_unused(sets[key], references, masks)]
    for key, each in found.items()
  }
  shown = dict(sets)
  if references:
    notes[references.name] = _notes(references, true["facts"])
    shown[references.name] = references
  return Report(settings, shown, references.name if references else "", notes, rows)


class _Measuring:
  """Measures some families on any samples."""

  def __init__(
    self,
    settings: Settings,
    chosen: Sequence[Family],
    identities: Mapping[str, str],
    references: bool,
  ):
    self._settings, self._families, self._references = settings, chosen, references
    self._cache = pathlib.Path(settings.cache or pathlib.Path(settings.output) / "cache")
    for place in (pathlib.Path(settings.output), self._cache):
      atomic.make_folder(place)
    self._told = {x.name: (x.protocol(settings), _told(x, identities)) for x in chosen}
    names = sorted({name for family in chosen for name in family.tools})
    self._tools = {name: TOOLS[name].open(settings) for name in names}

  def all_of(self, what: str, cases: Sequence[Case]) -> dict[str, Found]:
    """By family and sample."""
    found: dict[str, Found] = {family.name: {} for family in self._families}
    with progress.bar(f"score {what}", len(cases) * len(self._families), "value") as bar:
      for start in range(0, len(cases), self._settings.batch):
        part = cases[start : start + self._settings.batch]
        for family in self._families:
          for case, values in zip(part, self._measure(family, part)):
            found[family.name][case.sample.name] = values
          bar.update(len(part))
        for case in part:
          for sample in (case.sample, case.reference, case.mask):
            if sample:
              sample.release()
    return found

  def _measure(self, family: Family, cases: Sequence[Case]) -> list[Values | Failure]:
    """From the cache where it is there."""
    found: dict[int, Values | Failure] = {}
    open_cases = []
    for index, case in enumerate(cases):
      lacking = case.lacks(family.needs, self._references)
      if lacking:
        found[index] = Failure(f"needs {lacking}")
        continue
      try:
        file = self._cache / f"{family.name}-{self._key(family, case)}.npz"
      except (ValueError, OSError) as error:
        found[index] = Failure(" ".join(str(error).split()))
        continue
      kept = _read(file)
      if kept is not None:
        found[index] = kept
      else:
        open_cases.append((index, case, file))
    if open_cases:
      context = Context(self._settings, {name: self._tools[name] for name in family.tools})
      measured = family.measure([case for _, case, _ in open_cases], context)
      for (index, _, file), values in zip(open_cases, measured, strict=True):
        found[index] = values
        if not isinstance(values, Failure):
          _write(file, values)
    return [found[index] for index in range(len(cases))]

  def _key(self, family: Family, case: Case) -> str:
    contents = [case.sample.digest]
    if {"reference", "clip"} & family.needs and case.reference:
      contents.append(case.reference.digest)
    if "mask" in family.needs and case.mask:
      contents.append(case.mask.digest)
    if family.timed:
      contents.append(platform.node())
    text = json.dumps([_VERSION, family.name, *self._told[family.name], *contents])
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _read(file: pathlib.Path) -> Values | None:
  """What was kept; a damaged file is made again."""
  try:
    with np.load(file, allow_pickle=False) as stored:
      return dict(stored)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    return None


def _write(file: pathlib.Path, values: Values) -> None:
  with atomic.replacing(file) as temporary, temporary.open("wb") as out:
    np.savez(out, **values)  # pyright: ignore


def _chosen(names: str) -> dict[str, Metric]:
  chosen = [name.strip() for name in names.split(",") if name.strip()] or list(METRICS)
  unknown = [name for name in chosen if name not in METRICS]
  if unknown:
    raise ValueError(f"Unknown metrics {unknown}; expected some of {', '.join(METRICS)}.")
  return {name: METRICS[name] for name in chosen}


def _sets(text: str) -> dict[str, SampleSet]:
  found: dict[str, SampleSet] = {}
  for item in filter(None, (part.strip() for part in text.split(","))):
    name, _, folder = item.rpartition("=")
    opened = open_set(pathlib.Path(folder), name)
    if opened.name in found:
      raise ValueError(f"Two sets are named {opened.name!r}; write NAME=FOLDER for one of them.")
    found[opened.name] = opened
  if not found:
    raise ValueError("No samples; give --config.samples=FOLDER, or several with commas.")
  return found


def _optional(folder: str) -> SampleSet | None:
  return open_set(pathlib.Path(folder)) if folder else None


def _cases(found: SampleSet, references: SampleSet | None, masks: SampleSet | None) -> list[Case]:
  def of(other: SampleSet | None, name: str):
    return other.samples.get(name) if other else None

  return [Case(x, of(references, name), of(masks, name)) for name, x in found.samples.items()]


def _check_names(settings: Settings, sets: dict[str, SampleSet], references: SampleSet | None):
  if references and references.name in sets:
    raise ValueError(
      f"Samples and references are both named {references.name!r}; write NAME={settings.samples}."
    )


def _missing(family: Family, settings: Settings, cases, references: bool) -> str:
  """What keeps a family from being measured at all."""
  gone = [missing for name in family.tools if (missing := TOOLS[name].missing(settings))]
  lacks = [case.lacks(family.needs, references) for each in cases.values() for case in each]
  if all(lacks):
    gone.append(min(set(lacks), key=len))
  return "; ".join(gone)


def _told(family: Family, identities: Mapping[str, str]) -> str:
  return ", ".join(f"{name} {identities[name]}" for name in family.tools)


def _notes(found: SampleSet, facts: Found) -> list[str]:
  """What a reader has to know of a set."""
  known = [x for x in facts.values() if not isinstance(x, Failure)]
  notes = [f"{len(found.samples)} samples"]
  if known:
    notes += [f"{what}: {told}" for what, told in _differences(known)]
  if found.ignored:
    notes.append(f"not scored, being no samples of this set: {', '.join(found.ignored)}")
  notes += [f"{name}: {x.reason}" for name, x in facts.items() if isinstance(x, Failure)]
  return notes


def _unused(
  found: SampleSet, references: SampleSet | None, masks: SampleSet | None
) -> Iterator[str]:
  """What lies beside a set and belongs to no sample of it."""
  others = {
    "references": (references, " (metrics of whole sets count them)"),
    "masks": (masks, ""),
  }
  for what, (other, rule) in others.items():
    names = sorted(set(other.samples) - set(found.samples)) if other else []
    if names:
      more = ", ..." if len(names) > _MOST_NAMES else ""
      told = ", ".join(names[:_MOST_NAMES]) + more
      yield f"{len(names)} {what} have no sample{rule}: {told}"


def _differences(known: Sequence[Values]) -> Iterator[tuple[str, str]]:
  kinds = {
    "frames": lambda x: f"{int(x['frames'])}",
    "pixels": lambda x: f"{int(x['width'])} x {int(x['height'])}",
    "frames a second": lambda x: f"{float(x['fps']):g}" if x["fps"] else "unknown",
  }
  for what, tell in kinds.items():
    told = sorted({tell(x) for x in known})
    mixed = " (they differ; frames are compared as they are)" if len(told) > 1 else ""
    yield what, f"{', '.join(told[:6])}{mixed}"
