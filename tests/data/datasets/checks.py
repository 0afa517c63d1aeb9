"""What every dataset has to get right, whatever its format: checked against the world itself."""

import numpy as np

from d4s_jax.geometry import cameras as camera_geometry


def check_cameras(view, written):
  """Poses and intrinsics are those of the eyes, in the reader's world."""
  eyes = written.eyes[view.name]
  assert view.numbers.tolist() == sorted(eyes)
  assert (np.diff(view.times) > 0).all()
  assert (view.cameras.height, view.cameras.width) == (written.height, written.width)
  for index, number in enumerate(sorted(eyes)):
    one, pose = eyes[number], view.cameras.world_from_camera[index]
    np.testing.assert_allclose(np.linalg.det(pose[:3, :3]), 1, atol=1e-9)
    np.testing.assert_allclose(pose[:3, 3], written.place(one.center), atol=TOLERANCE)
    for column, axis in enumerate((one.right, one.down, one.forward)):
      np.testing.assert_allclose(pose[:3, column], written.world @ axis, atol=TOLERANCE)
    lens = view.cameras.intrinsics[index]
    # Pixel centres at +0.5, however the dataset counts.
    middle = np.asarray(one.middle) + 0.5 - one.first
    np.testing.assert_allclose(lens[:2, 2], middle, atol=1e-3)
    np.testing.assert_allclose(lens[[0, 1], [0, 1]], one.focal, rtol=1e-5)


# Of half-precision files.
TOLERANCE = 4e-3


def check_pixels(view, written, colors=0.02, depth=0.01):
  """Every pixel shows, and is as deep as, what its ray hits; points project to their pixels."""
  for index, number in enumerate(view.numbers.tolist()):
    image, distance, points, onto = written.seen(view.name, number)
    assert np.abs(view.image(index) - image).mean() < colors
    # What the pixels of this frame hit, seen by the reader's camera, is at those pixels.
    pixels, far = camera_geometry.project(written.place(points.reshape(-1, 3)), view.cameras[index])
    grid = camera_geometry.pixel_grid(written.height, written.width).reshape(-1, 2)
    np.testing.assert_allclose(pixels, grid, atol=0.35)
    assert np.abs(pixels - grid).mean() < 0.12
    np.testing.assert_allclose(far, distance.ravel(), rtol=5e-3)
    if view.depth is not None:
      stated = view.depth(index)
      assert stated.dtype == np.float32
      known = stated > 0
      assert known.mean() > 0.99
      np.testing.assert_allclose(stated[known], distance[known], rtol=depth, atol=0.009)
    if view.instances is not None:
      np.testing.assert_array_equal(view.instances(index) > 0, onto)


def check_motion(view, written):
  """Relative poses are those of the eyes: nothing depends on the choice of world."""
  numbers = view.numbers.tolist()
  eyes = [written.eyes[view.name][number] for number in numbers]
  first, last = eyes[0], eyes[-1]
  relative = np.linalg.inv(view.cameras.world_from_camera[0]) @ view.cameras.world_from_camera[-1]
  away = (last.center - first.center) * written.unit
  expected = [away @ first.right, away @ first.down, away @ first.forward]
  np.testing.assert_allclose(relative[:3, 3], expected, atol=3 * TOLERANCE)
  ahead = [last.forward @ axis for axis in (first.right, first.down, first.forward)]
  np.testing.assert_allclose(relative[:3, 2], ahead, atol=TOLERANCE)
