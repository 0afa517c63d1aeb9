"""The report of a run: what was kept and why not, histograms of figures, sample sheets."""

import array
import base64
import io
import pathlib
from collections import Counter
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from d4s_jax.curation import stages
from d4s_jax.curation.ledger import decisions
from d4s_jax.curation.settings import Settings
from d4s_jax.formats import atomic, images

_LISTED = 200
_COLUMNS = 4


def write_report(folder: pathlib.Path, settings: Settings, problems: list[str]) -> str:
  """Writes report.md, histograms.png and samples.png into the folder; returns a summary."""
  reasons: Counter[str] = Counter()
  # Values of each figure, and whether their clips were kept: 9 bytes each, of any number of clips.
  figures: dict[str, tuple[array.array, bytearray]] = {}
  quarantined: list[tuple[str, str]] = []
  shown: dict[str, list[tuple[str, str]]] = {}
  metres: Counter[str] = Counter()
  clips = units = 0
  problems = list(problems)
  for told in decisions(folder):
    if told.get("quarantined"):
      quarantined.append((told.get("clip") or told["unit"], told["reason"]))
    if "clip" not in told:
      units += 1
      problems += told["problems"]
      continue
    clips += 1
    why = _why(told)
    reasons[why] += 1
    if "metres" in told:
      metres[told["metres"]] += 1
    for name, value in told.get("figures", {}).items():
      values, kept = figures.setdefault(name, (array.array("d"), bytearray()))
      values.append(value)
      kept.append(told["kept"])
    if told.get("thumbnail"):
      shown.setdefault(why, []).append((told["clip"], told["thumbnail"]))
  summary = (
    f"{reasons['kept']} of {clips} clips of {units} scenes or files were kept,"
    f" {len(quarantined)} quarantined."
  )
  limits = stages.limits(settings.limits)
  lines = ["# Curation", "", summary, "", "| decision | clips |", "|---|---|"]
  lines += [f"| {why} | {count} |" for why, count in reasons.most_common()]
  lines += ["", "| metres are from | clips |", "|---|---|"]
  lines += [f"| {where} | {count} |" for where, count in metres.most_common()]
  lines += ["", "| figure | clips | 5% | median | 95% | limits |", "|---|---|---|---|---|---|"]
  for name, (values, _) in sorted(figures.items()):
    low, middle, high = np.percentile(values, [5, 50, 95])
    least, most = limits.get(name, (None, None))
    ends = ["" if x is None else f"{x:g}" for x in (least, most)]
    bound = " to ".join(ends).strip() if any(ends) else ""
    lines.append(f"| {name} | {len(values)} | {low:.4g} | {middle:.4g} | {high:.4g} | {bound} |")
  if figures:
    _histograms(folder / "histograms.png", figures, limits)
    lines += ["", "![histograms](histograms.png)"]
  if shown:
    _samples(folder / "samples.png", shown)
    lines += ["", "![samples](samples.png)"]
  lines += _list("Quarantined", [f"{name}: {reason}" for name, reason in quarantined])
  lines += _list("Problems", problems)
  with atomic.replacing(folder / "report.md") as temporary:
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
  return summary


def _why(told: dict[str, Any]) -> str:
  if told["kept"]:
    return "kept"
  if told.get("quarantined"):
    return "quarantined"
  words = told["reason"].split()
  return "duplicate" if words[0] == "duplicate" else f"{words[0]} {words[-2]} {words[-1]}"


def _list(title: str, sentences: list[str]) -> list[str]:
  if not sentences:
    return []
  more = [f"- ... and {len(sentences) - _LISTED} more"] if len(sentences) > _LISTED else []
  return ["", f"## {title}", "", *(f"- {' '.join(x.split())}" for x in sentences[:_LISTED]), *more]


def _histograms(path: pathlib.Path, figures, limits) -> None:
  names = sorted(figures)
  rows = -(-len(names) // _COLUMNS)
  with matplotlib.rc_context({"font.size": 8}):
    figure = Figure(figsize=(3 * _COLUMNS, 2 * rows), layout="constrained")
    for number, name in enumerate(names):
      axes = figure.add_subplot(rows, _COLUMNS, number + 1)
      value, kept = (np.frombuffer(x, kind) for x, kind in zip(figures[name], (float, bool)))
      low, high = np.percentile(value, [0.5, 99.5])
      bounds = [x for x in limits.get(name, ()) if x is not None and low - 1 < x < 3 * high + 1]
      edges = np.linspace(min([low, *bounds]), max([high, *bounds]) + 1e-9, 30)
      parts = [np.clip(value[mask], edges[0], edges[-1]) for mask in (kept, ~kept)]
      axes.hist(parts, edges, stacked=True, color=["#3a7", "#c66"], label=["kept", "rejected"])
      for bound in bounds:
        axes.axvline(bound, color="black", linestyle=":")
      axes.set_title(name)
      axes.set_yticks([])
      if not number:
        axes.legend()
    with atomic.replacing(path) as temporary:
      figure.savefig(temporary, format="png", dpi=90)


def _samples(path: pathlib.Path, shown: dict[str, list[tuple[str, str]]]) -> None:
  """Rows of four frames of a clip each, under their clips' names and what became of them."""
  rows = {}
  for why in sorted(shown, key=lambda x: (x != "kept", x)):
    for name, thumbnail in shown[why]:
      strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(thumbnail)), formats=("JPEG",)))
      wide = strip.shape[1] // 4
      frames = [strip[:, i * wide : (i + 1) * wide].astype(np.float32) / 255 for i in range(4)]
      rows[f"{why}: {name}"[:110]] = np.stack(frames)
  images.contact_sheet(path, rows, columns=4, cell_height=110)
