"""Files of Gaussians, read by programs that are not ours."""

import io
import shutil
import struct
import subprocess

import gaussforge
import gsply
import numpy as np
import plyfile
import pygltflib
import pytest
from gsply import sog_reader
from hypothesis import given, settings
from hypothesis import strategies as st

from d4s_jax.formats import sog, splats
from d4s_jax.geometry import harmonics, rotations
from d4s_jax.types import Gaussians

COUNT = 50
SPLAT_TRANSFORM = shutil.which("splat-transform")


def make(count=COUNT, degree=1, seed=0):
  """Random Gaussians, one of them an unused slot."""
  numbers = np.random.default_rng(seed)
  quaternions = numbers.normal(size=(count, 4))
  opacities = numbers.uniform(0.01, 0.99, count)
  opacities[count // 2] = 0
  return Gaussians(
    means=numbers.normal(0, 3, (count, 3)).astype(np.float32),
    quaternions=(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).astype("f4"),
    scales=np.exp(numbers.normal(-3, 1, (count, 3))).astype(np.float32),
    opacities=opacities.astype(np.float32),
    harmonics=numbers.normal(0, 0.3, (count, (degree + 1) ** 2, 3)).astype(np.float32),
  )


def seen(gaussians):
  """The fields without the unused slot."""
  keep = np.asarray(gaussians.opacities) > 0
  return {name: np.asarray(x)[keep] for name, x in vars(gaussians).items()}


def same_turn(a, b, atol):
  """Whether unit quaternions stand for the same rotations: q and -q do."""
  np.testing.assert_allclose(np.abs(np.sum(a * b, axis=-1)), 1, atol=atol)


@pytest.mark.parametrize("degree", [0, 1])
def test_ply_read_by_plyfile_and_gsply(tmp_path, degree):
  gaussians = make(degree=degree)
  path = tmp_path / "scene.ply"
  splats.write_ply(path, gaussians)
  want = seen(gaussians)

  file = plyfile.PlyData.read(path)
  vertex = file["vertex"]

  def columns(*names):
    return np.stack([vertex[name] for name in names], axis=1)

  np.testing.assert_array_equal(columns("x", "y", "z"), want["means"])
  np.testing.assert_array_equal(columns("f_dc_0", "f_dc_1", "f_dc_2"), want["harmonics"][:, 0])
  np.testing.assert_allclose(np.exp(columns("scale_0", "scale_1", "scale_2")), want["scales"], 1e-6)
  turn = columns("rot_0", "rot_1", "rot_2", "rot_3")
  np.testing.assert_allclose(turn, want["quaternions"], atol=1e-6)
  # Float32 logits.
  np.testing.assert_allclose(1 / (1 + np.exp(-vertex["opacity"])), want["opacities"], rtol=1e-5)
  assert len(vertex.properties) == 17 + 9 * degree
  for channel in range(3 if degree else 0):
    rest = columns(*(f"f_rest_{3 * channel + i}" for i in range(3)))
    np.testing.assert_array_equal(rest, want["harmonics"][:, 1:, channel])

  theirs = gsply.plyread(str(path))
  np.testing.assert_array_equal(theirs.means, want["means"])
  np.testing.assert_allclose(np.exp(theirs.scales), want["scales"], rtol=1e-5)
  np.testing.assert_allclose(theirs.quats, want["quaternions"], atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1])
def test_spz_read_by_gsply(tmp_path, degree):
  gaussians = make(degree=degree)
  path = tmp_path / "scene.spz"
  splats.write_spz(path, gaussians)
  want, theirs = seen(gaussians), gsply.read_spz(str(path))
  np.testing.assert_allclose(theirs.means, want["means"], atol=2.0**-12)
  # Steps of a sixteenth in the logarithm, of 1/255 in opacity and of 1/(0.15 * 255) in colour.
  np.testing.assert_allclose(theirs.scales, np.log(want["scales"]), atol=0.0313)
  alpha = 1 / (1 + np.exp(-theirs.opacities))
  np.testing.assert_allclose(alpha, want["opacities"], atol=0.0025)
  colours = want["harmonics"][:, 0]
  inside = np.abs(0.15 * colours) < 0.5
  np.testing.assert_allclose(theirs.sh0[inside], colours[inside], atol=0.0133)
  # 9 bits of half the square root of 2 for each of three components.
  same_turn(theirs.quats, want["quaternions"], atol=1e-5)
  if degree:
    rest = np.reshape(theirs.shN, (-1, 3, 3))
    np.testing.assert_allclose(rest, np.clip(want["harmonics"][:, 1:], -1, 1), atol=0.008)
  assert path.read_bytes() == (splats.write_spz(path, gaussians), path.read_bytes())[1]


