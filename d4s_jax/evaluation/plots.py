"""Figures of a report as SVG: samples, quality against cost, quality over time."""

import html
import math

from d4s_jax.evaluation.fit_curve import STEPS
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.runner import Report, Row

_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
_WIDTH, _ROW, _LEFT = 380, 26, 120
# Of figures with two axes, three beside each other: pixels a side, of the border, and of the names
# at the right.
_SIDE, _BORDER, _NAMES = 226, 34, 160

# A cost whose values differ by more than this factor.
_DECADES = 20

Points = dict[str, list[tuple[float, float]]]


def samples(report: Report, names: list[str]) -> list[str]:
  """One for each metric that samples have."""
  plots = []
  for row in report.rows:
    values = {name: dict(x.samples) for name, x in row.results.items() if x.samples}
    if not row.missing and values:
      plots.append(_dots(METRICS[row.name].label, row, values, names))
  return plots


def _dots(label: str, row: Row, values: dict[str, dict[str, float]], names: list[str]) -> str:
  """A dot for each sample, a bar for the mean and a line for its interval, one line a set."""
  everything = [x for each in values.values() for x in each.values()]
  low, high = min(everything), max(everything)
  span = (high - low) or 1.0

  def place(x: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - 12) * (x - low) / span

  lines = []
  for line, name in enumerate(n for n in names if n in values):
    y, colour = 16 + line * _ROW, _COLOURS[names.index(name) % len(_COLOURS)]
    lines.append(f'<text x="0" y="{y + 4}" font-size="12">{html.escape(name[:18])}</text>')
    for sample, x in values[name].items():
      lines.append(
        f'<circle cx="{place(x):.1f}" cy="{y}" r="4" fill="{colour}" fill-opacity=".45">'
        f"<title>{html.escape(sample)}: {x:.4g}</title></circle>"
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
    f'<text x="{_LEFT}" y="{height - 2}" font-size="11">{low:.4g}</text>'
    f'<text x="{_WIDTH - 10}" y="{height - 2}" font-size="11" text-anchor="end">{high:.4g}</text>'
  )
  return _figure(_WIDTH, height, [*lines, ends], label)


def tradeoffs(report: Report, names: list[str]) -> list[str]:
  """Quality against time and memory, a dot for each set."""
  drawn = []
  for cost in ("seconds", "latency", "memory_added"):
    for quality in ("view_psnr", "psnr", "fvd"):
      points = {name: [(x, y)] for name in names for x, y in _both(report, name, cost, quality)}
      if len(points) > 1:
        drawn.append(_plane(METRICS[cost].label, METRICS[quality].label, points, names))
  return drawn


def fits(report: Report, names: list[str]) -> list[str]:
  """Quality over time of per-scene optimisation, a line for each set that has it."""
  points: Points = {}
  for name in names:
    for steps in STEPS:
      for point in _both(report, name, f"fit_seconds_{steps}", f"fit_psnr_{steps}"):
        points.setdefault(name, []).append(point)
  return [_plane("seconds of fitting", "other views, PSNR, dB", points, names)] if points else []


def _both(report: Report, name: str, across: str, up: str) -> list[tuple[float, float]]:
  """The two values of a set, if both were measured."""
  rows = {row.name: row for row in report.rows if not row.missing}
  found = [rows[key].results[name].value for key in (across, up) if key in rows]
  return [(found[0], found[1])] if len(found) == 2 and None not in found else []  # pyright: ignore


def _plane(across: str, up: str, points: Points, names: list[str]) -> str:
  """Points or lines in a plane; their names stand at the right, each in its colour."""
  columns = list(zip(*(point for each in points.values() for point in each)))
  # What differs by decades is drawn by decades.
  wide = min(columns[0]) > 0 and max(columns[0]) > _DECADES * min(columns[0])
  spans = [_span(columns[0], wide), _span(columns[1], False)]
  end = _SIDE - _BORDER

  def place(point: tuple[float, float]) -> tuple[float, float]:
    shown = math.log(point[0]) if wide else point[0], point[1]
    shares = [(v - low) / (high - low) for v, (low, high) in zip(shown, spans)]
    return _BORDER + shares[0] * end, (1 - shares[1]) * end

  parts = [f'<path d="M{_BORDER} 0V{end}H{_SIDE}" fill="none" stroke="#999"/>']
  # Names are moved apart, from the highest point down.
  order = sorted(points, key=lambda name: place(points[name][-1])[1])
  heights: list[float] = []
  for name in order:
    colour = _COLOURS[names.index(name) % len(_COLOURS)]
    placed = [place(point) for point in points[name]]
    x, y = placed[-1]
    heights.append(max(y + 4, heights[-1] + 12 if heights else 10))
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in placed)
    parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in placed]
    parts.append(
      f'<path d="M{x:.1f} {y:.1f}L{_SIDE + 8} {heights[-1] - 4:.1f}" stroke="{colour}"'
      f' stroke-opacity=".3"/><text x="{_SIDE + 12}" y="{heights[-1]:.1f}" font-size="11"'
      f' fill="{colour}">{html.escape(name[:26])}</text>'
    )
  ends = [
    (_BORDER, end + 14, "start", math.exp(spans[0][0]) if wide else spans[0][0]),
    (_SIDE, end + 14, "end", math.exp(spans[0][1]) if wide else spans[0][1]),
    (_BORDER - 3, end, "end", spans[1][0]),
    (_BORDER - 3, 10, "end", spans[1][1]),
  ]
  parts += [
    f'<text x="{x}" y="{y}" font-size="10" text-anchor="{anchor}">{value:.4g}</text>'
    for x, y, anchor, value in ends
  ]
  height = max(_SIDE, heights[-1] + 6)
  scale = " (by decades)" if wide else ""
  return _figure(_SIDE + _NAMES, height, parts, f"{up} against {across}{scale}")


def _figure(width: int, height: float, parts: list[str], caption: str) -> str:
  """A drawing that shrinks with a narrow page, and what it shows."""
  size = f'width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}"'
  return (
    f'<figure><svg {size} role="img">{"".join(parts)}</svg>'
    f"<figcaption>{html.escape(caption)}</figcaption></figure>"
  )


def _span(values: tuple[float, ...], wide: bool) -> tuple[float, float]:
  """Both ends of an axis, a tenth beyond the values; logarithms if it is wide."""
  ends = [math.log(x) if wide else x for x in (min(values), max(values))]
  margin = 0.1 * (ends[1] - ends[0]) or abs(0.1 * ends[1]) or 1.0
  return ends[0] - margin, ends[1] + margin
