"""Safetensors in bits: any type, and no trust in what a header says."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from d4s_jax.formats.shards import Shards, write_shards
from d4s_jax.formats.tensors import Spec, TensorFile, write

ARRAYS = {
  "half": np.arange(3, dtype=np.float16),
  "wide": np.arange(6.0).reshape(2, 3),
  "single": np.array(7, np.float32),
  "none": np.zeros((0, 4), np.float32),
  "bytes": np.arange(5, dtype=np.uint8),
}
TYPES = {"half": "F16", "wide": "F64", "single": "F32", "none": "F32", "bytes": "U8"}
SPECS = {name: Spec(TYPES[name], array.shape) for name, array in ARRAYS.items()}


def bits(array):
  return array.view(f"u{array.itemsize}")


def test_reads_what_the_library_writes(tmp_path):
  save_file(ARRAYS, tmp_path / "a.safetensors", {"format": "np"})
  file = TensorFile(tmp_path / "a.safetensors")
  assert file.specs == SPECS and file.metadata == {"format": "np"}
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(file.read(name), bits(array))
  np.testing.assert_array_equal(file.read("wide", 1), bits(ARRAYS["wide"])[1])


def test_the_library_reads_what_is_written_in_pieces(tmp_path):
  rows = {name: [bits(x)] if x.ndim < 2 else list(bits(x)) for name, x in ARRAYS.items()}
  write(tmp_path / "a.safetensors", SPECS, rows.__getitem__, {"format": "pt"})
  found = load_file(tmp_path / "a.safetensors")
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("limit, files", [(1, 5), (10**6, 1)])
def test_shards(tmp_path, limit, files):
  write_shards(tmp_path, "model", SPECS, lambda name: [bits(ARRAYS[name])], {}, limit)
  assert len(list(tmp_path.glob("*.safetensors"))) == files
  found = Shards(tmp_path, "model")
  assert found.specs == SPECS
  np.testing.assert_array_equal(found.read("wide"), bits(ARRAYS["wide"]))


def lie(path, change):
  """A file of one tensor of 8 bytes whose header is changed."""
  header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
  text = change if isinstance(change, bytes) else json.dumps(header | change).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))


LIES = {
  "huge shape": ({"x": {"dtype": "F32", "shape": [2**61, 8], "data_offsets": [0, 8]}}, "shape"),
  "negative shape": ({"x": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}, "shape"),
  "no integer": ({"x": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, "shape"),
  "many axes": ({"x": {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 8]}}, "shape"),
  "beyond the end": ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "8 bytes of"),
  "backwards": ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "claims bytes"),
  "overlap": ({"y": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "claims bytes 0 to 8"),
  "hole": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "claims bytes 4 to 8"),
  "unclaimed": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "claims 4"),
  "type": ({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}, "type 'F4'"),
  "type of a type": ({"x": {"dtype": ["F4"], "shape": [2], "data_offsets": [0, 8]}}, "has type"),
  "extra field": (
    {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "code": 1}},
    "unknown 'code'",
  ),
  "metadata": ({"__metadata__": {"format": 1}}, "__metadata__; expected an object of texts"),
  "no object": (b"[]", "no object"),
  "no JSON": (b"{", "not valid JSON"),
  "twice": (b'{"x": {}, "x": {}}', "a key occurs twice"),
  "deep": (b"[" * 200_000, "nested too deeply|not valid JSON"),
}


@pytest.mark.parametrize("change, message", LIES.values(), ids=LIES)
def test_lies_of_the_header_are_refused(change, message, tmp_path):
  lie(tmp_path / "a.safetensors", change)
  with pytest.raises(ValueError, match=message):
    TensorFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize("contents", [b"", b"1234567", (2**63).to_bytes(8, "little") + b"{}"])
def test_no_safetensors_file_is_refused(contents, tmp_path):
  (tmp_path / "a.safetensors").write_bytes(contents)
  with pytest.raises(ValueError, match="no safetensors file, or truncated"):
    TensorFile(tmp_path / "a.safetensors")


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path):
  save_file(ARRAYS, tmp_path / "a.safetensors")
  file = TensorFile(tmp_path / "a.safetensors")
  (tmp_path / "a.safetensors").write_bytes(b"")
  with pytest.raises(ValueError, match="ended inside 'wide'"):
    file.read("wide")


@hypothesis.given(st.data())
def test_damage_is_a_value_error_or_does_no_harm(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
  save_file(ARRAYS, path)
  contents = bytearray(path.read_bytes())
  for place, byte in data.draw(
    st.lists(st.tuples(st.integers(0, len(contents) - 1), st.integers(0, 255)), max_size=4)
  ):
    contents[place] = byte
  path.write_bytes(contents)
  try:
    file = TensorFile(path)
  except ValueError:
    return
  for name, spec in file.specs.items():
    assert file.read(name).nbytes == spec.nbytes
