"""Archives of arrays: rows on demand, and files from strangers."""

import io
import pathlib
import tracemalloc
import zipfile

import numpy as np
import pytest

from d4s_jax.formats.arrays import ArrayArchive, map_array, write_array
from tests.support import full_disk

POINTS = np.arange(7 * 5 * 3, dtype=np.float32).reshape(7, 5, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_those_of_numpy(tmp_path, save):
  save(tmp_path / "a.npz", points=POINTS, name="ein Name", count=np.int64(3))
  archive = ArrayArchive(tmp_path / "a.npz")
  assert archive.specs["points"].shape == (7, 5, 3)
  np.testing.assert_array_equal(archive.read("points"), POINTS)
  np.testing.assert_array_equal(archive.read("points", [0, 3, 6]), POINTS[[0, 3, 6]])
  assert archive.read("name") == "ein Name" and archive.read("count") == 3


def test_an_array_is_written_as_numpy_reads_it(tmp_path):
  for array in (POINTS, np.asfortranarray(POINTS[..., 0]), np.uint8(255 * (POINTS > 3))):
    write_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_an_array_is_mapped_or_refused_in_a_line(tmp_path):
  path = tmp_path / "a.npy"
  for array in (POINTS, np.asfortranarray(POINTS[..., 0]), POINTS[:0], np.float32(3)):
    np.save(path, array)
    found = map_array(path)
    np.testing.assert_array_equal(found, array)
    assert isinstance(found, np.memmap) and found.dtype == array.dtype
  numbers = POINTS.tobytes()
  for shape in ((7, 5, 2), (-7, -5, 3), (7, 5, 3 * 2**64), (0, 2**80), (-1,)):
    path.write_bytes(_header(shape=shape) + numbers * (0 not in shape))
    with pytest.raises(ValueError, match=r"a\.npy has \d+ bytes of numbers and claims float32 of"):
      map_array(path)
  # What NumPy's and Python's parsers make of damage is no ValueError.
  whole = "{'descr': ((), ()), 'fortran_order': False, 'shape': (7, 5, 3)}"
  for text in ("{'shape': (7, 5", "-" * 9000 + "1", "{[]: 1}", whole, ","):
    header = f"{text}\n".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"a\.npy is no array of NumPy, or damaged"):
      map_array(path)


def test_a_full_disk_is_named_and_leaves_the_old_array(tmp_path):
  write_array(tmp_path / "a.npy", POINTS[:1])
  with full_disk(1000), pytest.raises(OSError, match=r"too large.*a\.npy"):
    write_array(tmp_path / "a.npy", np.zeros(10_000))
  np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), POINTS[:1])
  assert [x.name for x in tmp_path.iterdir()] == ["a.npy"]


def test_columns_first(tmp_path):
  np.savez(tmp_path / "a.npz", points=np.asfortranarray(POINTS[..., 0]))
  archive = ArrayArchive(tmp_path / "a.npz")
  np.testing.assert_array_equal(archive.read("points", [2, 5]), POINTS[[2, 5], :, 0])


def test_some_rows_of_a_large_array_take_little_memory(tmp_path):
  np.savez_compressed(tmp_path / "a.npz", big=np.zeros((300, 100_000), np.uint8))
  archive = ArrayArchive(tmp_path / "a.npz")
  tracemalloc.start()
  assert archive.read("big", [299]).shape == (1, 100_000)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 20e6 < 300 * 100_000


def test_a_shape_is_asked_for(tmp_path):
  np.savez(tmp_path / "a.npz", points=POINTS)
  archive = ArrayArchive(tmp_path / "a.npz")
  assert archive.spec("points", (None, 5, 3)).shape[0] == 7
  with pytest.raises(ValueError, match=r"'points' has shape \[7, 5, 3\]; expected \['any', 4, 3\]"):
    archive.spec("points", (None, 4, 3))
  with pytest.raises(ValueError, match=r"has \['points'\]; expected 'poses'"):
    archive.spec("poses", (7,))


def test_objects_are_not_unpickled_and_the_rest_is_read(tmp_path):
  class Bomb:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / "touched",)

  np.savez(tmp_path / "a.npz", bad=np.array([Bomb()], object), points=POINTS)
  archive = ArrayArchive(tmp_path / "a.npz")
  np.testing.assert_array_equal(archive.read("points"), POINTS)
  with pytest.raises(ValueError, match="'bad' holds object; expected numbers. Objects are not unp"):
    archive.spec("bad", (1,))
  assert not (tmp_path / "touched").exists()


def _archive(path, header, content):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a.npy", header + content)


def _header(**entries):
  out = io.BytesIO()
  np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, **entries})
  return out.getvalue()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
  _archive(tmp_path / "a.npz", _header(shape=(4,)), b"\0" * 50_000_000)
  assert (tmp_path / "a.npz").stat().st_size < 100_000
  tracemalloc.start()
  with pytest.raises(ValueError, match="unpacks to 50000000 bytes of numbers and claims 16"):
    ArrayArchive(tmp_path / "a.npz").spec("a", (4,))
  assert tracemalloc.get_traced_memory()[1] < 10e6
  tracemalloc.stop()


def test_a_header_that_claims_too_much(tmp_path):
  _archive(tmp_path / "a.npz", _header(shape=(2**40,)), b"\0" * 16)
  with pytest.raises(ValueError, match="unpacks to 16 bytes of numbers and claims 4398046511104"):
    ArrayArchive(tmp_path / "a.npz").spec("a", (None,))


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "no header"])
def test_damaged_archives_are_named(tmp_path, damage):
  path = tmp_path / "a.npz"
  np.savez(path, points=np.random.default_rng(0).random((100, 50)))
  content = bytearray(path.read_bytes())
  if damage == "no header":
    _archive(path, b"", b"no array at all")
  else:
    content[len(content) // 2] ^= 255
    path.write_bytes(
      {"cut": content[: len(content) // 2], "flipped": content, "text": b"hello"}[damage]
    )
  with pytest.raises(ValueError, match="a.npz"):
    archive = ArrayArchive(path)
    archive.spec("a" if damage == "no header" else "points", (100, 50))
    archive.read("points")


@pytest.mark.parametrize("harm", ["encrypted", "packed by LZMA"])
def test_an_array_that_cannot_be_unpacked_is_refused_and_the_rest_is_read(tmp_path, harm):
  path = tmp_path / "a.npz"
  np.savez(path, whole=np.arange(3.0))
  kind = zipfile.ZIP_LZMA if harm == "packed by LZMA" else zipfile.ZIP_STORED
  with zipfile.ZipFile(path, "a", kind) as archive:
    archive.writestr("harmed.npy", _header(shape=(4,)) + b"\0" * 16)
  if harm == "encrypted":
    content = bytearray(path.read_bytes())
    # Flags, 6 and 8 bytes into an entry of the second array and its line of the directory.
    content[content.rindex(b"PK\3\4") + 6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
  archive = ArrayArchive(path)
  assert archive.read("whole").tolist() == [0, 1, 2]
  with pytest.raises(ValueError, match="a.npz: 'harmed' is encrypted, or packed .*Fetch it again"):
    archive.read("harmed")


def test_a_missing_archive(tmp_path):
  with pytest.raises(FileNotFoundError, match="No file at .*a.npz; fetch it again"):
    ArrayArchive(tmp_path / "a.npz")
