"""Coloured triangle meshes as PLY, OBJ and binary glTF.

PLY and OBJ keep our axes (x right, y down, z forward); glTF has y up and z towards the viewer. PLY
has 8-bit colours, glTF linear ones in float32; OBJ has colours behind the positions, as MeshLab,
Blender and Open3D read them.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from d4s_jax.formats import gltf
from d4s_jax.formats.visible import byte, linear, write_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
  """A surface.

  Attributes:
    vertices: in world axes, metres.
    faces: three vertices each, counter-clockwise as seen from outside.
    normals: of the vertices, unit, outwards.
    colours: of the vertices, sRGB in [0, 1].
  """

  vertices: Float[np.ndarray, "n 3"]
  faces: Int[np.ndarray, "f 3"]
  normals: Float[np.ndarray, "n 3"]
  colours: Float[np.ndarray, "n 3"]


def write_ply(path: str | os.PathLike, mesh: Mesh) -> None:
  """Writes a binary PLY with normals and colours."""
  row = np.dtype([("place", "<f4", 6), ("colour", "u1", 3)])
  rows = np.zeros(len(mesh.vertices), row)
  rows["place"] = np.concatenate([mesh.vertices, mesh.normals], axis=1)
  rows["colour"] = byte(255 * mesh.colours)
  faces = np.zeros(len(mesh.faces), np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
  faces["count"], faces["corners"] = 3, mesh.faces
  header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
  header += [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")]
  header += [f"property uchar {name}" for name in ("red", "green", "blue")]
  header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
  text = "\n".join(header).encode("ascii") + b"\n"
  write_bytes(path, text + rows.tobytes() + faces.tobytes())


def write_glb(path: str | os.PathLike, mesh: Mesh) -> None:
  """Writes a binary glTF with normals and linear colours, y up."""
  turn = np.array([1, -1, -1], np.float32)
  attributes = {
    "POSITION": mesh.vertices * turn,
    "NORMAL": mesh.normals * turn,
    "COLOR_0": linear(mesh.colours),
  }
  write_bytes(path, gltf.pack(attributes, gltf.TRIANGLES, mesh.faces))


def write_obj(path: str | os.PathLike, mesh: Mesh) -> None:
  """Writes a Wavefront OBJ: positions to 10 micrometres, normals and colours to 1/10,000."""
  places, colours = _decimal(mesh.vertices, 5), _decimal(mesh.colours, 4)
  names = _decimal(np.arange(1, len(mesh.vertices) + 1)[:, None], 0)
  # The normal of a corner has the number of the vertex.
  slashes = np.full((len(names), 2), ord("/"), np.uint8)
  corners = np.concatenate([names, slashes, names[:, 1:]], axis=1)[mesh.faces]
  text = b"# d4s_jax: x right, y down, z forward\n" + _lines(b"v", places, colours)
  text += _lines(b"vn", _decimal(mesh.normals, 4))
  write_bytes(path, text + _lines(b"f", corners.reshape(len(mesh.faces), -1)))


def _decimal(numbers: Shaped[np.ndarray, "n c"], digits: int) -> UInt8[np.ndarray, "n w"]:
  """Numbers as text, each behind a blank, with so many digits behind the point; 0 pads.

  With Python's own formatting a file takes more than twice as long.
  """
  rest = np.rint(np.abs(numbers, dtype=np.float64) * 10.0**digits).astype(np.int64)
  width = max(len(str(rest.max(initial=0))), digits + 1)
  text = np.zeros((*numbers.shape, width + 3), np.uint8)
  text[..., 0] = ord(" ")
  text[..., 1] = np.where((numbers < 0) & (rest > 0), ord("-"), 0)
  for place in range(width):
    digit = rest % 10 + ord("0")
    # No zeros ahead of the number, but for the one ahead of the point.
    column = -1 - place if place < digits else -2 - place
    text[..., column] = np.where((rest > 0) | (place <= digits), digit, 0)
    rest = rest // 10
  if digits:
    text[..., -1 - digits] = ord(".")
  return text.reshape(len(numbers), -1)


def _lines(mark: bytes, *columns: UInt8[np.ndarray, "n _"]) -> bytes:
  """A line for each row, which begins with the mark."""
  count = len(columns[0])
  start, end = (np.tile(np.frombuffer(x, np.uint8), (count, 1)) for x in (mark, b"\n"))
  rows = np.concatenate([start, *columns, end], axis=1)
  return rows.tobytes().translate(None, b"\0")


# By suffix.
WRITERS: dict[str, Callable[[str | os.PathLike, Mesh], None]] = {
  ".ply": write_ply,
  ".glb": write_glb,
  ".obj": write_obj,
}
