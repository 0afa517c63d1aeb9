"""PyTorch's zip files against PyTorch, and hostile ones."""

import collections
import io
import pathlib
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from d4s_jax.formats.torch_tensors import Unread, open_tensors, read_tensors


def test_everything_that_torch_saves_of_tensors(tmp_path):
  generator = torch.Generator().manual_seed(0)
  stored = {
    "float": torch.rand(4, 3, generator=generator),
    "half": torch.rand(5, generator=generator).half(),
    "bytes": torch.randint(256, (2, 3, 4), generator=generator, dtype=torch.uint8),
    "flags": torch.rand(6, generator=generator) > 0.5,
    "long": torch.arange(3),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "rows of a larger one": torch.arange(20.0).reshape(5, 4)[1:3],
    "list": [torch.ones(2), "text", 3, None],
    "ordered": collections.OrderedDict(x=torch.zeros(1)),
  }
  torch.save(stored, tmp_path / "a.pth")
  found = read_tensors(tmp_path / "a.pth")
  assert list(found) == list(stored)
  for name, value in stored.items():
    if isinstance(value, torch.Tensor):
      assert found[name].dtype == value.numpy().dtype and found[name].shape == value.shape
      np.testing.assert_array_equal(found[name], value.numpy())
  assert found["list"][1:] == ["text", 3, None]


def test_tensors_are_read_one_by_one_from_an_open_file(tmp_path):
  path = tmp_path / "a.pth"
  torch.save([torch.arange(4.0), {"x": torch.ones(2, 3, dtype=torch.int64)}], path)
  with zipfile.ZipFile(path) as archive:
    entry = archive.getinfo("a/data/0")
  content = bytearray(path.read_bytes())
  start = content.index(np.arange(4, dtype=np.float32).tobytes(), entry.header_offset)
  content[start + 5] ^= 1
  path.write_bytes(content)
  with open_tensors(path) as (saved, read):
    assert isinstance(saved[0], Unread) and saved[0].shape == (4,) and saved[0].dtype == np.float32
    np.testing.assert_array_equal(read(saved[1]["x"]), np.ones((2, 3), np.int64))
    with pytest.raises(ValueError, match="a.pth cannot be read as tensors .*Bad CRC"):
      read(saved[0])


class Touch:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_nothing_is_run(tmp_path):
  torch.save({"x": torch.zeros(1), "bad": Touch(tmp_path / "touched")}, tmp_path / "a.pth")
  with pytest.raises(ValueError, match="it asks for __builtin__.getattr, which is no part of a te"):
    read_tensors(tmp_path / "a.pth")
  assert not (tmp_path / "touched").exists()
  # Protocol 4 can name what is within a module's attribute.
  for name in ("torch._utils _rebuild_tensor_v2.__globals__", "torch serialization.os.system"):
    module, attribute = name.split()
    script = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    script += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93."
    _zip(tmp_path / "b.pth", script)
    with pytest.raises(ValueError, match="it asks for torch"):
      read_tensors(tmp_path / "b.pth")


def _stored(number):
  """The bytes of a number in a pickle."""
  return number.to_bytes(4, "little")


