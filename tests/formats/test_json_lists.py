import gzip
import json
import tracemalloc

import pytest

from d4s_jax.formats import json_lists
from d4s_jax.formats.json_lists import read_list

ELEMENTS = [{"name": 'a, ] " é', "numbers": [1, 2.5, -3e-7], "none": None}, [], 7, "x]", {"y": {}}]


def _write(path, text):
  with gzip.open(path, "wt", encoding="utf-8") as file:
    file.write(text)
  return path


@pytest.mark.parametrize("indent", [None, 3])
@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_elements_wherever_pieces_end(tmp_path, monkeypatch, indent, piece):
  monkeypatch.setattr(json_lists, "_PIECE", piece)
  path = _write(tmp_path / "a.jgz", json.dumps(ELEMENTS, indent=indent))
  assert list(read_list(path)) == ELEMENTS
  assert list(read_list(_write(path, " [ ] "))) == []


def test_a_long_list_takes_little_memory(tmp_path):
  path = _write(tmp_path / "a.jgz", json.dumps(ELEMENTS[:1] * 60_000))
  tracemalloc.start()
  assert sum(1 for _ in read_list(path)) == 60_000
  # The text alone has 5 million characters.
  assert tracemalloc.get_traced_memory()[1] < 7e6
  tracemalloc.stop()


def test_what_was_before_the_damage_is_read(tmp_path):
  path = _write(tmp_path / "a.jgz", json.dumps([{"n": n, "x": "y" * 50} for n in range(50_000)]))
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])
  found = []
  with pytest.raises(
    ValueError, match="a.jgz is no list in gzipped JSON, or damaged.*Fetch it aga"
  ):
    for element in read_list(path):
      found.append(element["n"])
  assert len(found) > 1000 and found == list(range(len(found)))


@pytest.mark.parametrize("text", ["{}", "", "[1, 2", "[1, nonsense]", "[" * 5000])
def test_no_lists(tmp_path, text):
  with pytest.raises(ValueError, match="a.jgz is no list"):
    list(read_list(_write(tmp_path / "a.jgz", text)))


def test_bombs(tmp_path, monkeypatch):
  monkeypatch.setattr(json_lists, "MOST_BYTES", 10_000_000)
  with pytest.raises(ValueError, match="unpacks to more than 10000000|an element of more than"):
    list(read_list(_write(tmp_path / "a.jgz", "[" + " " * 20_000_000 + "]")))
  with pytest.raises(ValueError, match="an element of more than"):
    list(read_list(_write(tmp_path / "a.jgz", '["' + "x" * 5_000_000 + '"]')))
  (tmp_path / "a.jgz").write_bytes(b"[1, 2]")
  with pytest.raises(ValueError, match="a.jgz is no list"):
    list(read_list(tmp_path / "a.jgz"))
