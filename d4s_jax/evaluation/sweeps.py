"""Sweeps: rows that differ in one thing, each trained or loaded, then scored side by side.

A sweep is a config file (`configs/sweeps/`): `rows` by name, each with

  run        a run that is there, "shipped", or "" to train one
  stages     (config file, overrides) of each stage to train, the file with an argument as after
             --config=; a stage's LDRM starts from the one before
  sampling   settings of the sampler other than the checkpoint's
  scenes     a kind of `maker.KINDS`: "generated" from a picture, "reconstructed" from the true
             video, or Gaussians fitted per scene: "two_stage" to the video that is generated, from
             random points; to the true video, decoded, "from_random" ones, "from_points" of SIFT,
             "refined" from what the model reconstructs
  count      scenes, if not as many as the sweep says: the first of the others'
  paper      what the paper prints for this row, by metric
  told       what else the paper says of it

What was trained, made or measured already is not done again. Beside each run lies what it was
trained with: its overrides, a hash of the configuration that they make, and hashes of the weights
of the package that it starts from (of a run that it starts from, the name is in the configuration).
"""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import config_flags

from d4s_jax.evaluation import benchmark, runner
from d4s_jax.evaluation.maker import KINDS, Maker
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.settings import Settings
from d4s_jax.models import shipped
from d4s_jax.pipeline import progress
from d4s_jax.training import inference

_SWEEP = ("rows", "count", "workdir", "metrics")
_KEYS = {"run", "stages", "sampling", "scenes", "count", "paper", "told"}


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a sweep; see the head of this module.

  Attributes:
    run: a run, "shipped", or "".
    stages: (config file, overrides) of each.
    sampling: settings.
    scenes: a kind of `maker.KINDS`.
    count: scenes; 0 for the sweep's.
    paper: numbers by metric.
    told: text.
  """

  run: str = ""
  stages: tuple[tuple[str, tuple[str, ...]], ...] = ()
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scenes: str = "reconstructed"
  count: int = 0
  paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
  told: str = ""


def rows_of(config: Mapping[str, Any]) -> dict[str, Row]:
  """The rows of a sweep's configuration.

  Raises:
    ValueError: a row lacks what it needs, or has what no row has.
  """
  lacking = [key for key in _SWEEP if key not in config]
  if lacking:
    raise ValueError(f"The sweep lacks {', '.join(lacking)}; expected {', '.join(_SWEEP)}.")
  found = {}
  for name, given in config["rows"].items():
    row = Row(**{key: x for key, x in given.items() if key in _KEYS})
    fault = [*sorted(set(given) - _KEYS), *sorted(set(row.paper) - set(METRICS))]
    fault += [] if row.scenes in KINDS else [row.scenes]
    if bool(row.run) == bool(row.stages):
      fault.append("both a run and stages" if row.run else "neither a run nor stages")
    if fault:
      raise ValueError(
        f"Row {name!r} of the sweep: {', '.join(fault)}; expected a run or stages, keys among"
        f" {sorted(_KEYS)}, scenes of {', '.join(KINDS)}, and metrics."
      )
    found[name] = row
  if not found:
    raise ValueError("A sweep without rows; expected at least one.")
  return found


def run(config: Mapping[str, Any], settings: Settings) -> runner.Report:
  """Trains or loads each row, makes its scenes and scores all of them.

  Args:
    config: `rows`, `count` of the embedded scenes, `workdir`, `metrics`.
    settings: of the evaluation; samples, reference and metrics are the sweep's.
  """
  rows, workdir = rows_of(config), pathlib.Path(config["workdir"])
  counts = {name: row.count or config["count"] for name, row in rows.items()}
  opened: dict[str, Any] = {}
  size = 0
  for name, row in rows.items():
    place = row.run or str(_trained(name, row, workdir))
    if place not in opened:
      opened = {place: inference.open_checkpoint(place, progress.timed)}
    maker = Maker(opened[place], sampling=row.sampling)
    benchmark.embedded(workdir / name / "set", maker, counts[name], (row.scenes,))
    size = maker.frames
  # The most scenes, so that each has its truth.
  first = max(counts, key=lambda name: counts[name])
  settings = dataclasses.replace(
    settings,
    samples=",".join(f"{name}={workdir / name / 'set' / row.scenes}" for name, row in rows.items()),
    reference=str(workdir / first / "set" / "true"),
    metrics=settings.metrics or config["metrics"],
    frames=min(settings.frames, size),
  )
  found = runner.evaluate(settings)
  notes = {
    name: [*lines, *(_told(rows[name], counts[name], counts[first]) if name in rows else ())]
    for name, lines in found.notes.items()
  }
  paper = {name: dict(row.paper) for name, row in rows.items() if row.paper}
  return dataclasses.replace(found, notes=notes, paper=paper)


def _told(row: Row, count: int, most: int) -> list[str]:
  """What a reader has to know of a row with `count` scenes, where another has `most`."""
  few = f"the first {count} scenes alone of {most}: its means are not of the scenes of all rows"
  return [few] * (count < most) + [f"the paper: {row.told}"] * bool(row.told)


def _trained(name: str, row: Row, workdir: pathlib.Path) -> pathlib.Path:
  """The last stage's run, trained as far as it is not."""
  before = None
  for folder, (config, overrides) in zip(_folders(workdir / name, row), row.stages, strict=True):
    options = [f"--config.{option}" for option in overrides]
    if before:
      options.append(f"--config.init.ldrm={before}")
    _check_same(folder, _depends(config, options))
    if not (folder / "summary.json").exists():
      command = [sys.executable, "-m", "d4s_jax.train", f"--config={config}"]
      done = subprocess.run([*command, f"--workdir={folder}", *options], check=False)
      if done.returncode:
        raise ValueError(
          f"Training row {name!r} ended with status {done.returncode}; see above. The same command"
          " goes on from its last checkpoint."
        )
    before = folder
  assert before is not None
  return before


