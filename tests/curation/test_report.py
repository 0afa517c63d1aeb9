"""The report of a run: figures with their limits."""

from d4s_jax.curation.report import write_report
from d4s_jax.curation.settings import Settings
from d4s_jax.data.shards import MANIFEST, line


def test_figures_stand_beside_their_limits_or_none(tmp_path):
  figures = {"cut": 0.01, "flow": 0.01, "sharpness": 0.2, "parallax_2d": 0.001}
  told = {"clip": "videos/a.mp4/0-9", "unit": "videos/a.mp4", "kept": False, "figures": figures}
  lines = [{**told, "reason": "dark 0.7 is above 0.6"}, {"commit": 0}]
  (tmp_path / MANIFEST).write_bytes(b"".join(map(line, lines)))
  assert "0 of 1 clips of 0 scenes" in write_report(tmp_path, Settings(), [])
  rows = (tmp_path / "report.md").read_text().splitlines()
  cells = [[cell.strip() for cell in row.split("|")] for row in rows]
  bounds = {each[1]: each[6] for each in cells if len(each) == 8}
  assert bounds["cut"] == "to 0.12" and bounds["flow"] == "0.001 to 0.25"
  assert bounds["sharpness"] == "0.01 to" and bounds["parallax_2d"] == ""
  assert "| dark above 0.6 | 1 |" in rows
