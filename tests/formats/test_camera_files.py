import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from d4s_jax.formats import cameras as camera_files
from d4s_jax.formats import trajectories as trajectory_files
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import poses, trajectories
from d4s_jax.types import Cameras

URL = "https://www.youtube.com/watch?v=abc"


def orbit(frames=5) -> Cameras:
  return Cameras(
    world_from_camera=trajectories.trajectory("orbit", frames),
    intrinsics=np.tile(pinhole.intrinsics_from_fov(60, 48, 64), (frames, 1, 1)),
    height=48,
    width=64,
  )


def realestate(world_from_camera, timestamps) -> str:
  lines = [URL]
  for pose, stamp in zip(np.asarray(world_from_camera, np.float64), timestamps, strict=True):
    numbers = [0.9, 1.2, 0.5, 0.5, 0, 0, *np.linalg.inv(pose)[:3].ravel()]
    lines.append(" ".join([str(stamp), *(f"{number:.9f}" for number in numbers)]))
  return "\n".join(lines) + "\n"


def document(frames=3) -> dict:
  return camera_files.encode(orbit(frames), np.linspace(0, 1, frames))


def read(tmp_path, contents):
  path = tmp_path / "path.cameras"
  path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
  return trajectory_files.read_trajectory(path)


def test_realestate_by_hand(tmp_path):
  # World to camera: the second camera stands 2 m to the right of the first, turned to its left.
  second = "2000 0.5 0.9 0.5 0.5 0 0  0 0 1 0  0 1 0 0  -1 0 0 2"
  path = read(tmp_path, f"{URL}\n1000 0.5 0.9 0.5 0.5 0 0  1 0 0 0  0 1 0 0  0 0 1 0\n{second}\n")
  expected = [[0, 0, -1, 2], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
  np.testing.assert_allclose(path.world_from_camera[1], expected, atol=1e-6)
  np.testing.assert_allclose(path.intrinsics[0], [[0.5, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]])
  np.testing.assert_array_equal(path.times, [0, 1])


def test_realestate_is_rebased_and_keeps_uneven_times(tmp_path):
  world = poses.compose(trajectories.trajectory("orbit", 9)[2:3], orbit(4).world_from_camera)
  path = read(tmp_path, realestate(world, [5000, 6000, 8000, 9000]))
  # Nine digits in the file.
  np.testing.assert_allclose(path.world_from_camera, orbit(4).world_from_camera, atol=1e-5)
  np.testing.assert_allclose(path.times, [0, 0.25, 0.75, 1])


def test_the_address_may_be_missing(tmp_path):
  text = realestate(orbit(3).world_from_camera, [1, 2, 3])
  assert len(read(tmp_path, text.removeprefix(URL)).times) == 3


def test_json_round_trip(tmp_path):
  cameras = orbit(5)
  times = np.array([0, 0.1, 0.4, 0.8, 1], np.float32)
  camera_files.write_trajectory(tmp_path / "new" / "a.json", cameras, times)
  path = trajectory_files.read_trajectory(tmp_path / "new" / "a.json")
  np.testing.assert_allclose(path.world_from_camera, cameras.world_from_camera, atol=1e-6)
  np.testing.assert_allclose(path.times, times)
  np.testing.assert_allclose(path.intrinsics[0, 0], cameras.intrinsics[0, 0] / 64, rtol=1e-6)
  np.testing.assert_allclose(path.intrinsics[0, 1], cameras.intrinsics[0, 1] / 48, rtol=1e-6)
  assert path.world_from_camera.dtype == np.float32


def test_field_of_view_and_no_times(tmp_path):
  pose = np.eye(4).tolist()
  frames = [{"world_from_camera": pose, "fov": 90}] * 3
  path = read(tmp_path, json.dumps({"version": 1, "height": 50, "width": 100, "frames": frames}))
  np.testing.assert_allclose(path.intrinsics[0], [[0.5, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
  np.testing.assert_allclose(path.times, [0, 0.5, 1])


def test_poses_alone_leave_the_intrinsics_open(tmp_path):
  frames = [{"world_from_camera": np.eye(4).tolist()}]
  path = read(tmp_path, json.dumps({"version": 1, "height": 5, "width": 5, "frames": frames}))
  assert path.intrinsics is None
  np.testing.assert_array_equal(path.times, [0])
  assert path.resample(5).world_from_camera.shape == (5, 4, 4)


def test_resample_is_even_in_time(tmp_path):
  text = realestate(trajectories.trajectory("forward", 5, distance=4)[[0, 1, 4]], [0, 100, 400])
  path = read(tmp_path, text).resample(9)
  np.testing.assert_allclose(path.world_from_camera[:, 2, 3], np.linspace(0, 4, 9), atol=1e-5)
  np.testing.assert_allclose(path.intrinsics[4, 0], [0.9, 0, 0.5], atol=1e-6)


def test_rounded_rotations_are_made_exact(tmp_path):
  frames = document()
  matrix = np.round(frames["frames"][1]["world_from_camera"], 3)
  frames["frames"][1]["world_from_camera"] = matrix.tolist()
  rotation = read(tmp_path, json.dumps(frames)).world_from_camera[1, :3, :3]
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)


def edited(change) -> str:
  frames = document()
  change(frames)
  return json.dumps(frames)


def set_frame(key, value):
  return lambda top: top["frames"][1].__setitem__(key, value)


SCALED = (2 * np.eye(4)).tolist()
SCALED[3][3] = 1
MIRROR = np.diag([-1.0, 1, 1, 1]).tolist()

BAD_JSON = {
  "an unknown key": (lambda t: t.update(run="rm"), "unknown 'run'; expected the fields version"),
  "a missing key": (lambda t: t.pop("frames"), "missing frames"),
  "the future": (lambda t: t.update(version=2), "version 2, but .* up to 1; upgrade"),
  "a text version": (lambda t: t.update(version="1"), "version: '1'; expected a whole number"),
  "true as height": (lambda t: t.update(height=True), "height: True; expected a whole number"),
  "a huge width": (lambda t: t.update(width=10**30), "width: a huge integer; expected"),
  "no frames": (lambda t: t.update(frames=[]), "frames: a list of 0; expected a list of 1 to"),
  "a frame that is a list": (
    lambda t: t.update(frames=[[]]),
    r"frames\[0\]: a list of 0; expected",
  ),
  "an unknown frame key": (set_frame("exec", 1), r"frames\[1\]: unknown 'exec'"),
  "3x4": (set_frame("world_from_camera", np.eye(4)[:3].tolist()), "expected 4 lists of 4 numbers"),
  "a text in a matrix": (set_frame("world_from_camera", [["a"] * 4] * 4), "4 lists of 4 numbers"),
  "overflow": (set_frame("world_from_camera", [[10**400] * 4] * 4), "all finite"),
  "a scaled pose": (set_frame("world_from_camera", SCALED), r"frames\[1\].world.*not a rotation"),
  "a mirrored pose": (set_frame("world_from_camera", MIRROR), "mirror image"),
  "a transposed pose": (
    set_frame("world_from_camera", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 2, 3, 1]]),
    "last row",
  ),
  "a negative focal length": (
    set_frame("intrinsics", [[-1, 0, 5], [0, 1, 5], [0, 0, 1]]),
    "positive focal lengths",
  ),
  "normalised row order": (set_frame("intrinsics", [[0, 0, 1], [0, 1, 5], [1, 0, 5]]), r"\[\[fx"),
  "both": (set_frame("fov", 60), "both intrinsics and fov"),
  "some times": (lambda t: t["frames"][0].pop("time"), "2 of 3 frames have time; expected all"),
  "some intrinsics": (lambda t: t["frames"][0].pop("intrinsics"), "2 of 3 frames have intrinsics"),
  "time standing still": (set_frame("time", 0), "frame 1 has time 0 after 0; expected rising"),
  # In float32 the others are all at once.
  "an endless time": (
    lambda t: t["frames"][2].update(time=1e308),
    "frame 1 has time 0.5 after 0; expected rising times, by more than 1e-7 of the whole",
  ),
  "a centre beyond all": (
    set_frame("intrinsics", [[1, 0, 1e308], [0, 1, 5], [0, 0, 1]]),
    "frame 1 has focal lengths .* expected none beyond 1e\\+06",
  ),
  "a focal length of nothing": (
    set_frame("intrinsics", [[1e-320, 0, 5], [0, 1, 5], [0, 0, 1]]),
    "frame 1 has focal lengths .* expected none beyond 1e\\+06",
  ),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_malformed_json_names_the_field(tmp_path, name):
  change, message = BAD_JSON[name]
  with pytest.raises(ValueError, match=message):
    read(tmp_path, edited(change))


ROW = "1000 0.5 0.9 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"

BAD_FILES = {
  "NaN": (edited(set_frame("time", float("nan"))), "NaN is no number of JSON"),
  "a key twice": ('{"version": 1, "version": 1}', "a key occurs twice"),
  "cut off": (edited(lambda t: None)[:100], "not valid JSON"),
  "nested": ('{"version":' + "[" * 200_000, "nested too deeply|not valid JSON"),
  "a long integer": ('{"version": ' + "9" * 5000 + "}", "not valid JSON"),
  "binary": (b"\xff\xfe\x00", "neither JSON nor text"),
  "binary JSON": (b'{"\xff": 1}', "not valid JSON"),
  "empty": ("", "0 frames; expected 1 to"),
  "only an address": (URL, "0 frames; expected 1 to"),
  "18 columns": (f"{URL}\n{ROW}\n{ROW[:-2]}", "line 3: 18 columns; expected 19"),
  "a word": (f"{URL}\n{ROW.replace('0.9', 'abc')}", "line 2: .*'abc'; expected 19 numbers"),
  "infinity": (f"{URL}\n{ROW.replace('0.9', 'inf')}", "line 2: inf; expected finite"),
  "no focal length": (f"{URL}\n{ROW.replace('0.9', '0')}", "line 2: focal lengths"),
  "not a rotation": (f"{URL}\n\n{ROW.replace('1 0 0 0 0 1', '2 0 0 0 0 1')}", "line 3: not a rot"),
  "a repeated frame": (f"{URL}\n{ROW}\n{ROW}", "frame 1 has time 1000 after 1000"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_broken_files_name_the_line(tmp_path, name):
  contents, message = BAD_FILES[name]
  with pytest.raises(ValueError, match=message) as error:
    read(tmp_path, contents)
  assert "\n" not in str(error.value) and len(str(error.value)) < 500


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(
  deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_random_bytes_never_raise_anything_else(tmp_path, contents):
  for prefix in (b"", b"{", URL.encode() + b"\n"):
    with pytest.raises(ValueError):
      read(tmp_path, prefix + contents)


def test_sizes_are_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(camera_files, "MAX_FRAMES", 2)
  with pytest.raises(ValueError, match="expected a list of 1 to 2"):
    read(tmp_path, json.dumps(document(3)))
  with pytest.raises(ValueError, match="3 frames; expected 1 to 2"):
    read(tmp_path, f"{URL}\n{ROW}\n{ROW}\n{ROW}")
  monkeypatch.setattr(camera_files, "MAX_BYTES", 100)
  with pytest.raises(ValueError, match="larger than 100 bytes"):
    read(tmp_path, json.dumps(document(3)))


def test_missing_files_and_folders_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="No camera path at .*nowhere.txt"):
    trajectory_files.read_trajectory(tmp_path / "nowhere.txt")
  with pytest.raises(ValueError, match="is a folder without images.txt"):
    trajectory_files.read_trajectory(tmp_path)
