"""Videos as they come: cuts, truncation, times, names, links."""

import errno
import os
import re

import av
import numpy as np
import pytest

from d4s_jax.curation import units, work
from d4s_jax.curation.guard import Guard
from d4s_jax.curation.settings import Settings
from d4s_jax.curation.units import Unit
from d4s_jax.data import record as records
from d4s_jax.formats.video import write_video
from tests.curation.footage import pan, write_films
from tests.data.datasets.writers import multicamvideo


def unit(path):
  return Unit("videos", str(path.parent), path.name)


def split(unit, longest=97, tell=lambda share: None):
  return units.spans(unit, longest, 10, tell)


def test_shots_are_found_and_long_ones_cut(tmp_path):
  film = np.concatenate([pan(0, 24), pan(1, 50), pan(2, 9)])
  write_video(tmp_path / "a.mp4", film, 24)
  spans, problems = split(unit(tmp_path / "a.mp4"), 40)
  assert [(span.first, span.last) for span in spans] == [(0, 23), (24, 48), (49, 73)]
  assert not problems and spans[1].name == "videos/a.mp4/24-48"
  view = units.open_span(spans[1]).views[0]
  assert len(view) == 25 and np.allclose(np.diff(view.times), 1 / 24)
  for index in (0, 1, 24, 3):
    assert np.abs(view.pixels(index) / 255 - film[24 + index]).mean() < 0.05


def test_files_are_found_by_any_name_and_never_outside(tmp_path):
  write_films(tmp_path / "films", 1)
  (tmp_path / "films" / "film 0.mp4").rename(tmp_path / "films" / "Häschen 二.mp4")
  (tmp_path / "films" / "notes.txt").write_text("no film")
  (tmp_path / "outside.mp4").write_text("secret")
  (tmp_path / "films" / "link.mp4").symlink_to(tmp_path / "outside.mp4")
  found, problems = units.find("videos", tmp_path / "films")
  assert [one.name for one in found] == ["videos/Häschen 二.mp4"]
  assert len(problems) == 1 and "leads out of" in problems[0]
  with open(os.fsencode(tmp_path / "films") + b"/\xff.mp4", "wb"):
    pass
  _, problems = units.find("videos", tmp_path / "films")
  # It can be written into the report.
  assert any("name that is no text" in problem for problem in problems)
  assert all(problem.encode() for problem in problems)
  assert split(found[0])[0]
  with pytest.raises(NotADirectoryError, match="expected one with videos"):
    units.find("videos", tmp_path / "none")
  (tmp_path / "films.zip").write_bytes(b"PK")
  with pytest.raises(NotADirectoryError, match="films.zip is a file.*unpack it yourself"):
    units.find("videos", tmp_path / "films.zip")
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "link.mp4").symlink_to(tmp_path / "outside.mp4")
  with pytest.raises(ValueError, match="has no videos.*link.mp4 is a link that leads out"):
    units.find("videos", tmp_path / "empty")


def test_a_video_that_ends_before_it_claims_to_is_named(tmp_path):
  """Decoders end without a word where such a file does."""
  write_video(tmp_path / "a.mp4", pan(0, 96), 24)
  with av.open(tmp_path / "a.mp4") as film, av.open(tmp_path / "b.mkv", "w") as out:
    stream = out.add_stream_from_template(film.streams.video[0])
    for packet in film.demux(film.streams.video[0]):
      if packet.dts is not None:
        packet.stream = stream
        out.mux(packet)
  path = tmp_path / "b.mkv"
  assert split(unit(path))[1] == []
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  spans, problems = split(unit(path))
  assert spans
  (problem,) = problems
  assert re.search(r"b.mkv has pictures for [012]\.\d s and claims 4.0 s; what is there", problem)


