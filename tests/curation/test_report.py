"""The report of a run: figures with their limits."""

import tracemalloc

from d4s_jax.curation import report
from d4s_jax.curation.report import write_report
from d4s_jax.curation.settings import Settings
from d4s_jax.data.shards import MANIFEST, line


def test_figures_stand_beside_their_limits_or_none(tmp_path):
  figures = {"cut": 0.01, "flow": 0.01, "sharpness": 0.2, "parallax_2d": 0.001}
  told = {"clip": "videos/a.mp4/0-9", "unit": "videos/a.mp4", "kept": False, "figures": figures}
  failed = {"unit": "videos/b\n## c.mp4", "clips": 0, "quarantined": True, "problems": []}
  lines = [{**told, "reason": "dark 0.7 is above 0.6"}, {**failed, "reason": "it ends"}]
  lines.append({"commit": 0})
  (tmp_path / MANIFEST).write_bytes(b"".join(map(line, lines)))
  assert "0 of 1 clips of 1 scenes" in write_report(tmp_path, Settings(), [])
  rows = (tmp_path / "report.md").read_text().splitlines()
  cells = [[cell.strip() for cell in row.split("|")] for row in rows]
  bounds = {each[1]: each[6] for each in cells if len(each) == 8}
  assert bounds["cut"] == "to 0.12" and bounds["flow"] == "0.001 to 0.25"
  assert bounds["sharpness"] == "0.01 to" and bounds["parallax_2d"] == ""
  assert "| dark above 0.6 | 1 |" in rows
  assert "- videos/b ## c.mp4: it ends" in rows  # whatever is in a name, a line for each


def test_figures_of_many_clips_take_little_memory(tmp_path, monkeypatch):
  """Of ten million clips there are some hundred million."""
  shown = {}
  monkeypatch.setattr(report, "_histograms", lambda path, figures, limits: shown.update(figures))
  names = [f"figure{number}" for number in range(15)]
  told = {"unit": "videos/a.mp4", "reason": "flow 0.3 is above 0.25"}
  with (tmp_path / MANIFEST).open("wb") as file:
    for number in range(4001):
      figures = {name: float(number) for name in names}
      file.write(line({**told, "clip": f"{number}", "kept": number % 4 > 0, "figures": figures}))
  tracemalloc.start()
  write_report(tmp_path, Settings(), [])
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # A number and a pair of Python take some 90 bytes, so that these would take 5.4 MB.
  assert most < 1.5e6, most
  values, kept = shown["figure3"]
  assert list(values[:2]) == [0, 1] and list(kept[:5]) == [0, 1, 1, 1, 0]
  rows = (tmp_path / "report.md").read_text().splitlines()
  assert "| figure3 | 4001 | 200 | 2000 | 3800 |  |" in rows
