"""Where rays enter solids, against each solid's equation."""

import numpy as np
import pytest

from d4s_jax.data.synthetic.shapes import SHAPES

# Negative inside, positive outside, by the solids' definitions.
EQUATIONS = {
  "sphere": lambda x, y, z: np.sqrt(x * x + y * y + z * z) - 1,
  "box": lambda x, y, z: np.max(np.abs([x, y, z]), axis=0) - 1,
  "cylinder": lambda x, y, z: np.maximum(np.hypot(x, z) - 1, np.abs(y) - 1),
  "cone": lambda x, y, z: np.maximum(np.hypot(x, z) - (y + 1) / 2, np.abs(y) - 1),
}


def rays(count=4000):
  """Rays from outside that pass close to the middle, some of them along an axis."""
  rng = np.random.default_rng(0)
  origin = rng.normal(size=(3, count))
  origin *= rng.uniform(2.5, 6, count) / np.linalg.norm(origin, axis=0)
  direction = rng.uniform(-1.3, 1.3, (3, count)) - origin
  direction[:, :3] = -np.eye(3)
  origin[:, :3] = 4 * np.eye(3)
  return origin.astype(np.float32), direction.astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_rays_enter_at_the_first_point_inside(name):
  origin, direction = rays()
  enter = SHAPES[name].enter(origin, direction)
  hit = np.isfinite(enter)
  assert 0.2 < hit.mean() < 0.95
  along = np.linspace(0, 2, 801)[:, None]
  inside = EQUATIONS[name](*(origin[:, None] + along * direction[:, None])) < -0.02
  # A ray that samples clearly inside must hit; a miss must have no such sample.
  assert not inside[:, ~hit].any()
  first = along[inside[:, hit].argmax(axis=0), 0]
  entered = inside[:, hit].any(axis=0)
  assert np.all(enter[hit][entered] <= first[entered])
  surface = EQUATIONS[name](*(origin + np.where(hit, enter, 0) * direction))[hit]
  np.testing.assert_allclose(surface, 0, atol=2e-5)  # float32 at distances up to 6


@pytest.mark.parametrize("name", SHAPES)
def test_normals_face_the_ray_and_are_the_gradient(name):
  origin, direction = rays()
  enter = SHAPES[name].enter(origin, direction)
  hit = np.isfinite(enter)
  points = (origin + np.where(hit, enter, 0) * direction)[:, hit]
  normals = SHAPES[name].normal(points)
  normals /= np.linalg.norm(normals, axis=0)
  assert np.all((normals * direction[:, hit]).sum(axis=0) < 1e-3)
  outside = EQUATIONS[name](*(points + 0.01 * normals))
  inside = EQUATIONS[name](*(points - 0.01 * normals))
  # All but points within 0.01 of a rim, where one step leaves by the other surface.
  assert np.mean((outside > 0.004) & (inside < -0.004)) > 0.97
