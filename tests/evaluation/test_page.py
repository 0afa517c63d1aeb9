"""The report's page in a browser: wide, and on a telephone."""

import numpy as np
import pytest

from d4s_jax.evaluation import page, runner, sample_sets
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.settings import Settings
from d4s_jax.evaluation.summary import Result
from tests.browser import needs_browser, open_tab

OURS = ("generated", "reconstructed", "still")


@pytest.fixture
def address(tmp_path):
  """A page on three sets of two videos, their truth, and numbers of all metrics."""
  video = np.full((2, 16, 16, 3), 0.5, np.float32)
  for name in (*OURS, "true"):
    (tmp_path / name).mkdir()
    for sample in ("a", "b"):
      np.save(tmp_path / name / f"{sample}.npy", video)
  sets = {name: sample_sets.open_set(tmp_path / name) for name in (*OURS, "true")}
  results = {
    name: Result(10.0 + i, 2, 2, (9.0, 12.0), {"a": 9.0 + i, "b": 11.0 + i})
    for i, name in enumerate(OURS)
  }
  rows = [runner.Row(name, "a-protocol", "", results) for name in METRICS]
  needs = "a matcher: config.matcher=PACKAGE.MODULE:FUNCTION"  # no space for 40 letters
  rows.append(runner.Row("matches_plug_in", "a-protocol", "", {}, needs))
  notes = {name: ["2 samples", "b: broken"] for name in sets}
  page.write(tmp_path / "a.html", runner.Report(Settings(), sets, "true", notes, rows))
  return (tmp_path / "a.html").as_uri()


@needs_browser
def test_the_truth_and_the_sets_are_side_by_side(address, tmp_path):
  with open_tab(address, tmp_path, width=1300) as tab:
    tab.wait("document.readyState == 'complete'")
    heights = "[...row.querySelectorAll('figure')].map(x => x.getBoundingClientRect().top)"
    rows = tab.run(f"[...document.querySelectorAll('.clip')].map(row => {heights})")
    assert len(rows) == 2
    for row in rows:
      assert len(row) == 4 and len(set(row)) == 1
    captions = tab.run("[...document.querySelectorAll('.clip figcaption')].map(x => x.innerText)")
    assert [x.splitlines()[0] for x in captions[:4]] == ["true", *OURS]
    # Costs are told below.
    assert "SSIM" in captions[1] and "GiB" not in captions[1]
    assert "GiB" in tab.run("document.querySelector('table:last-of-type').innerText")
    # What was printed in the paper is in sight beside them.
    right = "document.querySelector('th:last-child').getBoundingClientRect().right"
    assert tab.run(right) < 1300


@needs_browser
def test_a_narrow_page_shows_numbers_and_is_not_wider_than_the_screen(address, tmp_path):
  with open_tab(address, tmp_path) as tab:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    tab.call("Emulation.setDeviceMetricsOverride", **size)
    tab.wait("document.readyState == 'complete' && innerWidth <= 390")
    assert tab.run("document.documentElement.scrollWidth") <= 390
    assert tab.run("document.querySelector('td + td').getBoundingClientRect().right") < 390
