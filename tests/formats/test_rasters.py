"""Maps of numbers: as libraries write them, and damaged."""

import io
import pathlib

import h5py
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from d4s_jax.formats import rasters

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_are_kept_bit_for_bit(tmp_path, dtype):
  values = RNG.integers(np.iinfo(dtype).max + 1, size=(5, 7)).astype(dtype)
  values[0, :2] = 0, np.iinfo(dtype).max
  Image.fromarray(values).save(tmp_path / "a.png")
  found = rasters.read_levels(tmp_path / "a.png")
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, values)


def test_colours_are_no_levels(tmp_path):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  with pytest.raises(ValueError, match="a.png has pixels of mode RGB; expected a grey PNG"):
    rasters.read_levels(tmp_path / "a.png")


def _exr(path, channels, **header):
  header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **header}
  with OpenEXR.File(header, channels) as file:
    file.write(str(path))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["RGB", "Y", "V"])
def test_exr(tmp_path, dtype, name):
  values = (RNG.random((5, 7)) * 60000).astype(dtype)
  channels = {name: np.stack([values, 0 * values, 0 * values], -1) if name == "RGB" else values}
  _exr(tmp_path / "ä.exr", channels)
  found = rasters.read_exr(tmp_path / "ä.exr")
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy(tmp_path, order, dtype):
  values = np.asarray(RNG.random((5, 7)), dtype, order=order)
  np.save(tmp_path / "a.npy", values)
  np.testing.assert_array_equal(rasters.read_npy(tmp_path / "a.npy"), values)


def test_hdf5(tmp_path):
  values = RNG.random((6, 8)).astype(np.float32)
  with h5py.File(tmp_path / "a.dsp5", "w") as file:
    file.create_dataset("disparity", data=values, compression="gzip", compression_opts=5)
  np.testing.assert_array_equal(
    rasters.read_hdf5(tmp_path / "a.dsp5", "disparity", step=2), values[::2, ::2]
  )


def test_hdf5_does_not_reach_for_other_files(tmp_path):
  with h5py.File(tmp_path / "secret.h5", "w") as file:
    file["disparity"] = np.ones((4, 4))
  (tmp_path / "raw").write_bytes(b"\0" * 64)
  with h5py.File(tmp_path / "link.h5", "w") as file:
    file["disparity"] = h5py.ExternalLink(tmp_path / "secret.h5", "disparity")
  with h5py.File(tmp_path / "stored.h5", "w") as file:
    file.create_dataset("disparity", (4, 4), "f4", external=[(tmp_path / "raw", 0, 64)])
  layout = h5py.VirtualLayout((4, 4), "f8")
  layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "disparity", (4, 4))
  with h5py.File(tmp_path / "virtual.h5", "w") as file:
    file.create_virtual_dataset("disparity", layout)
  for name in ("link", "stored", "virtual"):
    with pytest.raises(ValueError, match=f"{name}.h5 cannot be read .no map 'disparity' in it"):
      rasters.read_hdf5(tmp_path / f"{name}.h5", "disparity")


READERS = {
  "a.png": rasters.read_levels,
  "a.exr": rasters.read_exr,
  "a.npy": rasters.read_npy,
  "a.h5": lambda path: rasters.read_hdf5(path, "disparity"),
}


def _write(folder: pathlib.Path) -> None:
  values = (RNG.random((64, 64)) * 60000).astype(np.float32)
  Image.fromarray(values.astype(np.uint16)).save(folder / "a.png")
  _exr(folder / "a.exr", {"Y": values})
  np.save(folder / "a.npy", values)
  with h5py.File(folder / "a.h5", "w") as file:
    file.create_dataset("disparity", data=values, compression="gzip")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_files_are_named_and_missing_ones_too(tmp_path, name, damage):
  _write(tmp_path)
  path = tmp_path / name
  READERS[name](path)
  content = path.read_bytes()
  path.write_bytes(
    {"cut": content[: len(content) * 2 // 3], "text": b"hello", "empty": b""}[damage]
  )
  with pytest.raises(ValueError, match=f"{name} .*[Ff]etch it again|{name} is no array"):
    READERS[name](path)
  path.unlink()
  with pytest.raises(FileNotFoundError, match=f"No file at .*{name}; fetch it again"):
    READERS[name](path)


def test_sizes_are_checked_first(tmp_path):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)}
  )
  (tmp_path / "a.npy").write_bytes(header.getvalue())
  with h5py.File(tmp_path / "a.h5", "w") as file:
    file.create_dataset("disparity", (2**20, 2**20), "f4", chunks=(64, 64), compression="gzip")
  _exr(tmp_path / "b.exr", {"Y": np.zeros((4, 4), np.float32)})
  content = (tmp_path / "b.exr").read_bytes()
  place = content.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
  window = np.array([0, 0, 2**20, 2**20], "<i4").tobytes()
  (tmp_path / "a.exr").write_bytes(content[:place] + window + content[place + 16 :])
  # Many maps in one file, each of a size that would do.
  zeros = np.zeros((2000, 2000), np.float16)
  _exr(tmp_path / "many.exr", {f"map {number:02d}": zeros for number in range(21)})
  with pytest.raises(ValueError, match="many.exr claims 2000 x 2000 pixels of 21 numbers; expect"):
    rasters.read_exr(tmp_path / "many.exr")
  for name in ("a.npy", "a.h5", "a.exr"):
    with pytest.raises(ValueError, match=f"{name}.*(claims|cannot be read)"):
      READERS[name](tmp_path / name)
