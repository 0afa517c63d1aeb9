"""What `cameras check` sees in paths whose faults are known."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from d4s_jax.formats.trajectories import examine
from d4s_jax.formats.trajectories.shots import OPENGL, Shots
from d4s_jax.geometry.trajectories import trajectory

ARC = trajectory("orbit", 25, degrees=60, radius=2).astype(np.float64)
# In a world that is not the first camera's, where an inverse is not close to the pose.
START = np.array([[0, 0, 1, 5.0], [0, 1, 0, 1], [-1, 0, 0, 2], [0, 0, 0, 1]])


def look(pose, **fields):
  return examine.examine(Shots("a test", pose, **fields))


def test_a_good_path_has_no_warnings():
  lens = np.tile([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]], (25, 1, 1))
  found = look(START @ ARC, times=np.arange(25) / 24, seconds=1.0, intrinsics=lens)
  assert found.warnings == ()
  said = "\n".join(found.lines)
  assert "frames       25" in said and "24 a second, 25 frames" in said
  assert "90.0 degrees wide and 90.0 high" in said
  # 60 degrees of a circle of 2 m.
  assert "path of 2.094 units" in said and "2.5 degrees" in said


@pytest.mark.parametrize("name", ["spiral", "forward", "backward", "up", "orbit"])
def test_no_named_path_is_suspected(name):
  assert look(START @ trajectory(name, 25)).warnings == ()


def test_opengl_axes_are_named():
  (warning,) = look(START @ ARC @ OPENGL).warnings
  assert "probably OpenGL's" in warning


@pytest.mark.parametrize("axes, name", [(np.eye(4), "camera_from_world;"), (OPENGL, "OpenGL axes")])
def test_inverses_are_named(axes, name):
  (warning,) = look(np.linalg.inv(START @ ARC @ axes)).warnings
  assert "matrices are inverted" in warning and name in warning


def test_jumps_gaps_and_units_are_named():
  cut = START @ ARC
  cut[12:, :3, 3] += 1
  assert "moves by more than 8 times the usual at frame 12 (" in " ".join(look(cut).warnings)
  times = np.delete(np.arange(26), 9) / 24
  assert "1 gaps in time" in " ".join(look(ARC, times=times, seconds=1.0).warnings)
  odd = look(ARC, times=np.arange(25) / 24, seconds=1e-6).warnings
  assert "are the times in another unit?" in " ".join(odd)
  far = ARC.copy()
  far[:, :3, 3] *= 1000
  assert "millimetres" in " ".join(look(far).warnings)
  still = look(np.tile(np.eye(4), (5, 1, 1))).warnings
  assert "the camera stands still" in still


def test_key_frames_of_the_viewer_are_as_they_were_meant():
  # To the left while turning left, as OpenGL's axes would look at one point.
  keys = np.tile(np.eye(4), (3, 1, 1))
  keys[:, 0, 3] = 0, -1, -5
  for pose, degrees in zip(keys, np.radians([0, -15, -30])):
    pose[:3, :3] = Rotation.from_rotvec([0, degrees, 0]).as_matrix()
  for path in (keys, keys[:1], np.tile(keys[:1], (2, 1, 1))):
    times = np.linspace(0, 1, len(path)) ** 2
    assert look(path, times=times, in_scene=True).warnings == ()
  assert "OpenGL" in look(keys).warnings[-1]


def test_the_longest_path_is_looked_at_in_little_memory_and_float32():
  arc = trajectory("orbit", 20_000, degrees=60, radius=2).astype(np.float64)
  tracemalloc.start()
  try:
    (warning,) = look(START @ arc @ OPENGL).warnings
    most = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert "probably OpenGL's" in warning
  assert most < 200e6  # All pairs of axes are 3.2e9.
