"""A report as one HTML file that opens from disk: table, plots, videos side by side, figures."""

import base64
import html
import pathlib
import tempfile

import numpy as np

from d4s_jax.evaluation import report as told
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.runner import Report, Row
from d4s_jax.evaluation.samples import Sample
from d4s_jax.formats import atomic
from d4s_jax.formats.video import write_video

_TEMPLATE = pathlib.Path(__file__).parent / "page.html"
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
_WIDTH, _ROW, _LEFT = 380, 26, 120
# Frames a second of a video that says none.
_FPS = 8.0


def write(path: pathlib.Path, report: Report) -> None:
  """Writes the page."""
  names = [name for name in report.sets if name != report.reference]
  parts = [
    "<h2>Table</h2>",
    _table(report, names),
    f"<h2>Samples one by one</h2><div class=plots>{_plots(report, names)}</div>",
    _tradeoffs(report, names),
    "<h2>Videos</h2>",
    _videos(report),
    f"<h2>Figures of each sample</h2>{_figures(report, names)}",
    _remarks(report),
  ]
  page = _TEMPLATE.read_text(encoding="utf-8").replace("/*BODY*/", "\n".join(parts))
  with atomic.replacing(path) as temporary:
    temporary.write_text(page, encoding="utf-8")


def _table(report: Report, names: list[str]) -> str:
  header, *rows = told.table(report)
  measured = {told.heading(row): row for row in report.rows if not row.missing}
  body = []
  for label, *cells in rows:
    row = measured.get(label)
    best = _best(row, names) if row else None
    kind = "other" if row else "paper"
    marked = [
      f"<td class={'best' if name == best else kind}>{_small(_cell(cell))}</td>"
      for name, cell in zip(names, cells[:-1])
    ]
    paper = f"<td class=paper>{_cell(cells[-1])}</td>"
    body.append(f"<tr><td class={kind}>{_cell(label)}</td>{''.join(marked)}{paper}</tr>")
  heads = "".join(f"<th>{_cell(cell)}</th>" for cell in header)
  return (
    f"<div class=scroll><table><tr>{heads}</tr>{''.join(body)}</table></div><p>Means over samples,"
    " in brackets 95% by bootstrap. What is coloured is printed in the paper: other data, other"
    " protocols, not to be compared with; the unit of its rotations is not told.</p>"
  )


def _best(row: Row, names: list[str]) -> str | None:
  values = {name: row.results[name].value for name in names if name in row.results}
  known = {name: x for name, x in values.items() if x is not None}
  if len(known) < 2 or len(set(known.values())) < 2:
    return None
  sign = 1 if METRICS[row.name].better == "higher" else -1
  return max(known, key=lambda name: sign * known[name])


def _plots(report: Report, names: list[str]) -> str:
  plots = []
  for row in report.rows:
    values = {name: dict(x.samples) for name, x in row.results.items() if x.samples}
    if not row.missing and values:
      plots.append(_plot(METRICS[row.name].label, row, values, names))
  return "".join(plots)


def _plot(label: str, row: Row, values: dict[str, dict[str, float]], names: list[str]) -> str:
  """A dot for each sample, a bar for the mean and a line for its interval, one line a set."""
  everything = [x for each in values.values() for x in each.values()]
  low, high = min(everything), max(everything)
  span = (high - low) or 1.0

  def place(x: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 12) * (x - low) / span

  lines = []
  for line, name in enumerate(n for n in names if n in values):
    y, colour = 16 + line * _ROW, _COLOURS[names.index(name) % len(_COLOURS)]
    lines.append(f'<text x="0" y="{y + 4}" font-size="12">{_cell(name[:18])}</text>')
    for sample, x in values[name].items():
      lines.append(
        f'<circle cx="{place(x):.1f}" cy="{y}" r="4" fill="{colour}" fill-opacity=".45">'
        f"<title>{_cell(sample)}: {x:.4g}</title></circle>"
      )
    result = row.results[name]
    if result.interval:
      a, b = map(place, result.interval)
      lines.append(f'<path d="M{a:.1f} {y}H{b:.1f}" stroke="#000" stroke-width="2"/>')
    if result.value is not None:
      lines.append(
        f'<path d="M{place(result.value):.1f} {y - 8}v16" stroke="#000" stroke-width="2"/>'
      )
  height = 24 + len(values) * _ROW
  ends = (
    f'<text x="{_LEFT}" y="{height - 2}" font-size="11">{low:.3g}</text>'
    f'<text x="{_WIDTH - 10}" y="{height - 2}" font-size="11" text-anchor="end">{high:.3g}</text>'
  )
  return (
    f'<figure><svg width="{_WIDTH}" height="{height}" role="img">{"".join(lines)}{ends}</svg>'
    f"<figcaption>{_cell(label)}</figcaption></figure>"
  )


def _tradeoffs(report: Report, names: list[str]) -> str:
  """Quality against time and memory, a dot for each set."""
  rows = {row.name: row for row in report.rows if not row.missing}
  plots = []
  for cost in ("seconds", "latency", "memory"):
    for quality in ("view_psnr", "psnr", "fvd"):
      if cost in rows and quality in rows:
        both = {
          name: (rows[cost].results[name].value, rows[quality].results[name].value)
          for name in names
        }
        known = {name: (x, y) for name, (x, y) in both.items() if x is not None and y is not None}
        if len(known) > 1:
          plots.append(_scatter(METRICS[cost].label, METRICS[quality].label, known, names))
  if not plots:
    return ""
  return f"<h2>Quality against time and memory</h2><div class=plots>{''.join(plots)}</div>"


