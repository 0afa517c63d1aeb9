"""What a user may give that can't be scored: told at once, or counted, named and explained."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from d4s_jax.evaluation import cost, families, maker, matching, runner, sample_sets, seen
from d4s_jax.evaluation.metric import Case, Context, Failure
from d4s_jax.evaluation.settings import Settings, Weights
from d4s_jax.formats import video
from d4s_jax.formats.cameras import write_trajectory
from d4s_jax.pipeline import progress
from d4s_jax.training import inference
from d4s_jax.types import Cameras

GREY = np.full((4, 40, 40, 3), 0.5, np.float32)


@pytest.fixture
def place(tmp_path):
  """Folders with a video each."""
  for name in ("a", "b/a", "true"):
    (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / name / "clip.npy", GREY)
  return tmp_path


def settings(place, **options) -> Settings:
  return Settings(
    **dict(samples=str(place / "a"), metrics="psnr", output=str(place / "out")) | options
  )


def why(place, metric: str, **options) -> str:
  """Why the sample has no value."""
  (row,) = runner.evaluate(settings(place, metrics=metric, **options)).rows
  (result,) = row.results.values()
  assert result.value is None and result.count == 0
  return " ".join([*result.failures.values(), *result.notes])


def test_names_that_mean_two_things_are_refused(place):
  with pytest.raises(ValueError, match="Two sets are named 'a'; write NAME=FOLDER"):
    runner.evaluate(settings(place, samples=f"{place / 'a'},{place / 'b' / 'a'}"))
  with pytest.raises(ValueError, match="Samples and references are both named 'a'; write NAME="):
    runner.evaluate(settings(place, reference=str(place / "b" / "a")))
  # With names they are taken.
  found = runner.evaluate(
    settings(place, samples=f"x={place / 'a'},{place / 'b' / 'a'}", reference=str(place / "true"))
  )
  assert {name: x.value for name, x in found.rows[0].results.items()} == {"x": 100, "a": 100}


def test_videos_too_short_for_a_distance_are_named(place):
  told = why(place, "fvd", reference=str(place / "true"))
  assert "4 frames; expected at least 16 (config.frames), and 9 for this network" in told
  assert "0 samples and 0 references; a distance needs 2 of each" in told


def test_a_file_that_is_no_array_is_named(place):
  file = place / "a" / "clip.npy"
  with file.open("wb") as archive:
    np.savez(archive, GREY)
  assert "clip.npy is no array of NumPy, or damaged" in why(place, "matches_sift")
  whole = (place / "true" / "clip.npy").read_bytes()
  shape = str(GREY.shape).encode()
  assert shape in whole
  for damaged, told in (
    (b"no array", "is no array of NumPy, or damaged"),
    (whole.replace(shape, shape.replace(b")", b" ")), "is no array of NumPy, or damaged"),
    (whole.replace(b"(4, ", b"(-4,"), f"has {GREY.nbytes} bytes of numbers and claims"),
    (whole[:-1], f"has {GREY.nbytes - 1} bytes of numbers and claims"),
  ):
    file.write_bytes(damaged)
    assert f"clip.npy {told}" in why(place, "matches_sift")


def test_an_array_of_too_much_is_named_as_other_videos_are(place, monkeypatch):
  np.save(place / "a" / "long.npy", np.zeros((1001, 2, 2, 3), np.uint8))
  np.save(place / "a" / "large.npy", np.zeros((2, 500, 500, 3), np.uint8))
  monkeypatch.setattr(video, "_MOST_PIXELS", 499_999)
  found = runner.evaluate(settings(place, metrics="matches_sift")).rows[0].results["a"]
  assert "long.npy has more than 1000 frames; cut it first" in found.failures["long"]
  assert "large.npy has more than 499999 pixels in all its frames" in found.failures["large"]


def test_a_prompt_of_a_book_is_refused(place):
  (place / "a" / "clip.txt").write_text("a" * 20_000)
  (sample,) = sample_sets.open_set(place / "a").samples.values()
  with pytest.raises(ValueError, match="clip.txt"):
    _ = sample.text


def test_places_that_are_no_folders_and_weights_that_are_no_file_are_named(place):
  (place / "out").write_text("a letter")
  with pytest.raises(NotADirectoryError, match="out is a file, or lies below one; expected"):
    runner.evaluate(settings(place))
  options = {"metrics": "clip_aesthetic", "output": str(place / "report")}
  weights = Weights(clip=str(place), aesthetic=str(place / "gone.safetensors"))
  with pytest.raises(FileNotFoundError, match="config.weights.aesthetic=.*gone.safetensors is no"):
    runner.evaluate(settings(place, weights=weights, **options))


@pytest.mark.parametrize(
  ("metric", "options", "message"),
  [
    ("subject_consistency", {"weights": Weights(dino="gone")}, "No configuration at gone/config"),
    ("matches_plug_in", {"matcher": "nothing:at_all"}, "config.matcher is 'nothing:at_all'; exp"),
    ("qa_quality", {"qa_url": "127.0.0.1:9", "qa_model": "a"}, "'127.0.0.1:9.*; expected http://"),
  ],
)
def test_wrong_tools_are_told_before_anything_is_measured(
  place, monkeypatch, metric, options, message
):
  measured = []
  monkeypatch.setattr(families, "image_scores", measured.append)
  asked = settings(place, reference=str(place / "true"), metrics=f"psnr,{metric}", **options)
  with pytest.raises((FileNotFoundError, ValueError), match=message):
    runner.evaluate(asked)
  assert not measured


def test_a_matcher_whose_file_changed_is_asked_again(place, monkeypatch):
  monkeypatch.syspath_prepend(str(place))
  text = "import numpy as np\n\n\ndef match(a, b):\n  return np.zeros(({}, 4))\n"
  asked, told = [], []
  monkeypatch.setattr(matching, "inliers", lambda x: asked.append(len(x)) or len(x))
  for count in (10, 10, 200):
    (place / "mine_of_the_test.py").write_text(text.format(count))
    monkeypatch.delitem(sys.modules, "mine_of_the_test", raising=False)
    options = dict(metrics="matches_plug_in", matcher="mine_of_the_test:match")
    (row,) = runner.evaluate(settings(place, **options)).rows
    told.append((row.results["a"].value, row.weights))
  assert asked == [10, 200] and told[0] == told[1]
  assert [x for x, _ in told] == [10, 10, 200] and told[0][1] != told[2][1]


def test_a_matcher_that_fails_is_told_of_its_sample(place, monkeypatch):
  (place / "failing_of_the_test.py").write_text("def match(a):\n  return a\n")
  monkeypatch.syspath_prepend(str(place))
  told = why(place, "matches_plug_in", matcher="failing_of_the_test:match")
  assert "config.matcher=failing_of_the_test:match failed (TypeError: match() takes 1 " in told


def test_an_empty_prompt_has_no_clip_score(place):
  (place / "a" / "clip.txt").write_text(" \n")
  (sample,) = sample_sets.open_set(place / "a").samples.values()
  (found,) = seen.CLIP_SCORE.measure([Case(sample)], Context(Settings(), {"clip": None}))
  assert found == Failure("its prompt is empty; CLIP-Score needs words")


def test_of_a_set_without_a_readable_sample_no_sizes_are_told(place):
  (place / "a" / "clip.npy").write_bytes(b"no array")
  (notes,) = runner.evaluate(settings(place, metrics="matches_sift")).notes.values()
  assert len(notes) == 2 and notes[0] == "1 samples" and "is no array" in notes[1]


def test_a_setting_of_the_sampler_that_is_none_is_refused():
  with pytest.raises(ValueError, match=r"Unknown settings of sampling \['guidence'\]; .*guidance"):
    inference.sampling({"sampling": {"steps": 8, "guidance": "cosine"}}, {"guidence": "constant"})


def test_what_costs_are_not(place):
  (place / "a" / cost.FILE).write_text("[]")
  with pytest.raises(ValueError, match="expected an object of stages"):
    cost.read(place / "a")


def test_options_of_a_source_are_objects(place):
  told = {"source": "synthetic", "options": [], "clips": {"a": 0}}
  (place / "true" / sample_sets.SOURCE).write_text(json.dumps(told))
  with pytest.raises(ValueError, match="options and clips; expected objects"):
    sample_sets.open_set(place / "true")


def test_a_damaged_value_in_the_cache_is_measured_again(place):
  asked = settings(place, reference=str(place / "true"))
  first = runner.evaluate(asked).rows[0].results["a"]
  kept = list((place / "out" / "cache").glob("frames-*.npz"))
  assert kept
  for path in kept:
    path.write_bytes(path.read_bytes()[:40])
  assert runner.evaluate(asked).rows[0].results["a"] == first
  assert all(path.stat().st_size > 40 for path in kept)


def test_a_video_model_makes_no_scenes():
  shipped = inference.open_checkpoint("shipped", progress.timed)
  trained = dataclasses.replace(shipped, name="runs/diffusion-tiny", reconstructs=False)
  with pytest.raises(
    ValueError, match="runs/diffusion-tiny makes videos, no scenes; expected a run"
  ):
    maker.Maker(trained)


def test_a_path_of_another_length_than_the_video_is_no_path_of_it(place):
  poses, lens = (np.tile(np.eye(n, dtype=np.float32), (3, 1, 1)) for n in (4, 3))
  cameras = Cameras(world_from_camera=poses, intrinsics=lens, height=40, width=40)
  write_trajectory(place / "a" / "clip.json", cameras, np.linspace(0, 1, 3, dtype=np.float32))
  (sample,) = sample_sets.open_set(place / "a").samples.values()
  (found,) = families.POSES.measure([Case(sample)], Context(Settings(), {}))
  assert found == Failure("4 frames and 3 cameras; expected one for each")
