"""Colours read from files of splats: ours, and those of a writer that is not ours."""

import gzip
import io
import json
import struct
import sys
import types
import zipfile

import gsply
import imagecodecs
import numpy as np
import pytest
from safetensors.numpy import save

from d4s_jax.formats import scene_file, splat_colors, splats
from d4s_jax.geometry import harmonics
from d4s_jax.pipeline.clips import moment
from tests.formats.test_page import make


@pytest.fixture(scope="module")
def gaussians():
  return moment(make(degree=1)[0], 0.0)


def colors(gaussians):
  seen = np.asarray(gaussians.opacities) > 0
  return 0.5 + harmonics.C0 * np.asarray(gaussians.harmonics)[seen, 0]


def ordered(x):
  return x[np.lexsort(np.round(x, 1).T)]


# How far the format rounds.
ROUNDS = {
  ".ply": 1e-6,
  ".glb": 1e-6,
  ".splat": 0.51 / 255,
  ".spz": 0.51 / 255 / 0.15 * harmonics.C0,
}


@pytest.mark.parametrize("suffix", ROUNDS)
def test_our_files_are_read(suffix, gaussians, tmp_path):
  path = tmp_path / f"a{suffix}"
  splats.WRITERS[suffix](path, gaussians)
  found, expected = splat_colors.read_colors(path), colors(gaussians)
  if suffix == ".splat":  # sorted by size, and clipped
    order = np.argsort(
      -gaussians.opacities[gaussians.opacities > 0]
      * np.prod(gaussians.scales[gaussians.opacities > 0], axis=1),
      kind="stable",
    )
    expected = np.clip(expected[order], 0, 1)
  np.testing.assert_allclose(found, expected, atol=ROUNDS[suffix])


def test_a_table_of_colors_is_read(gaussians, tmp_path):
  splats.WRITERS[".sog"](tmp_path / "a.sog", gaussians)
  found = np.sort(splat_colors.read_colors(tmp_path / "a.sog"), axis=0)
  np.testing.assert_allclose(found, np.sort(colors(gaussians), axis=0), atol=0.05)


def test_a_scene_in_one_file_is_read(tmp_path):
  dynamic, metadata = make(degree=1)
  scene_file.write(tmp_path / "a.safetensors", dynamic, metadata)
  found = splat_colors.read_colors(tmp_path / "a.safetensors")
  expected = 0.5 + harmonics.C0 * np.asarray(dynamic.harmonics)[:, 0]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_chunks_of_a_packed_file_have_bounds_of_their_own(tmp_path):
  head = "ply\nformat binary_little_endian 1.0\nelement chunk 2\n"
  bounds = [f"{end}_{color}" for end in ("min", "max") for color in "rgb"]
  head += "".join(f"property float {name}\n" for name in bounds)
  head += "element vertex 257\nproperty uint packed_color\nend_header\n"
  chunks = np.array([[0, 0, 0, 1, 1, 1], [0.5, 0.2, 0, 0.7, 0.3, 0.1]], "<f4")
  packed = np.full(257, (255 << 24) | (51 << 16) | (0 << 8) | 77, "<u4")
  path = tmp_path / "a.ply"
  path.write_bytes(head.encode() + chunks.tobytes() + packed.tobytes())
  found = splat_colors.read_colors(path)
  np.testing.assert_allclose(found[:256], np.tile([1, 0.2, 0], (256, 1)), atol=1e-6)
  np.testing.assert_allclose(found[256], [0.7, 0.22, 0], atol=1e-6)


@pytest.mark.slow
def test_files_of_gsply_are_read(gaussians, tmp_path):
  plain = tmp_path / "plain.ply"
  splats.write_ply(plain, gaussians)
  theirs = gsply.plyread(str(plain))
  gsply.plywrite(str(tmp_path / "theirs.ply"), theirs)
  found = splat_colors.read_colors(tmp_path / "theirs.ply")
  np.testing.assert_allclose(found, colors(gaussians), atol=1e-6)
  gsply.plywrite(str(tmp_path / "packed.ply"), theirs, compressed=True)
  packed = next(tmp_path.glob("packed*"))
  # Their compressed file is sorted.
  found = np.sort(splat_colors.read_colors(packed), axis=0)
  np.testing.assert_allclose(found, np.sort(colors(gaussians), axis=0), atol=0.02)