_SHAPE = b"(" + b"K\x01" * 100_000 + b"t"
BOMBS = {
  # Twelve bytes that took 2 GiB of Python's unpickler, which keeps a list of that length.
  "far place": (b"\x80\x02}r" + _stored(2**27) + b".", None),
  "long text": (b"\x80\x02X" + _stored(2**31 - 1) + b"abc.", "expected 2147483647 bytes"),
  "long bytes": (b"\x80\x04\x8e" + _stored(0) + _stored(2**20) + b"abc.", "expected 45035996"),
  "frame": (b"\x80\x04\x95" + _stored(0) + _stored(2**20) + b"N.", None),
  "many axes": (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00" + _SHAPE + _SHAPE + b"tR.",
    "at most 16 axes",
  ),
  "many steps": (b"\x80\x02" + b"}0" * 600_000 + b".", "an instruction POP"),
  "many things": (b"\x80\x02" + b"}" * 500_000 + b".", "more than 400000 instructions"),
  # Sixty tuples of two, each in the next: the hash looks at all 2^60.
  "deep key": (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.", "a key of type tuple"),
  "deep entry": (b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"Q.", "cannot be read"),
  "call of a name": (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of torch.FloatStorage"),
  "state of a tensor": (b"\x80\x02])b.", "a list in the place of a OrderedDict"),
  "code of extensions": (b"\x80\x02\x82\x01.", "an instruction EXT1"),
}


@pytest.mark.parametrize(("script", "message"), BOMBS.values(), ids=BOMBS)
def test_claims_cost_nothing(script, message, tmp_path):
  _zip(tmp_path / "a.pth", script)
  tracemalloc.start()
  try:
    if message:
      with pytest.raises(ValueError, match=f"a.pth cannot be read.*{message}|{message}"):
        read_tensors(tmp_path / "a.pth")
    else:
      read_tensors(tmp_path / "a.pth")
    # As much as half a million small things take.
    assert tracemalloc.get_traced_memory()[1] < 100e6
  finally:
    tracemalloc.stop()


def test_nothing_is_unpickled(tmp_path, monkeypatch):
  model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
  torch.save(model.state_dict(), tmp_path / "a.pth")
  for name in ("load", "loads", "Unpickler"):
    monkeypatch.delattr(pickle, name)
  found = read_tensors(tmp_path / "a.pth")
  for name, value in model.state_dict().items():
    np.testing.assert_array_equal(found[name], value.numpy())


def _zip(path, script, **entries):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", script)
    for name, content in entries.items():
      archive.writestr(name, content)


class _Pickler(pickle.Pickler):
  """As torch.save writes a tensor, with whatever it is told."""

  def persistent_id(self, obj):
    return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None


def _tensor(shape, strides, count, key="0", offset=0):
  class Fake:
    def __reduce__(self):
      storage = ("storage", torch.FloatStorage, key, "cpu", count)
      hooks = collections.OrderedDict()
      arguments = (storage, offset, shape, strides, False, hooks)
      return torch._utils._rebuild_tensor_v2, arguments

  out = io.BytesIO()
  _Pickler(out, 2).dump({"x": Fake()})
  return out.getvalue()


@pytest.mark.parametrize(
  ("tensor", "message"),
  [
    ({"shape": (4,), "strides": (1,), "count": 9}, "storage 0 has 4 numbers and claims another"),
    ({"shape": (9,), "strides": (1,), "count": 4}, "beyond its 4 numbers"),
    ({"shape": (4,), "strides": (1,), "count": 4, "offset": 1}, "beyond its 4 numbers"),
    ({"shape": (2, 2), "strides": (1, 2), "count": 4}, "with strides"),
    ({"shape": (2**39, 2**39), "strides": (2**39, 1), "count": 4}, "beyond its 4 numbers"),
    ({"shape": (-4,), "strides": (1,), "count": 4}, "a tensor without numbers"),
    ({"shape": (4,), "strides": (1,), "count": 4, "key": "../../x"}, "an entry"),
    ({"shape": (4,), "strides": (1,), "count": 4, "key": "7"}, "no item named"),
  ],
)
def test_tensors_that_lie(tmp_path, tensor, message):
  numbers = {"archive/data/0": np.zeros(4, np.float32).tobytes()}
  _zip(tmp_path / "a.pth", _tensor((4,), (1,), 4), **numbers)
  assert read_tensors(tmp_path / "a.pth")["x"].shape == (4,)
  _zip(tmp_path / "a.pth", _tensor(**tensor), **numbers)
  with pytest.raises(ValueError, match=f"a.pth cannot be read.*{message}"):
    read_tensors(tmp_path / "a.pth")


def test_bombs_and_damaged_files(tmp_path):
  path = tmp_path / "a.pth"
  _zip(path, b"\x80\x02N." + b"\0" * 40_000_000)
  with pytest.raises(ValueError, match="its structure takes more than"):
    read_tensors(path)
  torch.save({"x": torch.rand(1000)}, path)
  whole = path.read_bytes()
  for content in (whole[: len(whole) // 2], b"", b"hello", whole[:500] + whole[900:]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.pth cannot be read as tensors.*Fetch it again"):
      read_tensors(path)
  torch.save({"x": torch.rand(3)}, path, _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match="a.pth cannot be read as tensors"):
    read_tensors(path)
  with pytest.raises(FileNotFoundError, match="No file at .*none.pth"):
    read_tensors(tmp_path / "none.pth")


@pytest.mark.parametrize(
  ("script", "message"),
  [
    (b"\x80\x02t.", "pop from empty list"),
    (b"\x80\x02u.", "pop from empty list"),
    (b"\x80\x02.", "pop from empty list"),
    (b"\x80\x02h\x05.", r"\(5\)"),
    (b"\x80\x02}]s.", "list index out of range"),
    (b"\x80\x02K\x01Q.", "an entry that is no storage"),
    (b"\x80\x02(K\x01K\x01K\x01K\x01K\x01tQ.", "an entry that is no storage"),
    (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "_rebuild_tensor_v2 with 0 arguments"),
    (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with 1 arguments"),
    (b"\x80\x02K\x01)R.", "a call of what can't be called"),
    (b"\x80\x02c\n\n.", "it asks for ., which"),
    (b"\x80\x02X\x01\x00\x00\x00\xff.", "codec can't decode"),
  ],
)
def test_structures_that_ask_for_what_is_not_there(script, message, tmp_path):
  _zip(tmp_path / "a.pth", script)
  with pytest.raises(ValueError, match=f"a.pth cannot be read.*{message}"):
    read_tensors(tmp_path / "a.pth")


def test_numbers_of_no_tensor_are_refused(tmp_path):
  path, numbers = tmp_path / "a.pth", torch.ones(2)
  # One of its own, one that a tensor uses as well.
  for bare in (torch.FloatStorage([1.0, 2.0]), numbers.storage()):
    torch.save({"a": [(numbers, bare)]}, path)
    with pytest.raises(ValueError, match="a.pth cannot be read.*1 storages that are of no tensor"):
      read_tensors(path)


def test_encrypted_and_oddly_packed_archives(tmp_path):
  path = tmp_path / "a.pth"
  for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
    with zipfile.ZipFile(path, "w", method) as archive:
      archive.writestr("archive/data.pkl", b"\x80\x02N.")
    with pytest.raises(ValueError, match="encrypted, or packed in a way"):
      read_tensors(path)
  _zip(path, b"\x80\x02N.")
  content = bytearray(path.read_bytes())
  # The flags in the central directory.
  content[content.index(b"PK\x01\x02") + 8] |= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match="encrypted, or packed in a way"):
    read_tensors(path)


def test_random_damage_is_told_as_damage(tmp_path):
  path = tmp_path / "a.pth"
  torch.save({"x": torch.rand(8), "y": [torch.ones(2, 3), 1, "t"]}, path)
  whole, random = path.read_bytes(), np.random.default_rng(0)
  for _ in range(300):
    content = bytearray(whole)
    for place in random.integers(len(content), size=random.integers(1, 9)):
      content[place] = random.integers(256)
    path.write_bytes(content)
    try:
      read_tensors(path)
    except ValueError as error:
      assert "a.pth" in str(error)


@pytest.mark.parametrize("fault", [MemoryError, AttributeError, TypeError])
def test_what_damage_does_not_raise_is_not_called_damage(fault, tmp_path, monkeypatch):
  torch.save({"x": torch.rand(3)}, tmp_path / "a.pth")

  def broken(*args):
    raise fault("ours")

  monkeypatch.setattr(np, "frombuffer", broken)
  with pytest.raises(fault, match="ours"):
    read_tensors(tmp_path / "a.pth")
