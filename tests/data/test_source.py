import jax
import numpy as np
import pytest

from d4s_jax.data.source import Mixture, open_source
from d4s_jax.data.stored import Stored
from d4s_jax.formats.video import write_video

SIZE = {"frames": 5, "height": 32, "width": 32, "views": 2}


def test_one_name_is_that_source():
  source = open_source("synthetic", length=3, **SIZE)
  assert len(source) == 3
  assert source.read(0).source.images.shape == (5, 32, 32, 3)


def test_several_take_turns_and_batch_together(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  path = tmp_path / "grey.mp4"
  write_video(path, np.full((30, 48, 48, 3), 0.5, np.float32), fps=24)
  # A single shot is trained on, none is held out.
  mixed = open_source(f"synthetic,film:{path}", posed=False, length=2, **SIZE)
  assert isinstance(mixed, Mixture)
  assert len(mixed) == 4
  clips = [mixed.read(index) for index in range(4)]
  np.testing.assert_allclose(clips[1].source.images, 0.5, atol=0.02)
  alone = open_source("synthetic", length=2, **SIZE)
  for turn in range(2):
    np.testing.assert_array_equal(clips[2 * turn].source.images, alone.read(turn).source.images)
  shapes = [
    [(np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(clip) if not isinstance(x, str)]
    for clip in clips
  ]
  assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("sintel", "Unknown data source 'sintel'"),
    ("synthetic,sintel", "Unknown data source 'sintel'"),
    ("film", "expected 'film:PATH'"),
    ("synthetic:somewhere", "expected 'synthetic'"),
  ],
)
def test_bad_names(names, message):
  with pytest.raises(ValueError, match=message):
    open_source(names, posed=False, **SIZE)


def test_what_needs_cameras_refuses_a_film():
  with pytest.raises(ValueError, match="'film' knows neither cameras nor depth"):
    open_source("synthetic,film:any.mp4", **SIZE)


class _Counting:
  """A source that counts how often it is read."""

  def __init__(self):
    self.source, self.reads = open_source("synthetic", kind="dynamic", length=4, **SIZE), 0

  def __len__(self):
    return len(self.source)

  def read(self, index):
    self.reads += 1
    return self.source.read(index)


def test_stored_clips_are_the_sources_and_are_read_from_it_once(tmp_path):
  counting = _Counting()
  stored = Stored(counting, tmp_path)
  first, again = stored.read(1), stored.read(1)
  assert counting.reads == 1
  jax.tree.map(np.testing.assert_array_equal, first, again)
  true = counting.source.read(1)
  assert first.text == true.text
  for ours, theirs in ((first.source, true.source), (first.target, true.target)):
    # Half a step of 8 bits, and of the 11 bits of half precision.
    np.testing.assert_allclose(ours.images, theirs.images, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(ours.depth, theirs.depth, rtol=2**-11)
    np.testing.assert_array_equal(ours.cameras.world_from_camera, theirs.cameras.world_from_camera)
    np.testing.assert_array_equal(ours.cameras.intrinsics, theirs.cameras.intrinsics)
    np.testing.assert_array_equal(ours.times, theirs.times)
  jax.tree.map(np.testing.assert_array_equal, first.tracks, true.tracks)
  np.testing.assert_array_equal(first.instances, true.instances)
  pairs = zip(jax.tree.leaves(first), jax.tree.leaves(true))
  assert all(np.asarray(x).dtype == np.asarray(y).dtype for x, y in pairs)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_a_damaged_clip_is_made_again_and_reported(tmp_path, damage):
  counting = _Counting()
  stored = Stored(counting, tmp_path)
  first = stored.read(1)
  file = next(tmp_path.glob("*.npz"))
  contents = bytearray(file.read_bytes())
  contents[len(contents) // 2] ^= 1
  file.write_bytes(
    {"cut": contents[: len(contents) // 2], "empty": b"", "changed": contents}[damage]
  )
  with pytest.warns(UserWarning, match="0000001.npz is damaged .* made again"):
    jax.tree.map(np.testing.assert_array_equal, stored.read(1), first)
  assert counting.reads == 2
  stored.read(1)
  assert counting.reads == 2


def test_a_write_that_broke_off_leaves_no_clip(tmp_path, monkeypatch):
  stored = Stored(_Counting(), tmp_path)

  def broken(out, **arrays):
    out.write(b"half")
    raise OSError("No space left on device")

  monkeypatch.setattr(np, "savez", broken)
  with pytest.raises(OSError, match="No space"):
    stored.read(0)
  monkeypatch.undo()
  assert stored.read(0).source.images.shape == (5, 32, 32, 3)


def test_each_source_of_a_mixture_has_its_own_place_in_the_cache(tmp_path):
  folder = str(tmp_path / "clips")
  alone = open_source("synthetic", cache=folder, length=2, **SIZE)
  alone.read(0)
  (own,) = (tmp_path / "clips").iterdir()
  assert [file.name for file in own.iterdir()] == ["0000000.npz"]
  # The same clips, in a mixture; with other options others.
  open_source("synthetic,synthetic", cache=folder, length=2, **SIZE).read(2)
  assert sorted(file.name for file in own.iterdir()) == ["0000000.npz", "0000001.npz"]
  open_source("synthetic", cache=folder, split="heldout", length=2, **SIZE).read(0)
  open_source("synthetic", cache=folder, length=2, **SIZE | {"views": 1}).read(0)
  assert len(list((tmp_path / "clips").iterdir())) == 3
