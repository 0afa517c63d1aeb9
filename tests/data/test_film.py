import pathlib
import pickle
import shutil

import numpy as np
import pytest

from d4s_jax.data.film import Film
from d4s_jax.data.source import open_source
from d4s_jax.formats.video import write_video

SHOTS, LENGTH = 12, 25


@pytest.fixture(scope="module")
def film(tmp_path_factory):
  """Twelve shots, each of one grey level, that a bright bar crosses, and a dark end."""
  frames = np.zeros(((SHOTS + 1) * LENGTH, 48, 80, 3), np.float32)
  for number in range(SHOTS * LENGTH):
    shot, moment = divmod(number, LENGTH)
    frames[number] = 0.2 + 0.4 * (shot % 2) + 0.02 * shot
    frames[number, :, 2 * moment : 2 * moment + 8] = 0.95
  path = tmp_path_factory.mktemp("film") / "film.mp4"
  write_video(path, frames, fps=24)
  return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _level(clip) -> np.ndarray:
  """Shot of each frame, by the grey level of its background."""
  grey = np.median(np.asarray(clip.source.images), axis=(1, 2, 3))
  return np.array(
    [
      min(range(SHOTS), key=lambda shot: abs(0.2 + 0.4 * (shot % 2) + 0.02 * shot - x))
      for x in grey
    ]
  )


SIZE = {"frames": 5, "height": 32, "width": 32}


def test_clips_stay_within_one_shot_and_splits_share_none(film):
  seen = {}
  for split in ("train", "heldout"):
    source = Film(film, split, **SIZE)
    shots = [_level(source.read(index)) for index in range(60)]
    assert all(np.ptp(shot) == 0 for shot in shots)
    seen[split] = {int(shot[0]) for shot in shots}
  assert seen["heldout"] == {9}
  assert len(seen["train"]) > 6
  assert 9 not in seen["train"]


def test_frames_move_and_are_the_films(film):
  images = np.asarray(Film(film, **SIZE).read(0).source.images)
  assert images.shape == (5, 32, 32, 3)
  assert images.dtype == np.float32
  # The bar's edges.
  assert np.abs(np.diff(images, axis=0)).max() > 0.2


def test_a_clip_depends_on_its_index_alone_and_travels_to_workers(film):
  source = Film(film, **SIZE)
  again = pickle.loads(pickle.dumps(source))
  assert len(pickle.dumps(source)) < 100_000
  np.testing.assert_array_equal(source.read(3).source.images, again.read(3).source.images)
  assert not np.array_equal(source.read(3).source.images, source.read(4).source.images)


def test_a_film_is_told_from_others_wherever_it_lies(film, tmp_path):
  told = Film(film, **SIZE).contents()
  copy = shutil.copy(film, tmp_path / "copy.mp4")
  assert Film(str(copy), **SIZE).contents() == told
  kept = bytearray(pathlib.Path(copy).read_bytes())
  kept[-1] ^= 1
  pathlib.Path(copy).write_bytes(kept)
  now = Film(str(copy), **SIZE).contents()
  assert now["bytes"] == told["bytes"] and now != told


def test_clips_of_a_film_are_not_taken_for_those_of_another_of_its_name(film, tmp_path):
  path = tmp_path / "film.mp4"
  options = {"posed": False, "cache": str(tmp_path / "clips"), **SIZE, "length": 1}
  shutil.copy(film, path)
  first = open_source(f"film:{path}", **options).read(0)
  assert len(list((tmp_path / "clips").glob("*/*.npz"))) == 1
  write_video(path, np.full((60, 48, 80, 3), 0.5, np.float32), fps=24)
  second = open_source(f"film:{path}", **options).read(0)
  assert np.abs(second.source.images - 0.5).max() < 0.02 < np.ptp(first.source.images)


def test_nothing_is_claimed_to_be_known(film):
  clip = Film(film, views=2, tracks=7, **SIZE).read(0)
  assert not np.any(clip.source.depth)
  assert not np.any(clip.tracks.valid)
  assert clip.tracks.points.shape == (7, 5, 3)
  assert clip.target.images.shape == (2, 32, 32, 3)
  at = np.round(np.asarray(clip.target.times) * 4).astype(int)
  np.testing.assert_array_equal(clip.target.images, clip.source.images[at])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"path": "missing.mp4"}, "No film at missing.mp4"),
    ({"path": __file__}, "cannot be read as a video"),
    ({"split": "test"}, "Unknown split 'test'"),
    ({"kind": "static"}, "no scenes of kind 'static'"),
    ({"frames": 4}, "4 frames"),
    ({"frames": 101}, "no shot of 201 frames"),
  ],
)
def test_bad_input_is_named(film, change, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    Film(**{"path": film, **SIZE, **change})