def _folders(place: pathlib.Path, row: Row) -> list[pathlib.Path]:
  """A folder for each stage, by its config file; `static-2` for the second of the same file."""
  files = [pathlib.Path(config.partition(":")[0]).stem for config, _ in row.stages]
  turns = [files[:number].count(file) + 1 for number, file in enumerate(files)]
  return [place / (f"{x}-{n}" if n > 1 else x) for x, n in zip(files, turns, strict=True)]


def _depends(config: str, options: list[str]) -> dict[str, Any]:
  """What a training depends on: overrides, the configuration that they make, the first weights."""
  arguments, values = ["train", f"--config={config}", *options], flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
  try:
    values(arguments)
    resolved: dict[str, Any] = values["config"].value.to_dict()  # pyright: ignore
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    told = " ".join(str(error).split())
    raise ValueError(f"{config} with {options} is no configuration ({told}).") from error
  weights = {
    part: hashlib.sha256(shipped.path(resolved["preset"], part).read_bytes()).hexdigest()
    for part, origin in resolved["init"].items()
    if origin == shipped.ORIGIN
  }
  text = json.dumps(resolved, sort_keys=True)
  configuration = hashlib.sha256(text.encode()).hexdigest()
  return {"options": options, "configuration": configuration, "weights": weights}


def _check_same(folder: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Notes what a run is trained with, or refuses one that was trained with something else."""
  note = folder.with_suffix(".options.json")
  remedy = "give another workdir (--sweep.workdir), or remove that folder"
  if not folder.exists():
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted))
    return
  if not note.exists():
    raise ValueError(f"{folder} is a run that says nothing of its options ({note.name}); {remedy}.")
  found = json.loads(note.read_text())
  if isinstance(found, list):
    raise ValueError(
      f"{folder} was trained by a version that noted no hashes of its configuration and weights"
      f" ({note.name}), so nobody knows whether they are this row's; {remedy}."
    )
  for what, now in wanted.items():
    if found[what] != now:
      raise ValueError(f"{folder} was trained with {what} {found[what]}, not {now}; {remedy}.")
