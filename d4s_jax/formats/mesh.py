"""Coloured triangle meshes as PLY, OBJ and binary glTF.

PLY and OBJ keep our axes (x right, y down, z forward); glTF has y up and z towards the viewer. PLY
has 8-bit colours, glTF linear ones in float32; OBJ has colours behind the positions, as MeshLab,
Blender and Open3D read them.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

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
  """Writes a Wavefront OBJ, six digits."""
  numbers = np.concatenate([mesh.vertices, mesh.colours], axis=1)
  corners = np.repeat(mesh.faces + 1, 2, axis=1)
  text = "# d4s_jax: x right, y down, z forward\n"
  text += _rows("v %.6g %.6g %.6g %.4f %.4f %.4f\n", numbers)
  text += _rows("vn %.4f %.4f %.4f\n", mesh.normals)
  text += _rows("f %d//%d %d//%d %d//%d\n", corners)
  write_bytes(path, text.encode("ascii"))


def _rows(row: str, numbers: np.ndarray) -> str:
  """A line for each row, in one piece: one after another takes three times as long."""
  return row * len(numbers) % tuple(numbers.ravel().tolist())


# By suffix.
WRITERS: dict[str, Callable[[str | os.PathLike, Mesh], None]] = {
  ".ply": write_ply,
  ".glb": write_glb,
  ".obj": write_obj,
}
