"""Sweeps: rows that are checked, trained once, scored beside the paper's numbers."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from d4s_jax.evaluation import benchmark, page, plots, report, runner, sweeps
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.sample_sets import open_set
from d4s_jax.evaluation.settings import Settings

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch):
  """Scenes that are videos of a brightness, training that leaves a folder; lists what was done."""
  done: list[str] = []

  class Maker:
    frames = 9

    def __init__(self, trained, sampling=None):
      self.trained, self.sampling = trained, sampling or {}

  def embedded(output, maker, count, kinds):
    done.append(f"scenes of {maker.trained} {dict(maker.sampling)} {kinds}")
    level = 0.5 if maker.trained == "shipped" else 0.8
    for name, value in ((kinds[0], level), ("true", 0.6)):
      (output / name).mkdir(parents=True, exist_ok=True)
      for number in range(count):
        np.save(output / name / f"clip{number}.npy", np.full((9, 32, 32, 3), value, np.float32))

  def train(command, check):
    folder = pathlib.Path(next(x for x in command if "--workdir=" in x).partition("=")[2])
    done.append(f"train {folder.name} " + " ".join(x for x in command if "--config." in x))
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sweeps, "Maker", Maker)
  monkeypatch.setattr(benchmark, "embedded", embedded)
  monkeypatch.setattr(sweeps.inference, "open_checkpoint", lambda place, report: place)
  monkeypatch.setattr(sweeps.subprocess, "run", train)
  return done


def sweep(tmp_path, **rows):
  return {
    "rows": rows,
    "count": 3,
    "workdir": str(tmp_path / "sweep"),
    "metrics": "psnr,matches_sift",
  }


def test_rows_are_trained_stage_after_stage_and_scored_beside_the_papers_numbers(quick, tmp_path):
  stages = (("configs/static.py", ("steps=1",)), ("configs/dynamic.py", ("steps=2",)))
  config = sweep(
    tmp_path,
    shipped={"run": "shipped", "paper": {"psnr": 33.5, "fvd": 210.2}},
    other={"stages": stages, "told": "worse", "sampling": {"scale": 1.0}, "count": 2},
  )
  found = sweeps.run(config, Settings(output=str(tmp_path / "out")))
  first = tmp_path / "sweep" / "other" / "static"
  assert quick[1:3] == [
    "train static --config.steps=1",
    f"train dynamic --config.steps=2 --config.init.ldrm={first}",
  ]
  assert "{'scale': 1.0}" in quick[3]
  values = {name: x.value for name, x in found.rows[0].results.items()}
  np.testing.assert_allclose(
    [values["shipped"], values["other"]], [20, -20 * np.log10(0.2)], rtol=1e-4
  )
  told = report.text(found)
  # Beside what was measured, also where nothing was, marked as theirs.
  absent = dataclasses.replace(found.rows[0], name="fvd", results={}, missing="weights")
  lines = report.table(dataclasses.replace(found, rows=[found.rows[0], absent]))
  lines = {line[0]: line[1:] for line in lines}
  assert lines[""] == ["shipped (3)", "shipped: the paper's *", "other (2)", "Diff4Splat's own *"]
  assert lines["PSNR, dB (up)"][1] == "33.5" != lines["PSNR, dB (up)"][0]
  assert lines["FVD (down)"][:3] == ["-", "210.2", "-"]
  assert "shipped: the paper's *" in told and "* As printed in the paper" in told
  assert "the first 2 scenes alone of 3" in told and "the paper: worse" in told
  page.write(tmp_path / "a.html", found)
  assert "<td class=paper>33.5</td>" in (tmp_path / "a.html").read_text()
  # What was trained is not trained again.
  before = len([line for line in quick if line.startswith("train")])
  sweeps.run(config, Settings(output=str(tmp_path / "out")))
  assert len([line for line in quick if line.startswith("train")]) == before
  assert len(open_set(tmp_path / "sweep" / "other" / "set" / "reconstructed").samples) == 2
  assert {name: x.count for name, x in found.rows[0].results.items()} == {"shipped": 3, "other": 2}


def test_rows_of_fewer_scenes_than_others_are_told(quick, tmp_path):
  """Whoever has fewer, by its own count or by the sweep's (--sweep.count)."""
  few, other = {"run": "shipped", "count": 2, "told": "worse"}, {"run": "shipped"}
  for count, rows, least in (
    (3, {"few": few, "other": other}, ["few"]),
    (1, {"few": few, "other": other}, ["other"]),
    (2, {"few": few, "other": other}, []),
    (3, {"few": few, "fewer": few}, []),
  ):
    config = sweep(tmp_path / f"{count}{len(least)}", **rows)
    config |= {"count": count, "metrics": "matches_sift"}
    notes = sweeps.run(config, Settings(output=str(tmp_path / "out"))).notes
    assert [name for name in notes if "scenes alone of" in " ".join(notes[name])] == least
    assert "the paper: worse" in notes["few"]


