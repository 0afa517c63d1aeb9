"""Gaussians at one time as files of other programs: PLY of 3DGS, .splat, SPZ, glTF, and a table.

Slots without opacity are left out. PLY, .splat and SPZ keep our axes (x right, y down, z forward),
as the tools that read them do (SPZ's own document has y up; SuperSplat, gsply and splat-transform
don't turn it); glTF has y up and z towards the viewer, so everything is turned half
a turn about x. What a format rounds is said at its writer.
"""

import gzip
import os
import struct
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import gltf, packed_ply, sog
from d4s_jax.formats.visible import byte, linear, logit, rgb, visible, write_bytes
from d4s_jax.geometry import rotations
from d4s_jax.types import Gaussians

# The only colour space of ours: colours are those of the photographs that trained the models.
_COLOR_SPACE = "srgb_rec709_display"
_GLTF = "KHR_gaussian_splatting"
# SPZ: positions are multiples of 2^-12 m in 24 bits.
_SPZ_FRACTION = 12


def write_ply(path: str | os.PathLike, gaussians: Gaussians) -> None:
  """Writes the PLY of the 3DGS authors: float32, nothing is lost but opacities beyond 1 - 1e-6.

  Args:
    path: the file.
    gaussians: of one scene at one time, [n].

  Raises:
    ValueError: a value is NaN or infinite, or nothing is visible.
  """
  g = visible(gaussians)
  count = len(g.means)
  rest = np.swapaxes(g.harmonics[:, 1:], 1, 2).reshape(count, -1)  # all red, green, blue
  columns = {
    "x y z": g.means,
    "nx ny nz": np.zeros_like(g.means),
    "f_dc_0 f_dc_1 f_dc_2": g.harmonics[:, 0],
    " ".join(f"f_rest_{i}" for i in range(rest.shape[1])): rest,
    "opacity": logit(g.opacities)[:, None],
    "scale_0 scale_1 scale_2": np.log(g.scales),
    "rot_0 rot_1 rot_2 rot_3": g.quaternions,
  }
  names = " ".join(columns).split()
  table = np.empty((count, len(names)), "<f4")
  np.concatenate(list(columns.values()), axis=1, out=table)
  header = ["ply", "format binary_little_endian 1.0"]
  header += [f"element vertex {count}", *(f"property float {x}" for x in names), "end_header"]
  write_bytes(path, "\n".join(header).encode("ascii") + b"\n", table.data)


def write_splat(path: str | os.PathLike, gaussians: Gaussians) -> None:
  """Writes antimatter15's .splat, largest first: 8-bit colour, opacity and quaternion, degree 0."""
  g = visible(gaussians)
  order = np.argsort(-g.opacities * np.prod(g.scales, axis=1), kind="stable")
  rgba = np.concatenate([rgb(g), g.opacities[:, None]], axis=1)
  row = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("turn", "u1", 4)])
  rows = np.zeros(len(order), row)
  rows["means"], rows["scales"] = g.means[order], g.scales[order]
  rows["rgba"] = byte(255 * rgba[order])
  rows["turn"] = byte(128 * g.quaternions[order] + 128)
  write_bytes(path, rows.tobytes())


def write_spz(path: str | os.PathLike, gaussians: Gaussians) -> None:
  """Writes SPZ version 3 of Niantic: positions to 0.1 mm, the rest in 8 to 10 bits.

  Raises:
    ValueError: also for positions beyond 2 km, which its 24 bits don't hold.
  """
  g = visible(gaussians)
  fixed = np.round(g.means * 2.0**_SPZ_FRACTION)
  if np.abs(fixed).max() >= 2**23:
    raise ValueError(
      f"A Gaussian is {np.abs(g.means).max():.0f} m from the origin; SPZ holds 2,047 m. Export"
      " .ply, or move the scene."
    )
  positions = fixed.astype("<i4").view("u1").reshape(-1, 3, 4)[..., :3]
  degree = round(g.harmonics.shape[1] ** 0.5) - 1
  header = struct.pack("<4sIIBBBB", b"NGSP", 3, len(g.means), degree, _SPZ_FRACTION, 0, 0)
  planes = [
    positions,
    byte(255 * g.opacities),
    byte(255 * (0.15 * g.harmonics[:, 0] + 0.5)),
    byte((np.log(g.scales) + 10) * 16),
    _smallest_three(g.quaternions),
    byte(128 * g.harmonics[:, 1:] + 128),
  ]
  # No time and no name in the gzip header: the same scene is the same file.
  contents = header + b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)
  write_bytes(path, gzip.compress(contents, mtime=0))


def write_glb(path: str | os.PathLike, gaussians: Gaussians) -> None:
  """Writes binary glTF with KHR_gaussian_splatting; float32, nothing is lost.

  Raises:
    ValueError: also for harmonics above degree 1, which would have to be turned with the axes.
  """
  g = visible(gaussians)
  if g.harmonics.shape[1] > 4:
    raise ValueError(
      f"{g.harmonics.shape[1]} harmonics a Gaussian; glTF is written with 1 or 4 (degree 0 or 1)."
      " Export .ply."
    )
  half_turn = np.array([0.0, 1.0, 0.0, 0.0], np.float32)
  turned = np.asarray(rotations.multiply(half_turn[None], g.quaternions))
  means = g.means * np.array([1, -1, -1], np.float32)
  # Harmonics of degree 1 go with y, z, x.
  signs = np.array([1, -1, -1, 1], np.float32)[: g.harmonics.shape[1]]
  coefficients = np.moveaxis(g.harmonics * signs[:, None], 1, 0)
  names = ["0_COEF_0", "1_COEF_0", "1_COEF_1", "1_COEF_2"]
  attributes = {
    "POSITION": means,
    # What a program without the extension shows, as points: linear colour.
    "COLOR_0": np.concatenate([linear(rgb(g)), g.opacities[:, None]], axis=1),
    f"{_GLTF}:ROTATION": turned[:, [1, 2, 3, 0]],
    f"{_GLTF}:SCALE": g.scales,
    f"{_GLTF}:OPACITY": g.opacities[:, None],
    **{f"{_GLTF}:SH_DEGREE_{name}": x for name, x in zip(names, coefficients)},
  }
  primitive = {"extensions": {_GLTF: {"kernel": "ellipse", "colorSpace": _COLOR_SPACE}}}
  write_bytes(path, gltf.pack(attributes, gltf.POINTS, primitive=primitive, extensions=[_GLTF]))


def _smallest_three(quaternions: Float[np.ndarray, "n 4"]) -> np.ndarray:
  """Three components of xyzw in 9 bits and a sign each, after 2 bits that name the largest."""
  xyzw = quaternions[:, [1, 2, 3, 0]].astype(np.float64)
  largest = np.argmax(np.abs(xyzw), axis=1)
  rows = np.arange(len(xyzw))
  xyzw *= np.where(xyzw[rows, largest] < 0, -1, 1)[:, None]
  packed = largest.astype(np.uint32)
  for axis in range(4):
    value = xyzw[:, axis]
    size = np.floor(511 * np.minimum(np.abs(value) * 2**0.5, 1) + 0.5).astype(np.uint32)
    word = (packed << np.uint32(10)) | ((value < 0).astype(np.uint32) << np.uint32(9)) | size
    packed = np.where(largest == axis, packed, word)
  return packed.astype("<u4")


# By suffix.
WRITERS: dict[str, Callable[[str | os.PathLike, Gaussians], None]] = {
  ".ply": write_ply,
  ".compressed.ply": packed_ply.write,
  ".splat": write_splat,
  ".spz": write_spz,
  ".glb": write_glb,
  ".sog": sog.write,
}