def _scatter(across: str, up: str, points: dict[str, tuple[float, float]], names: list[str]) -> str:
  size, border = 260, 30
  spans = []
  for values in zip(*points.values()):
    margin = 0.1 * (max(values) - min(values)) or abs(0.1 * max(values)) or 1.0
    spans.append((min(values) - margin, max(values) + margin))

  def place(x: float, y: float) -> tuple[float, float]:
    shares = [(v - low) / (high - low) for v, (low, high) in zip((x, y), spans)]
    return border + shares[0] * (size - border), (1 - shares[1]) * (size - border)

  dots = []
  for name, point in points.items():
    x, y = place(*point)
    colour = _COLOURS[names.index(name) % len(_COLOURS)]
    dots.append(
      f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/><text x="{x + 7:.1f}"'
      f' y="{y + 4:.1f}" font-size="11">{_cell(name[:20])}</text>'
    )
  end = size - border
  axes = f'<path d="M{border} 0V{end}H{size}" fill="none" stroke="#999"/>'
  ends = [
    (border, size - 12, "start", spans[0][0]),
    (size, size - 12, "end", spans[0][1]),
    (border - 3, end, "end", spans[1][0]),
    (border - 3, 10, "end", spans[1][1]),
  ]
  ticks = "".join(
    f'<text x="{x}" y="{y}" font-size="10" text-anchor="{anchor}">{value:.3g}</text>'
    for x, y, anchor, value in ends
  )
  return (
    f'<figure><svg width="{size + 130}" height="{size}" role="img">{axes}{ticks}{"".join(dots)}'
    f"</svg><figcaption>{_cell(up)} against {_cell(across)}</figcaption></figure>"
  )


def _videos(report: Report) -> str:
  """The first samples of all sets, each beside its reference."""
  samples = sorted({key for name in report.sets for key in report.sets[name].samples})
  samples = [key for key in samples if any(_own(report, name, key) for name in report.sets)]
  rows = []
  for key in samples[: report.settings.shown]:
    cells = []
    for name, found in report.sets.items():
      if key in found.samples:
        figures = "" if name == report.reference else _brief(report, name, key)
        cells.append(
          f"<figure>{_video(found.samples[key])}<figcaption>{_cell(name)}{figures}</figcaption>"
          "</figure>"
        )
    rows.append(f"<h3>{_cell(key)}</h3><div class=clip>{''.join(cells)}</div>")
  more = len(samples) - len(rows)
  rest = f"<p>{more} more samples are not shown (config.shown).</p>" if more > 0 else ""
  return "".join(rows) + rest


def _own(report: Report, name: str, key: str) -> bool:
  return name != report.reference and key in report.sets[name].samples


def _video(sample: Sample) -> str:
  try:
    frames = sample.frames(256)
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / "video.mp4"
      write_video(file, np.clip(frames, 0, 1), sample.fps or _FPS)
      data = base64.b64encode(file.read_bytes()).decode()
  except (ValueError, OSError) as error:
    return f"<p>{_cell(str(error))}</p>"
  finally:
    sample.release()
  return f'<video controls loop muted playsinline src="data:video/mp4;base64,{data}"></video>'


def _brief(report: Report, name: str, key: str) -> str:
  told_of = []
  for row in report.rows:
    result = row.results.get(name)
    if result and key in result.samples:
      metric = METRICS[row.name]
      told_of.append(f"{_cell(metric.label)} {result.samples[key]:.{metric.digits}f}")
  return "".join(f"<br><small>{x}</small>" for x in told_of)


def _figures(report: Report, names: list[str]) -> str:
  rows = [row for row in report.rows if any(x.samples for x in row.results.values())]
  head = "".join(f"<th>{_cell(METRICS[row.name].label)}</th>" for row in rows)
  tables = []
  for name in names:
    body = []
    for key in sorted(report.sets[name].samples):
      cells = []
      for row in rows:
        result = row.results.get(name)
        value = result.samples.get(key) if result else None
        reason = result.failures.get(key, "") if result else ""
        digits = METRICS[row.name].digits
        shown = (
          f'<span title="{_cell(reason)}">-</span>' if value is None else f"{value:.{digits}f}"
        )
        cells.append(f"<td>{shown}</td>")
      body.append(f"<tr><td>{_cell(key)}</td>{''.join(cells)}</tr>")
    tables.append(
      f"<h3>{_cell(name)}</h3><div class=scroll><table><tr><th></th>{head}</tr>{''.join(body)}"
      "</table></div>"
    )
  return "".join(tables)


def _remarks(report: Report) -> str:
  def items(lines) -> str:
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"

  absent = [f"{_cell(names)}: needs {_cell(why)}" for why, names in told.missing(report).items()]
  sets = [f"{_cell(name)}: {_cell('; '.join(notes))}" for name, notes in report.notes.items()]
  remarks = [_cell(line) for line in told.remarks(report)]
  protocols = [f"<code>{_cell(line)}</code>" for line in told.protocols(report)]
  return (
    f"<h2>Not measured</h2>{items(absent or ['nothing'])}<h2>Protocols</h2>{items(protocols)}"
    f"<h2>Sets</h2>{items(sets + remarks)}"
  )


def _cell(text: str) -> str:
  return html.escape(str(text))


def _small(cell: str) -> str:
  """The interval in small print."""
  value, space, rest = cell.partition(" ")
  return f"{value}{space}<small>{rest}</small>" if rest else value
