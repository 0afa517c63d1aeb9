"""Sets of scenes: the paper's design from photographs, embedded scenes, what they cost."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from d4s_jax.data.source import open_source
from d4s_jax.evaluation import (
  benchmark,
  cost,
  families,
  fit_curve,
  geometry,
  plots,
  runner,
  sample_sets,
  samples,
  timing,
)
from d4s_jax.evaluation import maker as maker_of
from d4s_jax.evaluation.metric import Case, Context
from d4s_jax.evaluation.settings import Settings
from d4s_jax.formats.images import write_image
from d4s_jax.formats.scene import read_scene
from d4s_jax.models.system import System
from d4s_jax.pipeline import progress
from d4s_jax.training import inference
from tests.support import random_params, run_command, small_config, write_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "run"
  config = small_config()
  config.sampling.steps = 1
  write_run(folder, config, random_params(System.build(config.model.to_dict())))
  return folder


@pytest.fixture(scope="module")
def maker(run):
  return maker_of.Maker(inference.open_checkpoint(run, progress.timed))


def photographs(folder, count=2):
  folder.mkdir()
  rng = np.random.default_rng(0)
  for number in range(count):
    write_image(folder / f"photo{number}.png", rng.random((20, 30, 3), dtype=np.float32))
    (folder / f"photo{number}.txt").write_text(f"caption {number}\n")


class Recorder(maker_of.Maker):
  """Keeps what it is to make a scene of, and makes none."""

  frames, height, width = 5, 16, 16

  def __init__(self):
    self.asked = {}

  def generate(self, folder, image, cameras, times, text):
    self.asked[folder.name] = image, cameras, times, text


def test_every_photograph_goes_along_the_five_paths_with_its_caption(tmp_path):
  photographs(tmp_path / "photos")
  maker = Recorder()
  assert benchmark.of_photographs(tmp_path / "photos", tmp_path / "set", maker) == 10
  assert set(maker.asked) == {f"photo{i}-{path}" for i in (0, 1) for path in benchmark.PATHS}
  image, cameras, times, text = maker.asked["photo1-backward"]
  assert image.shape == (16, 16, 3) and text == "caption 1" and times[-1] == 1
  # Another photograph of a name is not taken for the one that the scenes are of.
  write_image(tmp_path / "photos" / "photo0.png", np.zeros((20, 30, 3), np.float32))
  with pytest.raises(ValueError, match=r"made of other photographs of the names \['photo0'\]"):
    benchmark.of_photographs(tmp_path / "photos", tmp_path / "set", maker)
  (tmp_path / "set" / "photographs.json").unlink()
  # Nor are scenes of a photograph that was taken out since.
  (tmp_path / "set" / "generated" / "photo7-up").mkdir(parents=True)
  with pytest.raises(ValueError, match=r"not among the 10 of this set \(photo7-up\)"):
    benchmark.of_photographs(tmp_path / "photos", tmp_path / "set", maker)
  # Backwards is against the direction of sight.
  assert np.asarray(cameras.world_from_camera)[-1, 2, 3] == pytest.approx(-0.5)


def test_photographs_without_captions_are_named(tmp_path):
  photographs(tmp_path / "photos")
  (tmp_path / "photos" / "photo1.txt").unlink()
  with pytest.raises(ValueError, match=r"1 of 2 photographs have no caption \(photo1\)"):
    benchmark.photographs(tmp_path / "photos")
  (tmp_path / "photos" / "photo1.txt").write_text("  ")
  with pytest.raises(ValueError, match=r"\['photo1'\] are empty"):
    benchmark.photographs(tmp_path / "photos")
  (tmp_path / "photos" / "photo1.txt").write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match=r"photo1.txt is no text; expected a caption in UTF-8"):
    benchmark.photographs(tmp_path / "photos")
  (tmp_path / "photos" / "photo1.txt").write_text("a cat")
  (tmp_path / "photos" / "photo1.jpeg").touch()
  with pytest.raises(ValueError, match=r"have the names of \['photo1.jpeg'\]; rename them"):
    benchmark.photographs(tmp_path / "photos")
  (tmp_path / "none").mkdir()
  with pytest.raises(ValueError, match="no photographs"):
    benchmark.photographs(tmp_path / "none")


@pytest.mark.parametrize("more", ["set/reconstructed/clip002/scene.json", "set/still/clip002.npy"])
def test_scenes_of_a_larger_set_before_are_not_scored_with_a_smaller_one(tmp_path, more):
  (tmp_path / more).parent.mkdir(parents=True)
  (tmp_path / more).touch()
  with pytest.raises(
    ValueError, match=r"1 samples that are not among the 2 of this set \(clip002\)"
  ):
    benchmark.embedded(tmp_path / "set", Recorder(), 2, ("reconstructed",))
  assert not (tmp_path / "set" / "true").exists()


def open_true(tmp_path):
  return sample_sets.open_set(tmp_path / "set" / "true").samples


def test_embedded_scenes_have_their_truth_beside_them_and_can_be_scored(maker, tmp_path):
  benchmark.embedded(tmp_path / "set", maker, 2)
  _, metadata = read_scene(tmp_path / "set" / "generated" / "clip001")
  assert metadata.prompt == open_true(tmp_path)["clip001"].text
  # What is there is not made again.
  before = {x: x.stat().st_mtime_ns for x in (tmp_path / "set").rglob("scene.json")}
  shutil.rmtree(tmp_path / "set" / "generated" / "clip000")
  benchmark.embedded(tmp_path / "set", maker, 2)
  after = {x: x.stat().st_mtime_ns for x in before}
  assert [x.parent.name for x in before if after[x] != before[x]] == ["clip000"]
  # Nor is it taken for something else's.
  other = maker_of.Maker(maker.trained, seed=1)
  with pytest.raises(ValueError, match="generated/clip000 is of seed 0, not 1; give another"):
    benchmark.embedded(tmp_path / "set", other, 2)
  true = open_true(tmp_path)
  still = sample_sets.open_set(tmp_path / "set" / "still").samples
  assert list(true) == list(still) == ["clip000", "clip001"]
  video = true["clip001"].video
  assert video.shape == (5, 16, 16, 3)
  np.testing.assert_allclose(still["clip001"].video[3], video[0], atol=1 / 500)
  settings = Settings(
    samples=",".join(str(tmp_path / "set" / name) for name in ("generated", "reconstructed")),
    reference=str(tmp_path / "set" / "true"),
    metrics="motion_epe,cycle_psnr,cycle_psnr_frozen,latency,seconds,seconds_video,memory,view_psnr,"
    "depth_abs_rel",
    output=str(tmp_path / "out"),
  )
  found = {row.name: row.results for row in runner.evaluate(settings).rows}
  # Scenes of 16 pixels are too small for LPIPS, which keeps PSNR from nothing but pictures.
  assert "too small for LPIPS" in found["view_psnr"]["generated"].failures["clip000"]
  for name in ("motion_epe", "cycle_psnr", "latency", "seconds", "memory", "depth_abs_rel"):
    assert found[name]["generated"].count == 2 and found[name]["reconstructed"].count == 2, name
    assert found[name]["generated"].value > 0
  assert found["cycle_psnr_frozen"]["generated"].value == 100
  assert found["seconds_video"]["reconstructed"].failures["clip000"] == "it has no such stage"


def test_the_command_refuses_bad_input_before_it_compiles(run, tmp_path, capsys):
  arguments = [f"--output={tmp_path}/set", f"--checkpoint={run}"]
  for more, message in [
    (f"--photographs={tmp_path}/none", "No folder"),
    ("--scenes=0", "0 embedded scenes; expected 1 to 100000"),
    (f"--scenes={10**9}", "1000000000 embedded scenes; expected 1 to"),
    (f"--output={run}/config.json", "config.json/true is a file, or lies below one"),
  ]:
    with pytest.raises(SystemExit) as stop:
      run_command("benchmark", *arguments, more)
    assert stop.value.code == 1 and message in capsys.readouterr().err


def command(module, *arguments) -> str:
  """What a command prints, which ends well."""
  whole = [sys.executable, "-m", f"d4s_jax.{module}", *arguments]
  done = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=False)
  assert not done.returncode, done.stderr
  return done.stdout


@pytest.mark.slow
def test_the_command_makes_a_set_and_says_how_to_score_it(tmp_path):
  told = [command("benchmark", "--scenes=1", f"--output={tmp_path / 'set'}") for _ in range(2)]
  assert told[0] == told[1]
  for kind in ("generated", "reconstructed"):
    assert cost.read(tmp_path / "set" / kind / "clip000")["reconstruction"].seconds > 0
  arguments = shlex.split(told[0].partition("d4s_jax.evaluate ")[2])
  more = ["--config.metrics=psnr,view_psnr,depth_abs_rel", f"--config.output={tmp_path / 'out'}"]
  command("evaluate", *arguments, *more)
  found = json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]
  values = {
    name: {key: x["value"] for key, x in metric["results"].items()}
    for name, metric in found.items()
  }
  # As the shipped weights do on average.
  for name in ("psnr", "view_psnr"):
    assert values[name]["reconstructed"] > values[name]["generated"] > 15, name
  assert values["psnr"]["still"] > 15 and values["view_psnr"]["still"] is None
  assert values["depth_abs_rel"]["reconstructed"] < 0.5


@pytest.mark.slow
def test_the_command_makes_the_papers_design_of_photographs(tmp_path):
  photographs(tmp_path / "photos", 1)
  output = tmp_path / "set"
  told = command("benchmark", f"--photographs={tmp_path / 'photos'}", f"--output={output}")
  assert told == f"5 scenes in {output / 'generated'} (the paper's design has 160)\n"
  made = sample_sets.open_set(output / "generated").samples
  assert set(made) == {f"photo0-{path}" for path in benchmark.PATHS}
  for sample in made.values():
    assert sample.text == "caption 0" and np.ptp(sample.video) > 0.1
    assert cost.read(sample.path)["video model"].seconds > 0


def test_costs_are_measured_and_read_back(tmp_path):
  costs = cost.Costs()
  with costs.stage("large"):
    block = np.ones(2**25)  # 256 MiB
    del block
  with costs.stage("small"):
    small = np.ones(2**20)  # 8 MiB
  with costs.stage("small"):
    del small
  costs.write(tmp_path)
  found = cost.read(tmp_path)
  assert found == costs.stages and found["small"].seconds > 0
  large, small = found["large"], found["small"]
  # Whatever was there before, and what the first stage gave back, doesn't count.
  assert large.added_gib == pytest.approx(0.25, abs=0.03)
  assert small.added_gib == pytest.approx(0.008, abs=0.01)
  assert large.host_gib > 0.3 and large.device_gib is None
  (tmp_path / cost.FILE).write_text(json.dumps({"a": {"seconds": -1, "host_gib": 0}}))
  with pytest.raises(ValueError, match="missing added_gib, missing device_gib"):
    cost.read(tmp_path)


def test_memory_of_accelerators_stands_under_a_name_of_its_own(tmp_path, monkeypatch):
  class Device:
    def memory_stats(self):
      return {"peak_bytes_in_use": 3 * 2**30, "bytes_in_use": 2**30}

  monkeypatch.setattr(cost.jax, "devices", lambda: [Device()])
  # Where the system doesn't let the mark of resident memory be reset, it is not told.
  monkeypatch.setattr(cost, "_RESET", tmp_path / "nowhere" / "clear_refs")
  costs = cost.Costs()
  with costs.stage("video model"):
    pass
  costs.write(tmp_path)
  assert cost.read(tmp_path)["video model"].device_gib == 3
  assert costs.stages["video model"].host_gib is None
  (values,) = timing.COST.measure([Case(samples.Scene("a", tmp_path))], Context(Settings(), {}))
  assert values["device"] == 3 and "gib" not in values and "added" not in values


def test_fitting_is_followed_over_time_from_each_start(maker, tmp_path, monkeypatch):
  monkeypatch.setattr(fit_curve, "STEPS", (0, 30))
  clip = open_source("synthetic", split="heldout", views=2, frames=5, height=16, width=16).read(0)
  folder = tmp_path / "refined" / "clip000"
  kinds = ("refined", "from_random", "two_stage")
  seen, optimise = {}, fit_curve.optimise

  def noted(start, views, *rest):
    seen[kind] = views.images
    return optimise(start, views, *rest)

  monkeypatch.setattr(fit_curve, "optimise", noted)
  for kind in kinds:
    maker_of.KINDS[kind](maker, tmp_path / kind / "clip000", clip)
  # What was fitted to another video is not taken for it.
  kind, folder_of = "from_random", tmp_path / "two_stage" / "clip000"
  assert read_scene(folder_of)[1].checkpoint == "two_stage of video model, 30 steps"
  with pytest.raises(ValueError, match="two_stage of video model, 30 steps', not 'from_random of"):
    maker_of.KINDS[kind](maker, folder_of, clip)
  # One of two stages is given what the video model makes of the first frame, the others the truth.
  generated = maker.pipeline.sample(
    np.asarray(clip.source.images[0]), clip.source.cameras, str(clip.text), maker.seed
  )
  for kind, latents in (("two_stage", generated), ("from_random", maker.encode(clip))):
    decoded = np.clip(maker._decode(maker._autoencoder, latents[None])[0], 0, 1)
    np.testing.assert_array_equal(seen[kind], decoded)
  np.testing.assert_array_equal(seen["refined"], seen["from_random"])
  assert not np.array_equal(seen["two_stage"], seen["from_random"])
  (tmp_path / "true").mkdir()
  options = {"split": "heldout", "views": 2, "frames": 5, "height": 16, "width": 16}
  told = {"source": "synthetic", "options": options, "clips": {"clip000": 0}}
  (tmp_path / "true" / sample_sets.SOURCE).write_text(json.dumps(told))
  settings = Settings(
    samples=",".join(str(tmp_path / kind) for kind in kinds),
    reference=str(tmp_path / "true"),
    metrics="fit_psnr_0,fit_psnr_30,fit_psnr_100,fit_seconds_0,fit_seconds_30,seconds,seconds_fit,"
    "seconds_video",
    output=str(tmp_path / "out"),
  )
  report = runner.evaluate(settings)
  found = {row.name: row.results for row in report.rows}
  given = {name: x.count for name, x in found["seconds_video"].items()}
  assert given == {"refined": 0, "from_random": 0, "two_stage": 1}
  for name in kinds:
    values = {key: x[name].value for key, x in found.items()}
    # Fitted to what an untrained autoencoder decodes, so better or worse, but not the same.
    assert abs(values["fit_psnr_30"] - values["fit_psnr_0"]) > 0.01
    # The last moment is of the scene that is kept.
    scene, _ = read_scene(tmp_path / name / "clip000")
    drawn = geometry.scene_views(scene, clip.target.cameras, np.asarray(clip.target.times))
    errors = np.mean(np.square(drawn - clip.target.images), axis=(1, 2, 3))
    assert values["fit_psnr_30"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=0.01)
    assert 0 < values["seconds_fit"] <= values["fit_seconds_30"] <= values["seconds"]
    assert found["fit_psnr_100"][name].failures == {"clip000": "it has no such moment"}
  (drawn,) = plots.fits(report, list(kinds))
  assert drawn.count("<circle") == 6 and "refined</text>" in drawn
  # SIFT finds nothing in pictures that small, and nothing takes its place.
  with pytest.raises(ValueError, match="0 points were triangulated; expected at least 4"):
    maker_of.KINDS["from_points"](maker, tmp_path / "from_points" / "clip000", clip)
  assert not (tmp_path / "from_points" / "clip000").exists()
  for broken, message in [("{}", "expected a list"), ('[{"steps": -1}]', "missing seconds")]:
    (folder / fit_curve.FILE).write_text(broken)
    with pytest.raises(ValueError, match=message):
      fit_curve.read(folder)


def test_a_video_whose_path_is_closed_has_a_cycle_and_others_have_not(tmp_path):
  from d4s_jax.formats.cameras import write_trajectory
  from d4s_jax.geometry.cameras import intrinsics_from_fov
  from d4s_jax.geometry.trajectories import trajectory
  from d4s_jax.types import Cameras

  video = np.full((5, 16, 16, 3), 0.5, np.float32)
  video[-1] += 0.1
  for name in ("orbit", "up"):
    np.save(tmp_path / f"{name}.npy", video)
    lens = np.tile(intrinsics_from_fov(60, 16, 16), (5, 1, 1))
    poses = trajectory(name, 5)
    cameras = Cameras(world_from_camera=poses, intrinsics=lens, height=16, width=16)
    write_trajectory(tmp_path / f"{name}.json", cameras, np.linspace(0, 1, 5, dtype=np.float32))
  cases = [Case(x) for x in sample_sets.open_set(tmp_path).samples.values()]
  closed, not_closed = families.CYCLE.measure(cases, Context(Settings(), {}))
  np.testing.assert_allclose(closed["running"], 20, rtol=1e-5)
  assert not_closed.reason == "its path is not closed"
  # A camera that stands still goes round nothing.
  (tmp_path / "up.npy").unlink()
  still = Cameras(
    world_from_camera=np.tile(np.eye(4), (5, 1, 1)), intrinsics=lens, height=16, width=16
  )
  write_trajectory(tmp_path / "orbit.json", still, np.linspace(0, 1, 5, dtype=np.float32))
  cases = [Case(x) for x in sample_sets.open_set(tmp_path).samples.values()]
  (found,) = families.CYCLE.measure(cases, Context(Settings(), {}))
  assert found.reason == "its path is no turn of 360 degrees"


@pytest.mark.slow
def test_a_fit_to_a_scene_is_scored_beside_our_one_pass():
  done = subprocess.run(
    [sys.executable, ROOT / "tests/benchmarks/fitted.py", "--scenes=1", "--seconds=5"],
    capture_output=True,
    text=True,
    check=True,
  )
  found = re.search(r"scene 0, SIFT, (\d+) steps: (\S+); ours (\S+)", done.stdout)
  assert found, done.stdout
  # Points of SIFT have 13 dB after some 50 steps on a busy machine, ours are the README's.
  assert int(found[1]) > 20
  assert 8 < float(found[2]) < 30 and 18 < float(found[3]) < 26
