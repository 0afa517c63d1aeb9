import dataclasses

import numpy as np
import pytest
import trimesh

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import fusion
from d4s_jax.pipeline import drawing, exports, meshing
from d4s_jax.types import Cameras
from tests.benchmarks.geometry import true_points
from tests.formats.test_page import make
from tests.geometry.test_fusion import CENTRE, RADIUS, ball, cameras


def test_a_ball_becomes_a_ball():
  views = cameras()
  depth = ball(views)
  images = np.broadcast_to(np.float32([0.2, 0.5, 0.8]), (*depth.shape, 3))
  mesh = meshing.surface(depth, images, views, voxels=48)
  voxel = 2 * RADIUS / 48
  away = mesh.vertices - CENTRE
  distance = np.linalg.norm(away, axis=1)
  assert np.median(np.abs(distance - RADIUS)) < 0.5 * voxel
  assert np.quantile(np.abs(distance - RADIUS), 0.95) < voxel
  assert np.abs(distance - RADIUS).max() < 6 * voxel
  outwards = away / distance[:, None]
  assert np.median(np.sum(mesh.normals * outwards, axis=1)) > 0.98
  # Trimesh finds the same outside by the order of the corners.
  theirs = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
  middle = theirs.triangles_center - CENTRE
  assert (np.sum(theirs.face_normals * middle, axis=1) > 0).mean() > 0.97
  np.testing.assert_allclose(np.median(mesh.colours, axis=0), [0.2, 0.5, 0.8], atol=1e-6)


def test_what_has_no_surface_is_named(monkeypatch):
  views = cameras()
  depth = ball(views)
  images = np.zeros((*depth.shape, 3), np.float32)
  one = np.zeros_like(depth)
  one[0, 4, 4] = 2
  with pytest.raises(ValueError, match="All that is seen lies at .*, which is no surface"):
    meshing.surface(one, images, views)
  fuse = fusion.fuse

  def unseen(*arguments):
    field = fuse(*arguments)
    return dataclasses.replace(field, seen=np.zeros_like(field.seen))

  monkeypatch.setattr(fusion, "fuse", unseen)
  with pytest.raises(ValueError, match="The views agree on no surface"):
    meshing.surface(depth, images, views, voxels=16)


def test_meshes_are_made_from_sharp_pictures(monkeypatch, tmp_path):
  """Drawn with the blur of the scene's own pixels, known surfaces came out farther off."""
  dynamic, metadata = make(degree=0)
  # Narrower than a pixel, so that the blur is what one sees.
  dynamic = dataclasses.replace(dynamic, raw_scales=dynamic.raw_scales - 1.5)
  cameras = meshing.view_cameras(dynamic, metadata)
  times = np.full(len(cameras.intrinsics), 0.5, np.float32)
  sharp = drawing.draw(dynamic, cameras, times, "")
  blurred = drawing.draw(dynamic, cameras, times, "", metadata.cameras)
  taken = []

  def surface(depth, images, cameras):
    taken.append((depth, images))
    corners = np.eye(3, dtype=np.float32)
    return meshing.Mesh(corners, np.array([[0, 1, 2]]), corners, corners)

  monkeypatch.setattr(meshing, "surface", surface)
  exports.Export(tmp_path / "a.obj", time=0.5).write(dynamic, metadata)
  ((depth, images),) = taken
  # Colours of what is there, without the black behind it.
  want = sharp.image / np.maximum(sharp.alpha, 0.5)[..., None]
  np.testing.assert_allclose(images, want, atol=1e-4)
  assert np.abs(want - sharp.image)[sharp.alpha > 0.5].max() > 0.1
  assert np.abs(images - blurred.image).mean() > 0.005
  # Depth is fused where the sharp pictures are opaque, and there alone.
  solid = np.isfinite(depth) & (depth > 0)
  assert solid.any() and (sharp.alpha[solid] > 0.5).all()
  np.testing.assert_allclose(depth[solid], sharp.depth[solid], rtol=1e-4)
  assert ((blurred.alpha > 0.5) & (sharp.alpha < 0.1)).any()


def test_planes_of_the_benchmark_reach_to_the_border():
  lens = pinhole.intrinsics_from_fov(90, 64, 64)[None]
  pose = np.eye(4, dtype=np.float32)[None]
  camera = Cameras(world_from_camera=pose, intrinsics=lens, height=64, width=64)
  # A wall ahead, whose left half comes nearer; x is a share of the distance.
  x = np.broadcast_to((np.arange(64) + 0.5) / 32 - 1, (1, 64, 64))
  _, _, flat = true_points(2 / (1 - 0.5 * np.minimum(x, 0)), camera)
  flat = flat.reshape(62, 62)
  assert flat[:, :28].all() and flat[:, 36:].all()
  assert not flat[:, 31].any()