def test_splat_by_its_layout(tmp_path):
  gaussians = make(degree=1)
  path = tmp_path / "scene.splat"
  splats.write_splat(path, gaussians)
  want, contents = seen(gaussians), path.read_bytes()
  size = 32
  assert len(contents) == size * len(want["means"])
  rows = [struct.unpack("<6f8B", contents[i : i + size]) for i in range(0, len(contents), size)]
  # Largest and most opaque first, so find each by its place.
  weights = []
  for row in rows:
    (index,) = np.flatnonzero((want["means"] == np.float32(row[:3])).all(axis=1))
    np.testing.assert_array_equal(np.float32(row[3:6]), want["scales"][index])
    rgb = np.clip(0.5 + harmonics.C0 * want["harmonics"][index, 0], 0, 1)
    np.testing.assert_allclose(np.array(row[6:9]) / 255, rgb, atol=0.51 / 255)
    assert row[9] / 255 == pytest.approx(want["opacities"][index], abs=0.51 / 255)
    turn = (np.array(row[10:]) - 128) / 128
    same_turn(turn / np.linalg.norm(turn), want["quaternions"][index], atol=1e-3)
    weights.append(want["opacities"][index] * np.prod(want["scales"][index]))
  assert (np.diff(weights) <= 0).all()


def paired(means, want):
  """For each of the positions, the index of the one that it stands for."""
  distance = np.linalg.norm(means[:, None] - want["means"][None], axis=-1)
  index = distance.argmin(axis=1)
  assert len(set(index)) == len(want["means"])
  return index, distance.min(axis=1).max()


@pytest.mark.parametrize("degree", [0, 1])
def test_compressed_ply_read_by_gsply(tmp_path, degree):
  gaussians = make(600, degree=degree)
  path = tmp_path / "scene.compressed.ply"
  splats.WRITERS[".compressed.ply"](path, gaussians)
  want, theirs = seen(gaussians), gsply.plyread(str(path))
  index, error = paired(theirs.means, want)
  # 10 or 11 bits of the range of 256 neighbours.
  assert error < np.ptp(want["means"], axis=0).max() / 1000
  np.testing.assert_allclose(theirs.scales, np.log(want["scales"])[index], atol=0.005)
  alpha = 1 / (1 + np.exp(-theirs.opacities))
  np.testing.assert_allclose(alpha, want["opacities"][index], atol=0.51 / 255)
  np.testing.assert_allclose(theirs.sh0, want["harmonics"][index, 0], atol=0.006)
  same_turn(theirs.quats, want["quaternions"][index], atol=3e-6)
  if degree:
    rest = np.reshape(theirs.shN, (-1, 3, 3))
    np.testing.assert_allclose(rest, want["harmonics"][index, 1:], atol=4.01 / 256)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_sog_read_by_gsply(tmp_path, degree):
  gaussians = make(600, degree=degree)
  path = tmp_path / "scene.sog"
  splats.WRITERS[".sog"](path, gaussians)
  want, theirs = seen(gaussians), sog_reader.sogread(str(path))
  index, error = paired(theirs.means, want)
  assert error < 1e-3
  np.testing.assert_allclose(theirs.scales, np.log(want["scales"])[index], atol=0.05)
  alpha = 1 / (1 + np.exp(-theirs.opacities))
  np.testing.assert_allclose(alpha, want["opacities"][index], atol=0.51 / 255)
  np.testing.assert_allclose(theirs.sh0, want["harmonics"][index, 0], atol=0.02)
  same_turn(theirs.quats, want["quaternions"][index], atol=1e-4)
  rest = np.reshape(theirs.shN, (len(index), -1, 3))
  np.testing.assert_allclose(rest, want["harmonics"][index, 1:], atol=0.02)
  assert path.read_bytes() == (splats.WRITERS[".sog"](path, gaussians), path.read_bytes())[1]


def test_harmonics_of_many_gaussians_share_rows(monkeypatch):
  monkeypatch.setattr(sog, "_MOST_ROWS", 64)
  kinds = np.random.default_rng(0).normal(0, 0.3, (8, 9)).astype("f4")
  values = np.repeat(kinds, 40, axis=0)
  labels, rows = sog._palette(values)
  assert len(rows) == 64
  # There are rows enough for all kinds.
  np.testing.assert_allclose(rows[labels], values, atol=1e-6)