def test_a_config_file_may_be_trained_twice_in_a_row(quick, tmp_path):
  stages = (
    ("configs/static.py:tiny,32", ("steps=1",)),
    ("configs/static.py:tiny,64", ("steps=2",)),
    ("configs/dynamic.py", ("steps=3",)),
  )
  config = sweep(tmp_path, a={"stages": stages})
  for _ in range(2):  # the second time nothing is trained
    sweeps.run(config, Settings(output=str(tmp_path / "out")))
  place = tmp_path / "sweep" / "a"
  assert [line for line in quick if line.startswith("train")] == [
    "train static --config.steps=1",
    f"train static-2 --config.steps=2 --config.init.ldrm={place / 'static'}",
    f"train dynamic --config.steps=3 --config.init.ldrm={place / 'static-2'}",
  ]
  changed = ((stages[0][0].replace("32", "16"), stages[0][1]), *stages[1:])
  with pytest.raises(ValueError, match="static was trained with configuration"):
    sweeps.run(sweep(tmp_path, a={"stages": changed}), Settings(output=str(tmp_path / "out")))


def test_a_run_of_other_options_is_not_taken_for_the_rows(quick, tmp_path):
  def of(steps):
    stages = (("configs/dynamic.py", (f"steps={steps}",)),)
    return sweep(tmp_path, a={"stages": stages})

  settings = Settings(output=str(tmp_path / "out"))
  sweeps.run(of(80), settings)
  done = len(quick)
  with pytest.raises(
    ValueError, match=r"with options \['--config.steps=80'\], not \['--config.steps=300'\]"
  ):
    sweeps.run(of(300), settings)
  assert len(quick) == done
  # Nor is one of a version that noted less, or one of which nobody knows how it was trained.
  note = tmp_path / "sweep" / "a" / "dynamic.options.json"
  note.write_text('["--config.steps=80"]')
  with pytest.raises(ValueError, match="by a version that noted no hashes"):
    sweeps.run(of(80), settings)
  note.unlink()
  with pytest.raises(ValueError, match="says nothing of its options"):
    sweeps.run(of(80), settings)
  # The remedy is one, whatever the note says.
  note.write_text('["--config.steps=80"]')
  shutil.rmtree(tmp_path / "sweep" / "a" / "dynamic")
  sweeps.run(of(80), settings)


