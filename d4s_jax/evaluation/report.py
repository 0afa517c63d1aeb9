"""A report in the terminal and as JSON. It holds no times and no paths: two runs make the same."""

import dataclasses
import json
import pathlib
from typing import Any

from d4s_jax.evaluation import summary
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.runner import Report, Row
from d4s_jax.formats import atomic

PAPER = "Diff4Splat's own"


def written(result: summary.Result | None, digits: int, better: str = "") -> str:
  """A value with its interval and, where some samples have none, their count."""
  if result is None or result.value is None:
    return "-"
  text = f"{result.value:.{digits}f}"
  if result.interval:
    low, high = result.interval
    text += f" [{low:.{digits}f}, {high:.{digits}f}]"
  if result.count < result.total:
    text += f" ({result.count} of {result.total})"
  return text + better


def heading(row: Row) -> str:
  """The first cell of a metric's row."""
  metric = METRICS[row.name]
  return f"{metric.label} ({'up' if metric.better == 'higher' else 'down'})"


def columns(report: Report) -> list[tuple[str, bool]]:
  """Each set but the truth, and beside it (True) what the paper prints for it, where it does."""
  sets = [name for name in report.sets if name != report.reference]
  return [(name, theirs) for name in sets for theirs in (False, True)[: 1 + (name in report.paper)]]


def table(report: Report) -> list[list[str]]:
  """The header, with the number of samples, and a row for each metric that has a number.

  That is one that was measured, or that the paper prints for a set.
  """
  heads = [
    f"{name}: the paper's *" if theirs else f"{name} ({len(report.sets[name].samples)})"
    for name, theirs in columns(report)
  ]
  rows = [["", *heads, f"{PAPER} *"]]
  for row in report.rows:
    metric = METRICS[row.name]
    paper = {name: f"{x[row.name]:g}" for name, x in report.paper.items() if row.name in x}
    if row.missing and not paper:
      continue
    values = [
      paper.get(name, "") if theirs else written(row.results.get(name), metric.digits)
      for name, theirs in columns(report)
    ]
    rows.append([heading(row), *values, "" if metric.paper is None else f"{metric.paper:g}"])
  return rows


def text(report: Report) -> str:
  """The table, its protocols, what was not measured and why, and what to know of the sets."""
  rows = table(report)
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
  lines.append(
    "* As printed in the paper, on other data, by protocols that it tells in part; the unit of its"
    " rotations is not told."
  )
  lines += [
    "",
    "Means over samples, whose number stands in parentheses; in brackets 95% by bootstrap over"
    " them. Protocols:",
  ]
  lines += [f"  {told}" for told in protocols(report) or ["nothing was measured"]]
  absent = missing(report)
  if absent:
    lines += ["", "Not measured:"]
    lines += [f"  {names}: needs {why}" for why, names in absent.items()]
  lines += ["", "Sets:"]
  lines += [f"  {name}: {'; '.join(notes)}" for name, notes in report.notes.items()]
  lines += [f"  {told}" for told in remarks(report)]
  return "\n".join(line.rstrip() for line in lines)


def protocols(report: Report) -> list[str]:
  """One line for each protocol: its metrics, its id, its weights."""
  found: dict[tuple[str, str], list[str]] = {}
  for row in report.rows:
    if not row.missing:
      found.setdefault((row.protocol, row.weights), []).append(row.name)
  return [
    f"{', '.join(names)}: {protocol}" + (f" ({weights})" if weights else "")
    for (protocol, weights), names in found.items()
  ]


def missing(report: Report) -> dict[str, str]:
  """What isn't there, and the metrics that need it."""
  found: dict[str, list[str]] = {}
  for row in report.rows:
    if row.missing:
      found.setdefault(row.missing, []).append(METRICS[row.name].label)
  return {why: "; ".join(labels) for why, labels in found.items()}


def remarks(report: Report) -> list[str]:
  """What to know of the results: notes, and which samples have no value and why."""
  told: dict[tuple[str, str], list[str]] = {}
  for row in report.rows:
    label = METRICS[row.name].label
    for name, result in row.results.items():
      for note in result.notes:
        told.setdefault((name, note), []).append(label)
      reasons: dict[tuple[str, bool], list[str]] = {}
      for who, reason in sorted(result.failures.items()):
        reasons.setdefault((reason, who in report.sets[name].samples), []).append(who)
      for (reason, scored), who in reasons.items():
        named = ", ".join(x.removeprefix("" if scored else summary.REFERENCE) for x in who[:3])
        some = named + ", ..." * (len(who) > 3)
        which = f"{len(who)} {'samples' if scored else 'references'} ({some})"
        if scored and len(who) == result.total:
          which = "any sample"
        told.setdefault((name, f"no value for {which}: {reason}"), []).append(label)
  return [f"{name}: {note} [{'; '.join(labels)}]" for (name, note), labels in told.items()]


def encode(report: Report) -> dict[str, Any]:
  """The report as JSON has it."""
  rows = {}
  for row in report.rows:
    metric = METRICS[row.name]
    rows[row.name] = {
      "label": metric.label,
      "better": metric.better,
      "protocol": row.protocol,
      "weights": row.weights,
      "missing": row.missing,
      "measures_this_machine": metric.family.timed,
      "diff4splat_paper": metric.paper,
      "results": {name: dataclasses.asdict(result) for name, result in row.results.items()},
    }
  return {
    "version": 1,
    "paper": report.paper,
    "sets": report.notes,
    "reference": report.reference,
    "metrics": rows,
  }


def write(folder: pathlib.Path, report: Report) -> None:
  """Leaves report.json and report.txt."""
  contents = json.dumps(encode(report), indent=1, sort_keys=True, allow_nan=False) + "\n"
  for name, content in (("report.json", contents), ("report.txt", text(report) + "\n")):
    with atomic.replacing(folder / name) as temporary:
      temporary.write_text(content, encoding="utf-8")
