import numpy as np
import trimesh

from d4s_jax.pipeline import meshing
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