def test_folders_that_are_not_looked_into_are_named(tmp_path, monkeypatch):
  (tmp_path / "deep" / "down").mkdir(parents=True)
  (tmp_path / "deep" / "loop").symlink_to(tmp_path)
  (tmp_path / "shut").mkdir()
  (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing")
  (tmp_path / "round.mp4").symlink_to(tmp_path / "round.mp4")
  for folder in ("deep/down", "shut"):
    (tmp_path / folder / "a.mp4").write_bytes(b"")
  may = os.access
  monkeypatch.setattr(os, "access", lambda path, how: path != tmp_path / "shut" and may(path, how))
  found, problems = units.find("videos", tmp_path)
  assert [one.name for one in found] == ["videos/deep/down/a.mp4"]
  assert sorted(problem.split(";")[0] for problem in problems) == [
    f"{tmp_path}/deep/loop is a link to a folder",
    f"{tmp_path}/gone.mp4 is a link to nothing, or no file",
    f"{tmp_path}/round.mp4 is a link to nothing, or no file",
    f"{tmp_path}/shut may not be read",
  ]

  def refuse(folder):
    raise PermissionError(errno.EACCES, "Permission denied", str(folder))

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(PermissionError, match=str(tmp_path)):
    units.find("videos", tmp_path)


def test_a_truncated_video_names_file_cause_and_remedy(tmp_path):
  write_films(tmp_path, 1)
  path = tmp_path / "film 0.mp4"
  contents = path.read_bytes()
  # The header comes first in our own files: half of the frames are there.
  path.write_bytes(contents[: len(contents) // 2])
  try:
    spans, problems = split(unit(path))
    assert any("can't be read beyond frame" in x and "film 0.mp4" in x for x in problems)
    assert all(span.last < 47 for span in spans)
  except ValueError as error:
    assert "film 0.mp4" in str(error) and "Fetch the file again" in str(error)
  path.write_bytes(contents[:100])
  with pytest.raises(ValueError, match="film 0.mp4 .*it has no pictures.*Fetch the file again"):
    split(unit(path))


def test_a_camera_that_cannot_be_read_is_left_out_of_a_clip_unless_it_is_the_first(tmp_path):
  written = multicamvideo.write(tmp_path / "set", frames=6)
  one = units.Unit("multicamvideo", str(written.root), written.scene)
  span, settings, guard = units.Span(one, 0, 5), Settings(side=64), Guard(tmp_path, 60)
  videos = sorted(written.root.rglob("*.mp4"))
  assert len(videos) == 3
  whole = records.decode(work.read(span, settings, guard)["record"])
  contents = videos[1].read_bytes()
  videos[1].write_bytes(contents[: len(contents) * 7 // 10])
  units._scene.cache_clear()
  row = work.read(span, settings, guard)
  kept = records.decode(row["record"])
  assert kept.view.tolist() == [0] * 6 + [1] * 6
  assert kept.images == whole.images[:6] + whole.images[12:]
  for name in ("times", "world_from_camera", "intrinsics"):
    both = np.delete(getattr(whole, name), np.s_[6:12], axis=0)
    np.testing.assert_array_equal(getattr(kept, name), both)
  told = work.assess(row, Settings(), guard)["told"]
  assert "cam02' is left out: " in told["notes"][0] and videos[1].name in told["notes"][0]
  videos[0].write_bytes(videos[0].read_bytes()[: len(contents) * 7 // 10])
  units._scene.cache_clear()
  assert "cam01.mp4" in work.read(span, settings, guard)["failed"]


def test_times_that_do_not_rise_are_left_out(tmp_path, monkeypatch):
  """Duplicate and falling times, as broken recorders write them."""
  write_films(tmp_path, 1, 1)
  path = tmp_path / "film 0.mp4"
  stamps = [0, 1, 1, 5, 3, *range(6, 25)]

  class Container:
    def __init__(self, container):
      self._container = container
      self.streams, self.duration = container.streams, None

    def decode(self, stream):
      for frame, frame.pts in zip(self._container.decode(stream), stamps):
        yield frame

    def __enter__(self):
      return self

    def __exit__(self, *_):
      self._container.close()

  real = av.open
  monkeypatch.setattr(units.av, "open", lambda path: Container(real(path)))
  spans, problems = split(unit(path))
  assert len(spans[0].stamps) == 22 and list(spans[0].stamps) == sorted(set(spans[0].stamps))
  assert len(problems) == 1 and "2 frames whose times don't rise" in problems[0]


def test_the_search_for_shots_tells_how_far_it_is(tmp_path, monkeypatch):
  monkeypatch.setattr(units, "_TOLD", 12)
  write_films(tmp_path, 1)
  told = []
  split(unit(tmp_path / "film 0.mp4"), tell=told.append)
  with av.open(str(tmp_path / "film 0.mp4")) as container:
    count = sum(1 for _ in container.decode(video=0))
  # The time of every 12th frame, of the whole.
  np.testing.assert_allclose(told, np.arange(11, count, 12) / count, atol=0.01)
