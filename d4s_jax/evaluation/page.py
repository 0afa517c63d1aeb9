"""A report as one HTML file that opens from disk: table, plots, videos side by side, figures."""

import base64
import html
import pathlib
import tempfile

import numpy as np

from d4s_jax.evaluation import plots
from d4s_jax.evaluation import report as told
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.runner import Report, Row
from d4s_jax.evaluation.samples import Sample
from d4s_jax.formats import atomic
from d4s_jax.formats.video import write_video

_TEMPLATE = pathlib.Path(__file__).parent / "page.html"
# Frames a second of a video that says none.
_FPS = 8.0


def write(path: pathlib.Path, report: Report) -> None:
  """Writes the page."""
  names = [name for name in report.sets if name != report.reference]
  parts = [
    "<h2>Table</h2>",
    _table(report, names),
    _drawn("Samples one by one", plots.samples(report, names)),
    _drawn("Quality against time and memory", plots.tradeoffs(report, names)),
    _drawn("Quality over time of fitting", plots.fits(report, names)),
    "<h2>Videos</h2>",
    _videos(report),
    _figures(report, names),
    _remarks(report),
  ]
  page = _TEMPLATE.read_text(encoding="utf-8").replace("/*BODY*/", "\n".join(parts))
  with atomic.replacing(path) as temporary:
    temporary.write_text(page, encoding="utf-8")


def _table(report: Report, names: list[str]) -> str:
  header, *rows = told.table(report)
  metrics = {told.heading(row): row for row in report.rows}
  body = []
  for label, *cells in rows:
    best = _best(metrics[label], names)
    marked = [
      f"<td class={'paper' if theirs else 'best' if name == best else 'other'}>"
      f"{_small(_cell(cell))}</td>"
      for (name, theirs), cell in zip([*told.columns(report), ("", True)], cells)
    ]
    body.append(f"<tr><td>{_cell(label)}</td>{''.join(marked)}</tr>")
  # The star stays at its word.
  heads = "".join(f"<th>{_cell(cell).replace(' *', '&nbsp;*')}</th>" for cell in header)
  return (
    f"<div class=scroll><table><tr>{heads}</tr>{''.join(body)}</table></div><p>Means over samples,"
    " whose number stands in parentheses; in brackets 95% by bootstrap. What is coloured is printed"
    " in the paper: other data, other protocols, not to be compared with; the unit of its rotations"
    " is not told.</p>"
  )


def _best(row: Row, names: list[str]) -> str | None:
  values = {name: row.results[name].value for name in names if name in row.results}
  known = {name: x for name, x in values.items() if x is not None}
  if len(known) < 2 or len(set(known.values())) < 2:
    return None
  sign = 1 if METRICS[row.name].better == "higher" else -1
  return max(known, key=lambda name: sign * known[name])


def _drawn(title: str, figures: list[str]) -> str:
  return f"<h2>{title}</h2><div class=plots>{''.join(figures)}</div>" if figures else ""


def _videos(report: Report) -> str:
  """The first samples of all sets, each beside its reference."""
  # The truth first: of many sets only the first ones are beside it.
  names = sorted(report.sets, key=lambda name: name != report.reference)
  samples = sorted({key for name in report.sets for key in report.sets[name].samples})
  samples = [key for key in samples if any(_own(report, name, key) for name in report.sets)]
  rows = []
  for key in samples[: report.settings.shown]:
    cells = []
    for name in names:
      samples_of = report.sets[name].samples
      if key in samples_of:
        figures = "" if name == report.reference else _brief(report, name, key)
        cells.append(
          f"<figure>{_video(samples_of[key])}<figcaption>{_cell(name)}{figures}</figcaption>"
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
    frames = sample.frames(256, shown=True)
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
  """Values that stand under a video: not what it cost, which its row of figures tells too."""
  told_of = []
  for row in report.rows:
    result, metric = row.results.get(name), METRICS[row.name]
    if result and key in result.samples and not metric.family.timed:
      told_of.append(f"{_cell(metric.label)} {result.samples[key]:.{metric.digits}f}")
  return "".join(f"<br><small>{x}</small>" for x in told_of)


def _figures(report: Report, names: list[str]) -> str:
  rows = [row for row in report.rows if any(x.samples for x in row.results.values())]
  if not rows:
    return ""
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
  return f"<h2>Figures of each sample</h2>{''.join(tables)}"


def _remarks(report: Report) -> str:
  def items(lines) -> str:
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"

  absent = [f"{_cell(names)}: needs {_cell(why)}" for why, names in told.missing(report).items()]
  sets = [f"{_cell(name)}{items(map(_cell, notes))}" for name, notes in report.notes.items()]
  remarks = [_cell(line) for line in told.remarks(report)]
  protocols = [f"<code>{_cell(line)}</code>" for line in told.protocols(report)]
  return (
    f"<h2>Not measured</h2>{items(absent or ['nothing'])}<h2>Protocols</h2>"
    f"{items(protocols or ['nothing was measured'])}"
    f"<h2>Sets</h2>{items(sets + remarks)}"
  )


def _cell(text: str) -> str:
  return html.escape(str(text))


def _small(cell: str) -> str:
  """The interval in small print."""
  value, space, rest = cell.partition(" ")
  return f"{value}{space}<small>{rest}</small>" if rest else value