def test_a_run_of_another_configuration_or_of_other_weights_is_noticed(
  quick, tmp_path, monkeypatch
):
  config = tmp_path / "mine.py"
  config.write_text(
    "from configs import joint\n\n\ndef get_config():\n  return joint.get_config()\n"
  )
  monkeypatch.syspath_prepend(str(ROOT))
  row = sweep(tmp_path, a={"stages": ((str(config), ("steps=3",)),)})
  settings = Settings(output=str(tmp_path / "out"))
  for _ in range(2):
    sweeps.run(row, settings)
  with monkeypatch.context() as patch:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    whole = sweeps.shipped.path
    patch.setattr(sweeps.shipped, "path", lambda *x: other if x == ("tiny", "ldrm") else whole(*x))
    with pytest.raises(ValueError, match="mine was trained with weights .*ldrm"):
      sweeps.run(row, settings)
  sweeps.run(row, settings)
  with config.open("a") as file:
    file.write("\n\nwhole = get_config\n\n\ndef get_config():\n  config = whole()\n")
    file.write("  config.optimizer.peak = 1e-5\n  return config\n")
  with pytest.raises(ValueError, match="mine was trained with configuration [0-9a-f]{64}, not"):
    sweeps.run(row, settings)
  row = sweep(tmp_path, b={"stages": (("configs/joint.py", ("colour=3",)),)})
  with pytest.raises(ValueError, match="configs/joint.py with .*colour=3.* is no configuration"):
    sweeps.run(row, settings)


@pytest.mark.parametrize(
  "row, fault",
  [
    ({}, "neither a run nor stages"),
    ({"run": "shipped", "stages": (("configs/joint.py", ()),)}, "both a run and stages"),
    ({"run": "shipped", "colour": 1}, "colour"),
    ({"run": "shipped", "scenes": "imagined"}, "imagined"),
    ({"run": "shipped", "paper": {"fdv": 1.0}}, "fdv"),
  ],
)
def test_rows_that_make_no_sense_are_refused(row, fault, tmp_path):
  with pytest.raises(ValueError, match=f"Row 'a' of the sweep: {fault}; expected a run or stages"):
    sweeps.rows_of(sweep(tmp_path, a=row))
  with pytest.raises(ValueError, match="without rows"):
    sweeps.rows_of(sweep(tmp_path))
  with pytest.raises(ValueError, match="The sweep lacks count, workdir, metrics; expected rows"):
    sweeps.rows_of({"rows": {"a": {"run": "shipped"}}})


def test_a_training_that_fails_is_told(quick, tmp_path, monkeypatch):
  monkeypatch.setattr(
    sweeps.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 75)
  )
  with pytest.raises(ValueError, match="row 'a' ended with status 75"):
    sweeps.run(sweep(tmp_path, a={"stages": (("configs/joint.py", ()),)}), Settings())


SWEEP = """
from ml_collections import ConfigDict

OPTIONS = ("steps=1", "optimizer.warmup=0", "heldout.every=1", "batch_size=1", "data.clips=8")
ROWS = {{
  "shipped": dict(run="shipped", paper=dict(lpips=0.5), told="as it comes"),
  "trained": dict(stages=(("configs/dynamic.py", OPTIONS),)),
}}


def get_config():
  metrics = "psnr,lpips,view_psnr,depth_abs_rel,seconds,memory_added,latency"
  config = ConfigDict(dict(count=1, workdir={workdir!r}, metrics=metrics))
  with config.unlocked():
    config.rows = ConfigDict(ROWS, sort_keys=False)
  return config
"""


@pytest.mark.slow
def test_a_sweep_is_trained_made_into_scenes_and_scored_by_the_command(tmp_path):
  (tmp_path / "sweep.py").write_text(SWEEP.format(workdir=str(tmp_path / "work")))
  command = [sys.executable, "-m", "d4s_jax.evaluate", "--config=configs/evaluate.py"]
  command += [f"--sweep={tmp_path / 'sweep.py'}", f"--config.output={tmp_path / 'out'}"]
  printed = []
  for _ in range(2):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    printed.append(done.stdout)
  # Nothing is trained, made or measured twice: what the training says comes first, once.
  assert printed[0].endswith(printed[1]) and "1 steps" in printed[0].removesuffix(printed[1])
  found = json.loads((tmp_path / "out" / "report.json").read_text())
  values = {
    name: {row: x["value"] for row, x in metric["results"].items()}
    for name, metric in found["metrics"].items()
  }
  assert all(set(x) == {"shipped", "trained"} and None not in x.values() for x in values.values())
  # A step from nothing makes no scene yet.
  for name in ("psnr", "view_psnr"):
    assert values[name]["shipped"] > values[name]["trained"] + 3, name
  assert values["lpips"]["shipped"] < values["lpips"]["trained"]
  assert "shipped: the paper's *" in printed[0] and "as it comes" in printed[0]
  page = (tmp_path / "out" / "report.html").read_text()
  # Of each row and of the truth, and quality against what it costs.
  assert page.count("<video ") == 3 and "novel views, PSNR, dB against a scene, s" in page
  assert "novel views, PSNR, dB against memory above what was held before, GiB" in page