def zipped(files):
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w") as archive:
    for name, contents in files.items():
      archive.writestr(name, contents)
  return packed.getvalue()


META = json.dumps({"count": 1, "sh0": {"codebook": 256 * [0.0], "files": ["x"]}}).encode()
HEADER = b"ply\nformat binary_little_endian 1.0\nelement vertex %d\n"
BROKEN = {
  "a.ply": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n",
  "b.ply": HEADER % 10**9 + b"property float f_dc_0\nend_header\n",
  "c.ply": HEADER % 2 + b"property float x\nend_header\n" + bytes(8),
  "d.ply": HEADER % -1 + b"property float f_dc_0\nend_header\n",
  "e.ply": HEADER % 1 + b"property list uchar int f\nend_header\n",
  "f.ply": b"property float x\nend_header\n",
  "a.splat": bytes(33),
  "b.splat": b"",
  "a.spz": gzip.compress(struct.pack("<4sIII", b"NGSP", 3, 10**9, 0)),
  "b.spz": gzip.compress(struct.pack("<4sIII", b"NGSP", 3, 1000, 0)),
  "c.spz": b"no gzip",
  "d.spz": gzip.compress(b"NGSP"),
  "a.glb": b"glTF" + struct.pack("<III4s", 2, 40, 2, b"JSON") + b"{}",
  "b.glb": b"glTF",
  "a.sog": b"no zip",
  "b.sog": zipped({"meta.json": b"{}"}),
  "c.sog": zipped({"meta.json": b'{"count": 1, "sh0": {"codebook": [1], "files": ["x"]}}'}),
  "d.sog": zipped({"meta.json": META, "x": b"no picture"}),
  "e.sog": zipped({"meta.json": META}),
  "a.safetensors": b"none",
  "b.safetensors": save({"harmonics": np.zeros(3, np.float32)}),
  "c.safetensors": save({"others": np.zeros(3, np.float32)}),
  "a.obj": b"v 0 0 0",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name, tmp_path):
  (tmp_path / name).write_bytes(BROKEN[name])
  with pytest.raises(ValueError, match=name):
    splat_colors.read_colors(tmp_path / name)


def newest(old, streams=5):
  """Version 4 of a file of version 3 with harmonics of degree 0."""
  body = gzip.decompress(old)
  _, _, count, degree, bits, flags, _ = struct.unpack("<4sIIBBBB", body[:16])
  ends = 16 + count * np.cumsum([0, 9, 1, 3, 3, 4])
  parts = [imagecodecs.zstd_encode(body[a:b]) for a, b in zip(ends, ends[1:])]
  sizes = [struct.pack("<QQ", len(part), b - a) for part, a, b in zip(parts, ends, ends[1:])]
  header = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, count, degree, bits, flags, streams, 32)
  return b"".join([header, *sizes, *parts])


def test_the_newest_spz_is_read(tmp_path, monkeypatch):
  path = tmp_path / "a.spz"
  splats.write_spz(path, moment(make(degree=0)[0], 0.0))
  want, old = splat_colors.read_colors(path), path.read_bytes()
  path.write_bytes(newest(old))
  np.testing.assert_array_equal(splat_colors.read_colors(path), want)
  whole = newest(old)
  for broken in (whole[:20], whole[:60], whole[:200], whole[:4] + b"\x05" + whole[5:]):
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="a.spz can't be read"):
      splat_colors.read_colors(path)
  monkeypatch.setitem(sys.modules, "backports", types.ModuleType("backports"))
  monkeypatch.delitem(sys.modules, "backports.zstd", raising=False)
  with pytest.raises(ValueError, match=r"version 4 needs .* pip install 'd4s_jax\[spz\]'"):
    splat_colors.read_colors(path)


def test_a_bomb_stays_packed(tmp_path):
  header = struct.pack("<4sIII", b"NGSP", 3, 1, 0)
  (tmp_path / "a.spz").write_bytes(gzip.compress(header + bytes(10**8)))
  assert splat_colors.read_colors(tmp_path / "a.spz").shape == (1, 3)
