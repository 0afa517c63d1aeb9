"""Maps of numbers on pixels: 16-bit PNG, OpenEXR, NumPy and HDF5 files, as datasets keep depth.

What the numbers mean, and which of them mean nothing, is the caller's business. Sizes are checked
before anything is decoded; no file can run code or name another file.
"""

import os
import pathlib
import warnings

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from d4s_jax.formats import images
from d4s_jax.formats.arrays import check_header

_EXTRA = "install it with: pip install -e '.[data]'"


def read_levels(path: str | os.PathLike) -> Shaped[np.ndarray, "h w"]:
  """The levels of a grey (or palette) PNG as they are stored, uint8 or uint16.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, of another kind, or has more than `images.MAX_PIXELS` pixels.
  """
  path = _present(path)
  try:
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    with quiet, Image.open(path, formats=["PNG"]) as image:
      _check_size(path, image.height, image.width)
      mode, levels = image.mode, np.asarray(image)
  except images.BROKEN as error:
    raise _damaged(path, error, "grey PNG") from error
  if mode.startswith("I"):
    return levels.astype(np.uint16)
  if mode not in ("L", "P"):
    raise ValueError(f"{path} has pixels of mode {mode}; expected a grey PNG of 8 or 16 bits.")
  return levels


def read_exr(path: str | os.PathLike) -> Float[np.ndarray, "h w"]:
  """The first of the channels R, Y, Z, V of an OpenEXR file, or its only one, as stored.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, has no such channel, or too many pixels; or OpenEXR isn't installed.
  """
  path = _present(path)
  try:
    import OpenEXR
  except ImportError as error:
    raise ValueError(f"Reading {path} needs the package OpenEXR; {_EXTRA}") from error
  try:
    with OpenEXR.File(str(path), header_only=True) as file:
      (left, top), (right, bottom) = np.asarray(file.header()["dataWindow"], np.int64)
      # All of them are unpacked.
      channels = sum(len(part.header["channels"]) for part in file.parts)
    _check_size(path, int(bottom - top) + 1, int(right - left) + 1, channels)
    # A damaged file leaves no parts, and lines on the error stream from the library itself.
    with OpenEXR.File(str(path), separate_channels=True, num_threads=0) as file:
      # Copies: the file's own go when it is closed.
      channels = {name: np.array(x.pixels) for name, x in file.channels().items()}
  except (RuntimeError, ValueError, KeyError, TypeError) as error:
    raise _damaged(path, error, "OpenEXR file") from error
  for name in ("R", "Y", "Z", "V", *channels):
    if name in channels and channels[name].ndim == 2:
      return channels[name]
  raise ValueError(f"{path} has the channels {sorted(channels)}; expected R or another of numbers.")


def read_npy(path: str | os.PathLike) -> Shaped[np.ndarray, "h w"]:
  """A map in NumPy's own format.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, no map, too large, or holds Python objects.
  """
  path = _present(path)
  size = path.stat().st_size
  with path.open("rb") as file:
    spec = check_header(file, str(path), ndim=2)
    _check_size(path, *spec.shape)
    if size - file.tell() != spec.nbytes:
      raise ValueError(
        f"{path} has {size - file.tell()} bytes of numbers, and its header claims {spec.nbytes};"
        " it is truncated or damaged. Fetch it again."
      )
    values = np.fromfile(file, spec.dtype)
  return values.reshape(spec.shape, order="F" if spec.fortran else "C")


def read_hdf5(path: str | os.PathLike, name: str, step: int = 1) -> Shaped[np.ndarray, "h w"]:
  """Every `step`-th row and column of a map in an HDF5 file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, too large, or has no such map with its numbers inside it; or h5py
      isn't installed.
  """
  path = _present(path)
  try:
    import h5py
  except ImportError as error:
    raise ValueError(f"Reading {path} needs the package h5py; {_EXTRA}") from error
  try:
    with h5py.File(path, "r") as file:
      # A link may lead to any file of the machine, and so may numbers kept elsewhere.
      found = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
      if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"no map {name!r} in it")
      if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise ValueError(f"{name!r} has shape {found.shape} and type {found.dtype}")
      _check_size(path, *found.shape)
      return np.asarray(found[()])[::step, ::step]
  except (OSError, RuntimeError, ValueError, KeyError) as error:
    raise _damaged(path, error, f"HDF5 file with the map {name!r}") from error


def _present(path: str | os.PathLike) -> pathlib.Path:
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"No file at {path}; fetch it again.")
  return path


def _check_size(path: pathlib.Path, height: int, width: int, channels: int = 1) -> None:
  if not (height > 0 and width > 0 and height * width * channels <= images.MAX_PIXELS):
    each = f" of {channels} numbers" if channels > 1 else ""
    raise ValueError(
      f"{path} claims {width} x {height} pixels{each}; expected 1 to {images.MAX_PIXELS} in all."
    )


def _damaged(path: pathlib.Path, error: Exception, expected: str) -> ValueError:
  text = " ".join(str(error).split())
  return ValueError(
    f"{path} cannot be read ({text}); expected an intact {expected}. Fetch it again."
  )