def check_read(vertex, want, suffix, degree):
  """That others found what was written, up to what the format rounds."""
  index, error = paired(np.stack([vertex[axis] for axis in "xyz"], axis=1), want)
  assert error < 0.02
  turn = np.stack([vertex[f"rot_{i}"] for i in range(4)], axis=1)
  same_turn(turn / np.linalg.norm(turn, axis=1, keepdims=True), want["quaternions"][index], 1e-4)
  colour = np.stack([vertex[f"f_dc_{i}"] for i in range(3)], axis=1)
  np.testing.assert_allclose(colour, want["harmonics"][index, 0], atol=0.02)
  scales = np.stack([vertex[f"scale_{i}"] for i in range(3)], axis=1)
  np.testing.assert_allclose(scales, np.log(want["scales"])[index], atol=0.05)
  alpha = 1 / (1 + np.exp(-vertex["opacity"]))
  np.testing.assert_allclose(alpha, want["opacities"][index], atol=0.51 / 255)
  if degree and suffix != ".splat":  # Which has none.
    rest = np.stack([vertex[f"f_rest_{i}"] for i in range(9)], axis=1).reshape(-1, 3, 3)
    inside = np.abs(want["harmonics"][index, 1:]) < 0.95  # Where SPZ ends.
    error = np.abs(rest.swapaxes(1, 2) - want["harmonics"][index, 1:])
    assert error[inside].max() < 0.03


SUFFIXES = (".ply", ".compressed.ply", ".sog", ".spz", ".splat")


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_gaussforge_reads_them(tmp_path, suffix, degree):
  gaussians, path = make(600, degree=degree), tmp_path / f"scene{suffix}"
  splats.WRITERS[suffix](path, gaussians)
  found = gaussforge.GaussForge().convert(path.read_bytes(), suffix[1:], "ply")
  vertex = plyfile.PlyData.read(io.BytesIO(found["data"]))["vertex"]
  check_read(vertex, seen(gaussians), suffix, degree)


@pytest.mark.skipif(not SPLAT_TRANSFORM, reason="splat-transform (npm) is not installed")
@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_splat_transform_reads_them(tmp_path, suffix, degree):
  gaussians, back = make(600, degree=degree), tmp_path / "back.ply"
  splats.WRITERS[suffix](tmp_path / f"scene{suffix}", gaussians)
  subprocess.run([SPLAT_TRANSFORM, tmp_path / f"scene{suffix}", back], check=True, timeout=60)
  check_read(plyfile.PlyData.read(back)["vertex"], seen(gaussians), suffix, degree)


def attributes(path):
  """The numbers of a binary glTF by attribute, as pygltflib finds them."""
  document = pygltflib.GLTF2().load(str(path))
  places, found = vars(document.meshes[0].primitives[0].attributes), {}
  for name, place in places.items():
    if place is None or document.accessors[place].componentType != pygltflib.FLOAT:
      continue
    accessor = document.accessors[place]
    start = document.bufferViews[accessor.bufferView].byteOffset or 0
    assert start % 4 == 0
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
    array = np.frombuffer(document.binary_blob(), "<f4", accessor.count * width, start)
    found[name] = array.reshape(-1, width)
  return found


@pytest.mark.skipif(not SPLAT_TRANSFORM, reason="splat-transform (npm) is not installed")
def test_splat_transform_writes_the_same_glb_of_our_ply(tmp_path):
  gaussians = make()
  splats.write_ply(tmp_path / "scene.ply", gaussians)
  splats.write_glb(tmp_path / "ours.glb", gaussians)
  command = [SPLAT_TRANSFORM, tmp_path / "scene.ply", tmp_path / "theirs.glb"]
  subprocess.run(command, check=True, timeout=60, capture_output=True)
  ours, theirs = (attributes(tmp_path / f"{x}.glb") for x in ("ours", "theirs"))
  # Both have y up; ours looks along -z as glTF's cameras do, theirs along z: half a turn about y.
  half = np.diag([-1.0, 1.0, -1.0])
  np.testing.assert_allclose(theirs["POSITION"] @ half, ours["POSITION"], atol=1e-5)
  own = "KHR_gaussian_splatting:"
  for name in ("SCALE", "OPACITY", "SH_DEGREE_0_COEF_0"):
    np.testing.assert_allclose(theirs[own + name], ours[own + name], rtol=1e-4, atol=1e-5)
  turns = [rotations.to_matrix(x[own + "ROTATION"][:, [3, 0, 1, 2]]) for x in (theirs, ours)]
  np.testing.assert_allclose(half @ turns[0], turns[1], atol=1e-4)
  names = ["0_COEF_0", *(f"1_COEF_{i}" for i in range(3))]
  rest = [np.stack([x[f"{own}SH_DEGREE_{n}"] for n in names], axis=1) for x in (theirs, ours)]
  directions = np.eye(3)[np.arange(len(rest[0])) % 3]
  np.testing.assert_allclose(
    harmonics.evaluate(rest[0], directions @ half),
    harmonics.evaluate(rest[1], directions),
    atol=1e-4,
  )


