"""The colours of Gaussians in files of splats, ours or others': all that a mark needs."""

import base64
import io
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load

from d4s_jax.formats import checked
from d4s_jax.geometry import harmonics

_MOST_BYTES = 2**31
_MOST_HEADER = 2**16
_MOST_GAUSSIANS = 50_000_000
_PLY_TYPES = {
  **{"char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4"},
  **{"int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4"},
  **{"uint32": "<u4", "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8"},
}
# Gaussians that share their bounds in a compressed PLY.
_CHUNK = 256
_SPZ_HEADER = 16
# Bytes of a position, by version.
_SPZ_POSITION = {1: 6, 2: 9, 3: 9}
# In streams of their own.
_SPZ_STREAMED = 4
_COEFFICIENT = "KHR_gaussian_splatting:SH_DEGREE_0_COEF_0"
_FLOAT = 5126
_SOG_TABLE = 256
_MOST_MEMBER = 2**28
_PAGE = (b"description", b"arrays")


# What a damaged or hostile file makes its reader raise.
_BROKEN = (
  *(ValueError, LookupError, TypeError, OSError, NotImplementedError, RuntimeError),
  *(struct.error, zlib.error, zipfile.BadZipFile, SafetensorError, Image.DecompressionBombError),
)


class NoGaussians(ValueError):
  """A file that is sound, but of something else than Gaussians, colours or both."""


