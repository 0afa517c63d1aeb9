"""PyTorch's zip files against PyTorch, and hostile ones."""

import collections
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch

from d4s_jax.formats.torch_tensors import read_tensors


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
    ({"shape": (4,), "strides": (1,), "count": 9}, "storage 0 has 4 numbers and claims 9"),
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