def test_glb_has_what_the_extension_asks_for_with_y_up(tmp_path):
  gaussians = make()
  path = tmp_path / "scene.glb"
  splats.write_glb(path, gaussians)
  want, contents = seen(gaussians), path.read_bytes()
  assert struct.unpack_from("<4sII", contents) == (b"glTF", 2, len(contents))
  document = pygltflib.GLTF2().load(str(path))
  assert document.extensionsUsed == ["KHR_gaussian_splatting"]
  (primitive,) = document.meshes[0].primitives
  assert primitive.mode == pygltflib.POINTS
  assert primitive.extensions["KHR_gaussian_splatting"] == {
    "kernel": "ellipse",
    "colorSpace": "srgb_rec709_display",
  }
  numbers = attributes(path)

  def read(name):
    return numbers[name]

  own = "KHR_gaussian_splatting:"
  flip = np.diag([1.0, -1.0, -1.0])
  np.testing.assert_array_equal(read("POSITION"), want["means"] @ flip)
  box = document.accessors[primitive.attributes.POSITION]
  np.testing.assert_array_equal(box.min, read("POSITION").min(axis=0))
  np.testing.assert_array_equal(read(f"{own}SCALE"), want["scales"])
  np.testing.assert_array_equal(read(f"{own}OPACITY")[:, 0], want["opacities"])
  # Rotation matrices turn with the world.
  xyzw = read(f"{own}ROTATION")
  np.testing.assert_allclose(
    rotations.to_matrix(xyzw[:, [3, 0, 1, 2]]),
    flip @ rotations.to_matrix(want["quaternions"]),
    atol=1e-5,
  )
  # And so does what is seen from a direction.
  names = ["0_COEF_0", *(f"1_COEF_{i}" for i in range(3))]
  turned = np.stack([read(f"{own}SH_DEGREE_{name}") for name in names], axis=1)
  directions = np.random.default_rng(1).normal(size=want["means"].shape)
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  np.testing.assert_allclose(
    harmonics.evaluate(turned, directions @ flip),
    harmonics.evaluate(want["harmonics"], directions),
    atol=1e-5,
  )
  assert ((read("COLOR_0") >= 0) & (read("COLOR_0") <= 1)).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4))
def test_any_rotation_survives_spz(tmp_path_factory, numbers):
  quaternion = np.array(numbers, np.float32)
  if np.linalg.norm(quaternion) < 1e-3:
    quaternion = np.array([1, 0, 0, 0], np.float32)
  gaussians = make(3)
  turns = np.tile(quaternion, (3, 1))
  gaussians = Gaussians(**(vars(gaussians) | {"quaternions": turns}))
  path = tmp_path_factory.mktemp("spz") / "one.spz"
  splats.write_spz(path, gaussians)
  same_turn(gsply.read_spz(str(path)).quats, turns[:2] / np.linalg.norm(quaternion), atol=1e-5)


def test_what_can_not_be_written_is_refused(tmp_path):
  path = tmp_path / "scene.ply"
  empty = Gaussians(**(vars(make()) | {"opacities": np.zeros(COUNT, np.float32)}))
  with pytest.raises(ValueError, match="All Gaussians have opacity 0"):
    splats.write_ply(path, empty)
  broken = Gaussians(**(vars(make()) | {"means": np.full((COUNT, 3), np.nan, np.float32)}))
  with pytest.raises(ValueError, match="means of the Gaussians hold NaN"):
    splats.write_ply(path, broken)
  far = Gaussians(**(vars(make()) | {"means": np.full((COUNT, 3), 3000, np.float32)}))
  with pytest.raises(ValueError, match="3000 m from the origin; SPZ holds 2,047 m"):
    splats.write_spz(tmp_path / "scene.spz", far)
  rich = Gaussians(**(vars(make()) | {"harmonics": np.zeros((COUNT, 9, 3), np.float32)}))
  with pytest.raises(ValueError, match="9 harmonics a Gaussian; glTF is written with 1 or 4"):
    splats.write_glb(tmp_path / "scene.glb", rich)
  assert not list(tmp_path.iterdir())