def read_colors(path: str | os.PathLike) -> Float[np.ndarray, "n 3"]:
  """Colours of degree 0 of all Gaussians, in [0, 1] where they can be shown.

  Raises:
    FileNotFoundError: there is no such file.
    NoGaussians: it is a mesh.
    ValueError: the suffix is of no format of splats, or the file is damaged.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() not in READERS:
    raise ValueError(f"{path} is no file of splats; expected {', '.join(READERS)}.")
  contents = checked.read_bytes(path, _MOST_BYTES, "splats")
  try:
    colors = READERS[path.suffix.lower()](contents)
  except NoGaussians as error:
    raise NoGaussians(f"{path} can't be read as {path.suffix} of splats: {error}.") from error
  except _BROKEN as error:
    raise ValueError(f"{path} can't be read as {path.suffix} of splats: {error}.") from error
  return colors[np.isfinite(colors).all(axis=1)].astype(np.float32)


def _ply(contents: bytes) -> np.ndarray:
  header, found, _ = contents[:_MOST_HEADER].partition(b"end_header\n")
  lines = [line.split() for line in header.decode("ascii").splitlines()]
  if not found or lines[:1] != [["ply"]]:
    raise ValueError("it has no header of PLY")
  if ["format", "binary_little_endian", "1.0"] not in lines:
    raise ValueError("expected binary_little_endian")
  elements: dict[str, tuple[int, list[tuple[str, str]]]] = {}
  for line in lines:
    if line[:1] == ["element"]:
      elements[line[1]] = int(line[2]), []
    elif line[:2] == ["property", "list"]:
      raise NoGaussians("it is a mesh, which has no Gaussians")
    elif line[:1] == ["property"]:
      list(elements.values())[-1][1].append((line[2], _PLY_TYPES[line[1]]))
  tables, start = {}, len(header) + len(found)
  for name, (count, fields) in elements.items():
    kind = np.dtype(fields)
    if not 0 <= count <= _MOST_GAUSSIANS:
      raise ValueError(f"{count} of {name}")
    tables[name] = np.frombuffer(contents, kind, count, start)
    start += count * kind.itemsize
  vertices = tables["vertex"]
  if "packed_color" not in (vertices.dtype.names or ()):
    coefficients = np.stack([vertices[f"f_dc_{i}"] for i in range(3)], axis=1)
    return 0.5 + harmonics.C0 * coefficients.astype(np.float64)
  packed = np.asarray(vertices["packed_color"], np.uint32)
  share = np.stack([(packed >> shift) & 255 for shift in (24, 16, 8)], axis=1) / 255
  chunks = tables["chunk"]
  if "min_r" not in (chunks.dtype.names or ()):
    return share
  low, high = (np.stack([chunks[f"{x}_{c}"] for c in "rgb"], axis=1) for x in ("min", "max"))
  index = np.arange(len(share)) // _CHUNK
  return low[index] + share * (high - low)[index]


def _splat(contents: bytes) -> np.ndarray:
  if not contents or len(contents) % 32:
    raise ValueError(f"{len(contents)} bytes are no multiple of 32")
  return np.frombuffer(contents, "u1").reshape(-1, 32)[:, 24:27] / 255


def _spz(contents: bytes) -> np.ndarray:
  if contents[:4] == b"NGSP":
    return _spz_color(_spz_stream(contents))
  reader = zlib.decompressobj(wbits=31)
  header = reader.decompress(contents, _SPZ_HEADER)
  magic, version, count, _ = struct.unpack("<4sIII", header)
  if magic != b"NGSP" or version not in _SPZ_POSITION:
    raise ValueError(f"version {version}; expected NGSP of versions 1 to 4")
  if not 0 < count <= _MOST_GAUSSIANS:
    raise ValueError(f"{count} Gaussians")
  start = count * (_SPZ_POSITION[version] + 1)
  body = reader.decompress(reader.unconsumed_tail, start + 3 * count)
  return _spz_color(np.frombuffer(body, "u1", 3 * count, start))


def _spz_color(levels: np.ndarray) -> np.ndarray:
  return 0.5 + harmonics.C0 * (levels.reshape(-1, 3) / 255 - 0.5) / 0.15


def _spz_stream(contents: bytes) -> np.ndarray:
  """Of version 4, the levels: a header, sizes, then positions, opacities, colours and the rest."""
  try:
    from backports import zstd
  except ImportError as error:  # other packages share the name backports
    raise ValueError("version 4 needs backports.zstd: pip install 'd4s_jax[spz]'") from error
  _, version, count, _, _, _, streams, table = struct.unpack_from("<4sIIBBBBI", contents)
  if version != _SPZ_STREAMED:
    raise ValueError(f"version {version}; expected NGSP of versions 1 to 4")
  if not 0 < count <= _MOST_GAUSSIANS:
    raise ValueError(f"{count} Gaussians")
  # Of each stream its size, and that of what is in it.
  positions, _, opacities, _, colors, _ = struct.unpack_from("<6Q", contents, table)
  start = table + 16 * streams + positions + opacities
  try:
    packed = contents[start : start + colors]
    body = zstd.ZstdDecompressor().decompress(packed, max_length=3 * count)
  except zstd.ZstdError as error:
    raise ValueError(str(error)) from error
  return np.frombuffer(body, "u1", 3 * count)


def _glb(contents: bytes) -> np.ndarray:
  magic, version, _, size, kind = struct.unpack_from("<4sIII4s", contents)
  if magic != b"glTF" or version != 2 or kind != b"JSON":
    raise ValueError("expected binary glTF 2")
  document = checked.parse(contents[20 : 20 + size], "its JSON")
  colors = []
  for mesh in document["meshes"]:
    for primitive in mesh["primitives"]:
      if _COEFFICIENT not in primitive["attributes"]:
        continue
      accessor = document["accessors"][primitive["attributes"][_COEFFICIENT]]
      view = document["bufferViews"][accessor["bufferView"]]
      if accessor["componentType"] != _FLOAT or accessor["type"] != "VEC3" or "byteStride" in view:
        raise ValueError(f"expected {_COEFFICIENT} as packed vectors of floats")
      offset = 20 + size + 8 + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
      count = checked.integer(accessor["count"], "count", 1, _MOST_GAUSSIANS)
      colors.append(np.frombuffer(contents, "<f4", 3 * count, offset).reshape(-1, 3))
  if not colors:
    raise NoGaussians(f"it has no {_COEFFICIENT}: a mesh has no Gaussians")
  return 0.5 + harmonics.C0 * np.concatenate(colors).astype(np.float64)


def _sog(contents: bytes) -> np.ndarray:
  with zipfile.ZipFile(io.BytesIO(contents)) as archive:
    description = checked.parse(_member(archive, "meta.json"), "meta.json")
    count = checked.integer(description["count"], "count", 1, _MOST_GAUSSIANS)
    part = description["sh0"]
    table = checked.numbers(part["codebook"], "codebook", (_SOG_TABLE,))
    picture = Image.open(io.BytesIO(_member(archive, part["files"][0])), formats=["WEBP"])
  if picture.width * picture.height > _MOST_GAUSSIANS:
    raise ValueError(f"a picture of {picture.width} x {picture.height}")
  levels = np.asarray(picture.convert("RGBA")).reshape(-1, 4)[:count, :3]
  return 0.5 + harmonics.C0 * table[levels]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
  with archive.open(name) as file:
    found = file.read(_MOST_MEMBER + 1)
  if len(found) > _MOST_MEMBER:
    raise ValueError(f"{name!r:.40} is larger than {_MOST_MEMBER} bytes")
  return found


def _html(contents: bytes) -> np.ndarray:
  """Of the page that `formats.page` writes: its description, and arrays in gzip and base 64."""
  found = [re.search(rb'id="%s">([^<]*)</script>' % name, contents) for name in _PAGE]
  if None in found:
    raise ValueError("it is no page of a scene")
  description, data = (match[1] for match in found if match)
  told = checked.parse(description, "its description")
  kind, start, count = told["arrays"]["harmonics"]
  start = checked.integer(start, "start", 0, _MOST_MEMBER)
  count = checked.integer(count, "count", 3, 3 * _MOST_GAUSSIANS)
  rows = checked.integer(told["count"], "count", 1, count)
  if kind != "f4" or count % (3 * rows):
    raise ValueError(f"{count} harmonics of {rows} Gaussians")
  reader = zlib.decompressobj(wbits=31)
  body = reader.decompress(base64.b64decode(data), start + 4 * count)
  harmonic = np.frombuffer(body, "<f4", count, start).reshape(rows, -1, 3)
  return 0.5 + harmonics.C0 * harmonic[:, 0].astype(np.float64)


def _safetensors(contents: bytes) -> np.ndarray:
  found = load(contents)["harmonics"]
  if found.ndim != 3 or found.shape[2] != 3 or not found.shape[1]:
    raise ValueError(f"harmonics of shape {found.shape}")
  return 0.5 + harmonics.C0 * found[:, 0].astype(np.float64)


# By suffix.
READERS: dict[str, Callable[[bytes], np.ndarray]] = {
  ".ply": _ply,
  ".splat": _splat,
  ".spz": _spz,
  ".glb": _glb,
  ".sog": _sog,
  ".safetensors": _safetensors,
  ".html": _html,
}
