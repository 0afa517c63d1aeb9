"""Shards through the loader: weights, hosts, resumption, buckets, records that can't be read."""

import shutil
import warnings

import jax
import numpy as np
import pytest

from d4s_jax.data import loader
from d4s_jax.data.loader import make_loader
from d4s_jax.data.record import CorruptRecord
from d4s_jax.data.sampling import Augmentation, NoLength
from d4s_jax.data.shards import MANIFEST, Shards, read_manifest
from d4s_jax.data.source import Buckets, Mixture, open_buckets, open_source
from tests.data.records import plain_record, write_folder

SIZE = {"frames": 5, "height": 16, "width": 16}
OPTIONS = {"views": 2, "length": 40}
RANDOM = {"augment": Augmentation(stride=3)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Clips 0 to 39 in one folder, 100 to 109 in another."""
  base = tmp_path_factory.mktemp("shards")
  write_folder(base / "a", [plain_record(f"a/{x}", 13, 24, 24) for x in range(40)], 10)
  write_folder(base / "b", [plain_record(f"b/{x}", 13, 24, 24) for x in range(100, 110)], 10)
  return base


def tokenize(text):
  return np.array([int(text.split()[-1])], np.int32)


def mixture(folders, weights=(3, 1)):
  names = f"shards:{folders}/a,shards:{folders}/b"
  return open_source(names, weights=weights, cutting=RANDOM, **SIZE, **OPTIONS)


def take(source, steps, batch_size=6, seed=1, **options):
  """Numbers of the clips, and the place of one target, which augmentation chose."""
  with make_loader(source, tokenize, batch_size=batch_size, seed=seed, **options) as batches:
    read = [next(batches) for _ in range(steps)]
  return [(x.text[:, 0].tolist(), x.target.times[:, 0].tolist()) for x in read]


def test_clips_come_by_their_weights_and_every_record_once_an_epoch(folders):
  drawn = np.array([batch for batch, _ in take(mixture(folders), 40)]).ravel()
  of_a = drawn[drawn < 100]
  assert abs(len(of_a) / len(drawn) - 0.75) < 0.02
  assert sorted(of_a[:40]) == list(range(40))
  assert sorted(of_a[40:80]) == list(range(40)) != list(of_a[40:80])
  of_b = drawn[drawn >= 100]
  assert sorted(of_b[:10]) == list(range(100, 110))
  even = np.array([batch for batch, _ in take(mixture(folders, ()), 40)]).ravel()
  assert abs(np.mean(even < 100) - 0.5) < 0.02


def test_a_clip_looks_different_in_another_epoch(folders):
  source = open_source(f"shards:{folders}/b", cutting=RANDOM, **SIZE, **OPTIONS)
  read = take(source, 10, batch_size=10)
  seen = {}
  for numbers, times in read:
    for number, time in zip(numbers, times):
      seen.setdefault(number, set()).add(round(time, 4))
  assert all(len(times) > 2 for times in seen.values())


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_resumes_at_the_exact_clip_on_another_number_of_hosts(folders, hosts):
  whole = take(mixture(folders), 8)
  rows = np.array_split(np.arange(6), hosts)
  parts = [take(mixture(folders), 5, start=3, rows=some.tolist()) for some in rows]
  for step in range(5):
    numbers, times = whole[3 + step]
    assert sum((part[step][0] for part in parts), []) == numbers
    assert sum((part[step][1] for part in parts), []) == times


def test_a_state_of_other_weights_is_refused(folders):
  with make_loader(mixture(folders), tokenize, batch_size=2, seed=0) as batches:
    state = batches.get_state()
  with make_loader(mixture(folders, (1, 1)), tokenize, batch_size=2, seed=0) as batches:
    with pytest.raises(ValueError, match="same data settings"):
      batches.set_state(state)


@pytest.mark.parametrize("buckets", [False, True])
def test_a_folder_without_clips_of_a_split_is_left_out_of_a_mixture(tmp_path, buckets):
  """A test split that was curated apart, and a folder of a single clip, beside another one."""
  several = [plain_record(f"a/{number}") for number in range(12)]
  write_folder(tmp_path / "many", several, heldout=("a/3",))
  write_folder(tmp_path / "test", [plain_record("b/0")], heldout=("b/0",))
  write_folder(tmp_path / "one", [plain_record("c/0")])
  names = ",".join(f"shards:{tmp_path}/{name}" for name in ("many", "test", "one"))

  def clips(split):
    how = {"cutting": RANDOM, "weights": (1, 2, 3), "split": split, **OPTIONS}
    if not buckets:
      source = open_source(names, **SIZE, **how)
      return source.weights, [len(part) for part in source.parts]
    (source,) = open_buckets(names, [tuple(SIZE.values())], **how).sources
    return source.weights, [len(part) for part in source.parts]

  with pytest.warns(UserWarning, match="test has no clips of the split 'train' among 1.*left out"):
    assert clips("train") == ((1, 3), [11, 1])
  with pytest.warns(UserWarning, match="one has no clips of the split 'heldout'"):
    assert clips("heldout") == ((1, 2), [1, 1])
  with pytest.raises(ValueError, match="no clips of the split 'train' among 1; expected more"):
    open_source(f"shards:{tmp_path}/test", cutting=RANDOM, **SIZE, **OPTIONS)
  with pytest.raises(ValueError, match="one has no clips of the split 'heldout'"):
    open_source(f"shards:{tmp_path}/one,shards:{tmp_path}/one", split="heldout", **SIZE, **OPTIONS)


def test_a_folder_that_trains_on_what_another_holds_out_is_told(tmp_path):
  same = [plain_record(f"a/{number}") for number in range(12)]
  write_folder(tmp_path / "one", same, heldout=("a/3", "a/4"))
  write_folder(tmp_path / "other", same, heldout=("a/3",))
  names = f"shards:{tmp_path}/one,shards:{tmp_path}/other"
  with pytest.warns(UserWarning, match="other trains on 1 films .*, such as a/4, that .*one"):
    open_source(names, cutting=RANDOM, **SIZE, **OPTIONS)


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, float("nan"))])
def test_weights_that_fit_nothing_are_refused(folders, weights):
  with pytest.raises(ValueError, match="a positive number for each"):
    mixture(folders, weights)


def damage(folder, marks):
  """Changes a byte of the records that hold these names."""
  for path in folder.glob("*.array_record"):
    contents = bytearray(path.read_bytes())
    for mark in marks:
      place = contents.find(mark)
      if place >= 0:
        contents[place] ^= 1
    path.write_bytes(contents)


@pytest.fixture
def damaged(tmp_path):
  write_folder(tmp_path, [plain_record(f"a/{x}", 5) for x in range(40)], 10)
  damage(tmp_path, [b'"a/7"', b'"a/23"'])
  return open_source(f"shards:{tmp_path}", **SIZE, **OPTIONS)


def test_a_corrupt_record_is_skipped_counted_and_named(damaged):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    options = {"batch_size": 10, "seed": 3, "corrupt": 0.1}
    with make_loader(damaged, tokenize, **options) as batches:
      drawn = np.concatenate([next(batches).text[:, 0] for _ in range(8)])
      assert batches.read == 80
      # Two an epoch; one that takes another's place may be corrupt too.
      assert 4 <= batches.skipped <= 6
  assert len(drawn) == 80 and not {7, 23} & set(drawn)
  told = {str(x.message) for x in caught}
  assert any("record 7" in x and "shard-00000" in x for x in told)
  assert any("record 3" in x and "shard-00002" in x for x in told)


def test_an_error_without_a_message_is_a_corrupt_record_too(folders, monkeypatch):
  def fail(self, entry):
    raise RuntimeError

  monkeypatch.setattr(Shards, "_bytes", fail)
  (one, *_) = read_manifest(folders / "b")
  with pytest.raises(CorruptRecord, match="record 0: RuntimeError"):
    Shards(folders / "b").read(one)


@pytest.mark.filterwarnings("ignore:.*It is skipped")
def test_the_replacement_is_the_same_on_any_number_of_hosts(damaged):
  whole = take(damaged, 8, batch_size=10, corrupt=1)
  parts = [take(damaged, 8, batch_size=10, corrupt=1, rows=x) for x in ([0, 1, 2], range(3, 10))]
  for step in range(8):
    assert parts[0][step][0] + parts[1][step][0] == whole[step][0]


@pytest.mark.filterwarnings("ignore:.*It is skipped")
def test_too_many_corrupt_records_stop_the_run(damaged):
  with make_loader(damaged, tokenize, batch_size=10, seed=3, corrupt=0.01) as batches:
    with pytest.raises(CorruptRecord, match="3 clips beside .* more than the share 0.01"):
      for _ in range(20):
        next(batches)
  with pytest.raises(ValueError, match="corrupt is 2"):
    make_loader(damaged, tokenize, batch_size=1, seed=0, corrupt=2)


@pytest.mark.filterwarnings("ignore:.*It is skipped")
def test_a_folder_of_nothing_but_damage_stops(tmp_path):
  write_folder(tmp_path, [plain_record(f"a/{x}") for x in range(4)])
  path = next(tmp_path.glob("*.array_record"))
  path.write_bytes(path.read_bytes()[:2000])
  source = open_source(f"shards:{tmp_path}", **SIZE, **OPTIONS)
  with make_loader(source, tokenize, batch_size=2, seed=0) as batches:
    with pytest.raises(CorruptRecord, match="20 clips in a row"):
      next(batches)


def moving(name, speed):
  """A record without depth or tracks, whose camera goes ahead."""
  poses = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
  poses[:, 2, 3] = speed * np.arange(5)
  return plain_record(name, world_from_camera=poses)


@pytest.mark.filterwarnings("ignore:.*only trembles.*It is left out")
def test_records_whose_cameras_only_tremble_are_left_out(tmp_path):
  """In units of structure from motion, in which trembling is as large as any way."""
  rng = np.random.default_rng(0)

  def trembling(name):
    poses = np.tile(np.eye(4, dtype=np.float32), (49, 1, 1))
    poses[:, :3, 3] = rng.normal(size=(49, 3))
    return plain_record(name, 49, metric=False, world_from_camera=poses)

  def going(name):
    poses = np.tile(np.eye(4, dtype=np.float32), (49, 1, 1))
    poses[:, 2, 3] = np.linspace(0, 1, 49)
    return plain_record(name, 49, metric=False, world_from_camera=poses)

  write_folder(tmp_path, [[going, trembling][x % 2](f"a/{x}") for x in range(20)])
  size = {**SIZE, "frames": 9}
  source = open_source(f"shards:{tmp_path}", cutting={"distance": 1.0}, **size, **OPTIONS)
  with make_loader(source, tokenize, batch_size=10, seed=0, corrupt=0) as batches:
    read = np.concatenate([next(batches).text[:, 0] for _ in range(30)])
    assert batches.skipped == 0
  # By nine frames, noise passes for a path once in a hundred times.
  assert (read % 2).mean() < 0.03 and set(range(0, 20, 2)) <= set(read.tolist())


@pytest.mark.filterwarnings("ignore:.*It is left out")
def test_clips_without_any_length_are_left_out_and_are_no_damage(tmp_path):
  write_folder(tmp_path / "some", [moving(f"a/{x}", 0.1 * (x % 2)) for x in range(20)])
  write_folder(tmp_path / "none", [moving(f"a/{x}", 1e-4) for x in range(20)])
  cutting = {"distance": 1.0}
  source = open_source(f"shards:{tmp_path}/some", cutting=cutting, **SIZE, **OPTIONS)
  with make_loader(source, tokenize, batch_size=10, seed=0, corrupt=0) as batches:
    read = [next(batches) for _ in range(30)]
    assert batches.skipped == 0 and batches.read == 300
  assert {number for x in read for number in x.text[:, 0].tolist()} == set(range(1, 20, 2))
  for batch in read:
    poses = np.asarray(batch.source.cameras.world_from_camera)
    np.testing.assert_allclose(np.abs(poses[:, -1, 2, 3]), 1, atol=1e-4)
  source = open_source(f"shards:{tmp_path}/none", cutting=cutting, **SIZE, **OPTIONS)
  with make_loader(source, tokenize, batch_size=2, seed=0) as batches:
    with pytest.raises(NoLength, match="20 clips in a row had no length.*a/"):
      next(batches)


def test_a_state_of_other_clips_or_other_cutting_is_refused(folders, tmp_path):
  """Of as many clips; while the same records in another place go on."""

  def opened(folder, **cutting):
    source = open_source(f"shards:{folder}", cutting=cutting, **SIZE, **OPTIONS)
    return make_loader(source, tokenize, batch_size=2, seed=0)

  state = opened(folders / "b", **RANDOM).get_state()
  shutil.copytree(folders / "b", tmp_path / "same")
  opened(tmp_path / "same", **RANDOM).set_state(state)
  write_folder(tmp_path / "other", [plain_record(f"b/{x}", 13, 24, 24) for x in range(10)])
  for folder in ("told", "longer", "fewer"):
    shutil.copytree(folders / "b", tmp_path / folder)
  with (tmp_path / "told" / MANIFEST).open("ab") as file:
    file.write(b'{"clip": "b/200", "kept": false}\n')
  with next((tmp_path / "longer").glob("*.array_record")).open("ab") as file:
    file.write(b"x")
  next((tmp_path / "fewer").glob("*.array_record")).unlink()
  for differs, folder, how in (
    ("reverse: saved 0.5, now 0.1", "b", {"augment": Augmentation(stride=3, reverse=0.1)}),
    ("crop: saved True, now False", "b", {"augment": Augmentation(stride=3, crop=False)}),
    ("stride: saved 3, now 2", "b", {"augment": Augmentation(stride=2)}),
    ("distance: saved 0.0, now 1.0", "b", {**RANDOM, "distance": 1.0}),
    ("hash of names: saved", tmp_path / "other", RANDOM),
    ("hash of manifest: saved", tmp_path / "told", RANDOM),
    ("hash of sizes: saved", tmp_path / "longer", RANDOM),
    ("hash of sizes: saved", tmp_path / "fewer", RANDOM),
  ):
    with pytest.raises(ValueError, match=f"{differs}.*same data settings"):
      opened(folders / folder, **how).set_state(state)


def test_batches_of_buckets_have_static_shapes_in_proportion(tmp_path):
  wide = [plain_record(f"a/{x}", 9, 16, 32) for x in range(30)]
  square = [plain_record(f"a/{x}", 9, 16, 16) for x in range(30, 40)]
  write_folder(tmp_path, [*wide, *square])
  shapes = [(5, 16, 32), (9, 16, 16)]
  buckets = open_buckets(f"shards:{tmp_path}", shapes, views=2)
  assert isinstance(buckets, Buckets) and np.allclose(buckets.shares, [0.75, 0.25])

  def shape_and_numbers(**options):
    with make_loader(buckets, tokenize, batch_size=4, seed=0, **options) as batches:
      read = [next(batches) for _ in range(20)]
    return [(x.source.images.shape[1:4], x.text[:, 0].tolist()) for x in read]

  read = shape_and_numbers()
  assert sum(shape == (5, 16, 32) for shape, _ in read) == 15
  assert {shape for shape, _ in read} == set(shapes)
  for shape, numbers in read:
    assert all((number < 30) == (shape == (5, 16, 32)) for number in numbers)
  later = shape_and_numbers(start=5, rows=[1, 3])[:15]
  assert later == [(shape, numbers[1::2]) for shape, numbers in read[5:]]


def test_buckets_that_hold_nothing_are_left_out_or_refused(tmp_path):
  write_folder(tmp_path, [plain_record(f"a/{x}", 9, 16, 16) for x in range(4)])
  buckets = open_buckets(f"shards:{tmp_path}", [(5, 16, 16), (5, 16, 64)], views=2)
  assert len(buckets.sources) == 1 and buckets.shares == [1.0]
  with pytest.raises(ValueError, match="has no clips for any of the shapes"):
    open_buckets(f"shards:{tmp_path}", [(13, 16, 16), (17, 16, 64)], views=2)
  with pytest.raises(ValueError, match="expected each once"):
    open_buckets(f"shards:{tmp_path}", [(5, 16, 16), (5, 16, 16)], views=2)


def test_what_is_made_up_fills_all_buckets(folders):
  shapes = [(5, 16, 16), (5, 16, 24)]
  buckets = open_buckets(f"synthetic,shards:{folders}/a", shapes, weights=(1, 3), **OPTIONS)
  # Of the square records none goes to the wide bucket.
  np.testing.assert_allclose(buckets.shares, [1 / 8 + 3 / 4, 1 / 8])
  assert isinstance(buckets.sources[1], Mixture) and len(buckets.sources[1].parts) == 1


def test_processes_hand_pictures_over_in_8_bits_and_batches_have_floats(folders):
  """Else four times as much passes through shared memory; the values are the same."""
  source = mixture(folders)
  told = {"batch_size": 6, "seed": 1}
  with (
    make_loader(source, tokenize, **told) as own,
    make_loader(source, tokenize, workers=1, **told) as other,
  ):
    for _ in range(2):
      here, there = next(own), next(other)
      assert there.source.images.dtype == here.target.images.dtype == np.float32
      for one, same in zip(jax.tree.leaves(here), jax.tree.leaves(there)):
        assert type(same) is np.ndarray
        np.testing.assert_array_equal(one, same)
    passed, _ = next(other._iterator)
    assert passed.source.images.dtype == passed.target.images.dtype == np.uint8
    # What isn't known is not carried.
    assert isinstance(passed.source.depth, loader._Zeros) and passed.instances.shape[0] == 6
    assert isinstance(passed.source.images, np.ndarray)
    assert there.source.depth.shape == there.source.images.shape[:-1]
  clip = source.parts[0].read(3)
  assert clip.source.images.dtype == np.float32 and 0 < clip.source.images.max() < 1


def test_a_batch_that_is_black_all_over_comes_in_floats_too(tmp_path):
  """Its pictures are zeros, which aren't carried any more than what isn't known."""
  write_folder(tmp_path, [plain_record(f"c/{250 * x}", 13, 24, 24) for x in range(4)])
  source = open_source(f"shards:{tmp_path}", cutting=RANDOM, **SIZE, **OPTIONS)
  with make_loader(source, tokenize, batch_size=4, seed=1, workers=1) as batches:
    black = next(batches).source.images
    assert isinstance(next(batches._iterator)[0].source.images, loader._Zeros)
  assert black.shape == (4, 5, 16, 16, 3) and black.dtype == np.float32 and not black.any()
