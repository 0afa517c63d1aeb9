"""Meshes, read by programs that are not ours."""

import numpy as np
import plyfile
import pygltflib
import pytest
import trimesh

from d4s_jax.formats import mesh

VERTICES = np.float32([[0, 0, 1], [1, 0, 1], [0, 1, 2], [1, 1, 3]])
FACES = np.int32([[0, 2, 1], [1, 2, 3]])
COLOURS = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 1]])


def make():
  normals = np.float32([[0, 0, -1], [0, 0, -1], [0, -0.6, -0.8], [0.6, 0, -0.8]])
  return mesh.Mesh(VERTICES, FACES, normals, COLOURS)


def test_ply_read_by_plyfile_and_trimesh(tmp_path):
  mesh.write_ply(tmp_path / "a.ply", make())
  file = plyfile.PlyData.read(tmp_path / "a.ply")
  vertex = file["vertex"]
  np.testing.assert_array_equal(np.stack([vertex[x] for x in "xyz"], axis=1), VERTICES)
  np.testing.assert_array_equal(vertex["ny"], make().normals[:, 1])
  np.testing.assert_array_equal(vertex["green"], np.round(255 * COLOURS[:, 1]))
  np.testing.assert_array_equal(np.stack(list(file["face"]["vertex_indices"])), FACES)
  theirs = trimesh.load(tmp_path / "a.ply", process=False)
  np.testing.assert_array_equal(theirs.vertices, VERTICES)
  np.testing.assert_array_equal(theirs.visual.vertex_colors[:, :3], np.round(255 * COLOURS))


@pytest.mark.parametrize("read", ["trimesh", "pygltflib"])
def test_glb_is_y_up_with_linear_colours(tmp_path, read):
  mesh.write_glb(tmp_path / "a.glb", make())
  turned = VERTICES * [1, -1, -1]
  if read == "trimesh":
    (theirs,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    np.testing.assert_array_equal(theirs.vertices, turned)
    np.testing.assert_array_equal(theirs.faces, FACES)
    # The half turn keeps outside outside: the first face looks at the first camera.
    assert theirs.face_normals[0] @ [0, 0, 1] > 0
    return
  file = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
  (primitive,) = file.meshes[0].primitives
  accessor = file.accessors[primitive.attributes.COLOR_0]
  view = file.bufferViews[accessor.bufferView]
  found = np.frombuffer(file.binary_blob(), "<f4", 3 * accessor.count, view.byteOffset)
  half = ((0.5 + 0.055) / 1.055) ** 2.4
  np.testing.assert_allclose(found.reshape(-1, 3)[3, [0, 2]], [half, 1], rtol=1e-5)


def test_obj_read_by_trimesh(tmp_path):
  mesh.write_obj(tmp_path / "a.obj", make())
  theirs = trimesh.load(tmp_path / "a.obj", process=False)
  np.testing.assert_allclose(theirs.vertices, VERTICES, atol=1e-5)
  np.testing.assert_array_equal(theirs.faces, FACES)
  np.testing.assert_allclose(theirs.visual.vertex_colors[:, :3], 255 * COLOURS, atol=1)


def test_obj_has_pythons_numbers(tmp_path):
  numbers = np.random.default_rng(0)
  sizes = 10.0 ** numbers.integers(-7, 5, (300, 1))
  places = np.concatenate([[[-1e-7, 0, 99999.5]], sizes * numbers.normal(size=(300, 3))])
  normals = numbers.normal(size=(301, 3)).astype("f4")
  faces = numbers.integers(0, 301, (400, 3)).astype("i4")
  whole = mesh.Mesh(places, faces, normals, np.clip(numbers.normal(size=(301, 3)), 0, 1))
  mesh.write_obj(tmp_path / "a.obj", whole)
  want = ["# d4s_jax: x right, y down, z forward"]
  want += [
    ("v" + 3 * " {:z.5f}" + 3 * " {:z.4f}").format(*row)
    for row in np.concatenate([places, whole.colours], axis=1)
  ]
  want += [("vn" + 3 * " {:z.4f}").format(*row) for row in normals.astype(float)]
  want += ["f {0}//{0} {1}//{1} {2}//{2}".format(*row) for row in faces + 1]
  assert (tmp_path / "a.obj").read_text().splitlines() == want
