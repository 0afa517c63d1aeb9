"""Binary glTF of one primitive: numbers by attribute, and the faces between them if any."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

POINTS, TRIANGLES = 0, 4
_FLOAT, _UINT = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def pack(
  attributes: Mapping[str, np.ndarray],
  mode: int,
  indices: np.ndarray | None = None,
  *,
  primitive: Mapping[str, Any] | None = None,
  extensions: Sequence[str] = (),
) -> bytes:
  """The contents of a .glb.

  Args:
    attributes: name to [n c]; POSITION first, in glTF's axes (y up, z towards the viewer).
    mode: POINTS or TRIANGLES.
    indices: of triangles, [f 3].
    primitive: further fields of the primitive.
    extensions: names of those used.
  """
  views, accessors, pieces = [], [], []

  def add(array: np.ndarray, component: int, target: int) -> int:
    start = sum(map(len, pieces))
    accessor = {"bufferView": len(views), "componentType": component, "count": len(array)}
    accessors.append(accessor | {"type": _KINDS[array.shape[1]]})
    where = {"buffer": 0, "byteOffset": start, "byteLength": array.nbytes}
    views.append(where | {"target": target})
    pieces.append(np.ascontiguousarray(array).tobytes())
    return len(accessors) - 1

  places = {name: add(x.astype("<f4"), _FLOAT, _ARRAY_BUFFER) for name, x in attributes.items()}
  positions = attributes["POSITION"].astype("<f4")
  accessors[places["POSITION"]] |= {
    "min": positions.min(axis=0).tolist(),
    "max": positions.max(axis=0).tolist(),
  }
  whole: dict[str, Any] = {"mode": mode, "attributes": places, **(primitive or {})}
  if indices is not None:
    whole["indices"] = add(indices.reshape(-1, 1).astype("<u4"), _UINT, _ELEMENT_BUFFER)
  blob = b"".join(pieces)
  document = {
    "asset": {"version": "2.0", "generator": "d4s_jax"},
    **({"extensionsUsed": list(extensions)} if extensions else {}),
    "scene": 0,
    "scenes": [{"nodes": [0]}],
    "nodes": [{"mesh": 0}],
    "meshes": [{"primitives": [whole]}],
    "buffers": [{"byteLength": len(blob)}],
    "bufferViews": views,
    "accessors": accessors,
  }
  text = json.dumps(document).encode()
  text += b" " * (-len(text) % 4)
  chunks = struct.pack("<I4s", len(text), b"JSON") + text
  chunks += struct.pack("<I4s", len(blob), b"BIN\0") + blob
  return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