def test_the_sweep_that_comes_along_is_one():
  import importlib.util

  place = pathlib.Path(__file__).parents[2] / "configs" / "sweeps" / "tiny.py"
  spec = importlib.util.spec_from_file_location("tiny_sweep", place)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config().to_dict()
  rows = sweeps.rows_of(config)
  assert len(rows) > 10
  # As printed: the supplement's table 3, and table 4.
  printed = {
    "two_stage": dict(fvd=245.3, kvd=3.42, subject=82, background=83),
    "frozen": dict(fvd=231.5, kvd=3.10, subject=85, background=86),
    "joint": dict(fvd=210.2, kvd=2.32, subject=88, background=90),
    "no_motion_loss": dict(fvd=351.382, kvd=3.351, qa_quality=2.145),
  }
  names = {x: f"{x}_consistency_segmented" for x in ("subject", "background")}
  for name, row in rows.items():
    theirs = {names.get(key, key): x for key, x in printed.get(name, {}).items()}
    assert row.paper == theirs, name
  assert rows["joint"].scenes == rows["frozen"].scenes == "generated"
  assert rows["two_stage"].scenes == "two_stage" and "4DGT" in rows["two_stage"].told
  for name, told in (
    ("flat_pose", "5 to 10% more relative pose error"),
    ("no_geometric_loss", "visibly worse 3D consistency"),
    ("all_gaussians", "75% more memory, 60% more time, little detail"),
    ("no_motion_loss", "4821.6 average matches (MASt3R)"),
  ):
    assert told in rows[name].told
  # What these claims are of is measured, and a matcher of one's own if there is one.
  measured = {*config["metrics"].split(",")}
  assert measured >= {"rpe_translation", "rpe_rotation", "matches_plug_in", "memory_added"}
  assert measured <= {*METRICS} and measured >= {x for row in rows.values() for x in row.paper}
  for row in rows.values():
    for config, overrides in row.stages:
      assert (place.parents[2] / config.partition(":")[0]).is_file()
      assert all("=" in x for x in overrides)
  # The paper's order, and its last stage alone.
  order = [config for config, _ in rows["progressive"].stages]
  assert order == ["configs/static.py:tiny,32", "configs/static.py:tiny,64", "configs/dynamic.py"]
  assert [config for config, _ in rows["direct"].stages] == order[-1:]
  assert "loss.smoothness=0" in rows["no_tv"].stages[0][1]
  chosen = "shipped,joint,default"
  assert list(sweeps.rows_of(module.get_config(chosen).to_dict())) == chosen.split(",")
  with pytest.raises(ValueError, match=r"Unknown rows \['imagined'\]; expected some of shipped"):
    module.get_config("shipped,imagined")


def test_quality_is_drawn_against_time():
  from d4s_jax.evaluation.sample_sets import SampleSet
  from d4s_jax.evaluation.summary import Result

  def row(name, values):
    results = {key: Result(x, 3, 3) for key, x in values.items()}
    return runner.Row(name, "p", "", results)

  rows = [row("seconds", {"a": 1.0, "b": 2.0}), row("view_psnr", {"a": 20.0, "b": 25.0})]
  found = runner.Report(Settings(), {x: SampleSet(x, {}) for x in "ab"}, "", {}, rows)
  drawn = "".join(plots.tradeoffs(found, ["a", "b"]))
  assert drawn.count("<circle") == 2 and "novel views, PSNR, dB against a scene, s" in drawn
  one = dataclasses.replace(found, rows=rows[:1])
  assert plots.tradeoffs(one, ["a", "b"]) == []
