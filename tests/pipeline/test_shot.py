import dataclasses
import math

import numpy as np
import pytest

from d4s_jax.formats.cameras import write_trajectory
from d4s_jax.formats.images import center_crop
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import poses
from d4s_jax.geometry.trajectories import TRAJECTORIES, known_parameters, trajectory
from d4s_jax.pipeline import shot
from d4s_jax.types import Cameras


def lens(fx, fy, cx, cy):
  return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


def write_file(path, frames=3, height=90, width=160, intrinsics=None):
  """A straight path whose middle frame is not at half the time."""
  cameras = Cameras(
    world_from_camera=trajectory("forward", frames, distance=2.0) + _shift(1.0),
    intrinsics=np.tile(lens(80, 80, 80, 45) if intrinsics is None else intrinsics, (frames, 1, 1)),
    height=height,
    width=width,
  )
  write_trajectory(path, cameras, np.linspace(0, 1, frames) ** 2)
  return str(path)


def _shift(x):
  offset = np.zeros((4, 4), np.float32)
  offset[0, 3] = x
  return offset


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_name_is_the_trajectory_of_that_name(name):
  given = {label: 0.25 for label in known_parameters(name)}
  path = shot.camera_path(f"{name}:{','.join(f'{x}={y}' for x, y in given.items())}", 9)
  np.testing.assert_array_equal(path.world_from_camera, trajectory(name, 9, **given))
  np.testing.assert_allclose(path.times, np.linspace(0, 1, 9), atol=1e-7)
  assert path.intrinsics is None
  assert len(shot.camera_path(name).times) == shot.FRAMES
  default = shot.camera_path(name, 9).world_from_camera
  np.testing.assert_array_equal(default, trajectory(name, 9))


def test_a_file_is_resampled_evenly_in_its_own_time_and_starts_at_the_origin(tmp_path):
  source = write_file(tmp_path / "path.json")
  path = shot.camera_path(source, 5)
  np.testing.assert_allclose(path.world_from_camera[0], np.eye(4), atol=1e-6)
  np.testing.assert_allclose(path.times, np.linspace(0, 1, 5), atol=1e-7)
  depth = path.world_from_camera[:, 2, 3]
  # Keys are at times 0, 1/4 and 1, and 0, 1 and 2 metres: half of the way is done at 1/4.
  np.testing.assert_allclose(depth[[0, 1, 4]], [0, 1, 2], atol=1e-6)
  np.testing.assert_allclose(path.intrinsics[2], lens(0.5, 80 / 90, 0.5, 0.5), atol=1e-6)
  assert len(shot.camera_path(source).times) == 3


def test_what_is_probably_wrong_with_a_file_is_said(tmp_path, capsys, monkeypatch):
  places = [0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2]
  lines = [f"{i} {x} 0 0 0 0 0 1" for i, x in enumerate(places)]
  (tmp_path / "jumps.txt").write_text("\n".join(lines))
  shot.camera_path(str(tmp_path / "jumps.txt"))
  said = capsys.readouterr().err
  assert "WARNING: jumps.txt: " in said and "moves" in said
  # Key frames that the viewer saved are as uneven as they were meant.
  read = shot.files.read
  monkeypatch.setattr(
    shot.files, "read", lambda file: dataclasses.replace(read(file), in_scene=True)
  )
  shot.camera_path(str(tmp_path / "jumps.txt"), in_scene=True)
  assert "WARNING" not in capsys.readouterr().err


def test_guesses_of_the_reader_are_said(tmp_path, capsys):
  matrix = "1 0 0 {} 0 1 0 0 0 0 1 0"
  rows = [f"{i} 500 500 320 240 0 0 {matrix.format(i)}" for i in range(3)]
  (tmp_path / "pixels.txt").write_text("\n".join(rows))
  (tmp_path / "order.txt").write_text("0 0 0 0 1 0 0 0\n1 1 0 0 1 0 0 0\n")
  for name in ("pixels", "order"):
    shot.camera_path(str(tmp_path / f"{name}.txt"))
  said = capsys.readouterr().err
  assert "WARNING: pixels.txt: intrinsics look like pixels" in said
  assert "WARNING: order.txt: the first quaternion is half a turn about x" in said


def test_a_name_is_no_file_that_lies_about(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_file(tmp_path / "orbit")
  (tmp_path / "spiral:turns=2").mkdir()
  for name in ("orbit", "spiral:turns=2"):
    assert len(shot.camera_path(name).times) == shot.FRAMES
  assert len(shot.camera_path("./orbit").times) == 3


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("sprial", 5), "Unknown trajectory 'sprial'; expected one of spiral, .* or a file"),
    (("spiral", 0), "path of 0 frames; expected 1 to"),
    (("spiral", -3), "path of -3 frames"),
  ],
)
def test_what_is_no_path_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    shot.camera_path(*arguments)


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_distances_that_are_not_positive_are_refused(number):
  with pytest.raises(ValueError, match="distance=.* expected a positive number"):
    shot.camera_path(f"spiral:distance={number}", 5)
  with pytest.raises(ValueError, match="radius=.* expected a positive number"):
    shot.camera_path(f"orbit:radius={number}", 5)


@pytest.mark.parametrize(
  "source, message",
  [
    ("orbit:degrees=1e9", "degrees=1e.09; expected -3600 to 3600, not 0"),
    ("spiral:turns=-11", "turns=-11; expected -10 to 10, not 0"),
    ("forward:distance=1e5", "distance=100000; expected a positive number up to 10000"),
    ("orbit:degres=40", "has no 'degres'; expected degrees, radius"),
    ("orbit:degrees", "'degrees'; expected orbit:degrees=NUMBER,radius=NUMBER"),
  ],
)
def test_parameters_that_make_no_path_are_refused(source, message):
  with pytest.raises(ValueError, match=message):
    shot.camera_path(source, 5)


def test_files_have_to_be_camera_paths(tmp_path):
  broken = tmp_path / "broken.txt"
  broken.write_text("a photograph's diary\n1 2 3\n")
  with pytest.raises(ValueError, match="broken.txt, line 1: 3 columns|broken.txt"):
    shot.camera_path(str(broken), 5)


def dot_photo(rows, columns, x, y):
  """Black, with a soft white dot at (x, y), pixels."""
  grid = pinhole.pixel_grid(rows, columns)
  spread = (columns / 24) ** 2
  bright = np.exp(-((grid - np.array([x, y])) ** 2).sum(-1) / (2 * spread))
  return np.repeat(bright[..., None], 3, axis=-1).astype(np.float32)


def centroid(image):
  weight = image[..., 0].astype(np.float64)
  grid = pinhole.pixel_grid(*weight.shape)
  return (grid * weight[..., None]).sum((0, 1)) / weight.sum()


# Landscape, portrait, square, odd sizes, smaller than the clip.
PHOTOS = [(400, 600), (601, 403), (300, 300), (37, 53), (1000, 333)]


@pytest.mark.parametrize("rows, columns", PHOTOS)
@pytest.mark.parametrize("height, width", [(32, 32), (32, 64)])
def test_the_camera_sees_in_the_fitted_image_what_the_photograph_showed(
  rows, columns, height, width
):
  fov = 50.0
  top, left, window_height, window_width = center_crop(rows, columns, height, width)
  x, y = left + 0.6 * window_width, top + 0.35 * window_height
  # The direction of the dot, from the photograph's own pinhole camera.
  focal = columns / 2 / math.tan(math.radians(fov) / 2)
  point = np.array([[(x - columns / 2) / focal, (y - rows / 2) / focal, 1.0]]) * 4.0
  path = shot.camera_path("forward", 5)
  image, cameras = shot.photograph(dot_photo(rows, columns, x, y), path, height, width, fov)
  assert image.shape == (height, width, 3)
  assert (cameras.height, cameras.width) == (height, width)
  pixel, _ = pinhole.project(point, cameras[0])
  # A tenth of a pixel: the dot's tails are cut off by the border of the window.
  np.testing.assert_allclose(pixel[0], centroid(image), atol=0.15)
  np.testing.assert_array_equal(cameras.world_from_camera, path.world_from_camera)
  assert cameras.intrinsics.dtype == cameras.world_from_camera.dtype == np.float32


def test_the_default_field_of_view_is_that_of_the_whole_photograph():
  path = shot.camera_path("up", 5)
  _, cameras = shot.photograph(np.zeros((20, 40, 3), np.float32), path, 32, 64)
  np.testing.assert_allclose(pinhole.fov_from_intrinsics(cameras.intrinsics, 64), 60, atol=1e-4)
  _, cut = shot.photograph(np.zeros((20, 40, 3), np.float32), path, 32, 32)
  half = math.degrees(2 * math.atan(math.tan(math.radians(30)) / 2))
  np.testing.assert_allclose(pinhole.fov_from_intrinsics(cut.intrinsics, 32), half, atol=1e-4)


@pytest.mark.parametrize("fov", [math.nan, 0.0, -60.0, 180.0])
def test_fields_of_view_out_of_range_are_refused(fov):
  with pytest.raises(ValueError, match="Field of view"):
    shot.photograph(np.zeros((9, 9, 3), np.float32), shot.camera_path("up", 5), 16, 16, fov)


def test_the_intrinsics_of_a_file_are_those_of_the_photograph_of_that_aspect(tmp_path):
  # Off the centre, and sharper than 60 degrees.
  source = write_file(tmp_path / "path.json", intrinsics=lens(200, 200, 90, 40))
  path = shot.camera_path(source, 5)
  photo = np.zeros((180, 320, 3), np.float32)
  _, cameras = shot.photograph(photo, path, 32, 32)
  # The photograph is twice the file's picture; the window is 180 wide from column 70.
  scale = 32 / 180
  want = lens(400 * scale, 400 * scale, (180 - 70) * scale, 80 * scale)
  np.testing.assert_allclose(cameras.intrinsics, np.tile(want, (5, 1, 1)), atol=1e-4)
  with pytest.raises(ValueError, match=r"180 x 320 pixels, .*3\.16 times .*--fov=DEGREES"):
    shot.photograph(np.zeros((320, 180, 3), np.float32), path, 32, 32)
  _, asked = shot.photograph(np.zeros((320, 180, 3), np.float32), path, 32, 32, 40.0)
  np.testing.assert_allclose(pinhole.fov_from_intrinsics(asked.intrinsics, 32), 40, atol=1e-4)


FIRST = Cameras(
  world_from_camera=np.eye(4, dtype=np.float32),
  intrinsics=lens(80, 80, 34, 30),
  height=64,
  width=96,
)


@pytest.mark.parametrize(
  "asked, size",
  [
    ({}, (256, 384)),
    ({"height": 100}, (100, 150)),
    ({"width": 48}, (32, 48)),
    ({"height": 32, "width": 48}, (32, 48)),
  ],
)
def test_a_scene_is_drawn_at_any_size_through_its_own_lens(asked, size):
  path = shot.camera_path("orbit", 6)
  cameras = shot.through_scene(path, FIRST, **asked)
  assert (cameras.height, cameras.width) == size
  scale = size[0] / 64
  want = lens(80 * scale, 80 * scale, 34 * scale, 30 * scale)
  np.testing.assert_allclose(cameras.intrinsics, np.tile(want, (6, 1, 1)), rtol=1e-5)
  np.testing.assert_array_equal(cameras.world_from_camera, path.world_from_camera)


def test_a_file_brings_its_own_lens_and_aspect(tmp_path):
  path = shot.camera_path(write_file(tmp_path / "path.json"), 4)
  cameras = shot.through_scene(path, FIRST, height=180)
  assert (cameras.height, cameras.width) == (180, 320)
  np.testing.assert_allclose(cameras.intrinsics[3], lens(160, 160, 160, 90), atol=1e-3)
  with pytest.raises(ValueError, match="The pictures have 100 x 100 pixels.* one of the sizes"):
    shot.through_scene(path, FIRST, 100, 100)


@pytest.mark.parametrize("asked", [{"height": 0}, {"width": -4}])
def test_sizes_that_are_not_positive_are_refused(asked):
  with pytest.raises(ValueError, match="expected at least 1 pixel"):
    shot.through_scene(shot.camera_path("up", 2), FIRST, **asked)


@pytest.mark.parametrize("height, factor", [(16, 16), (64, 4), (200, 2), (256, 1), (512, 1)])
def test_small_pictures_are_enlarged_by_a_whole_number(height, factor):
  large = shot.enlarged(dataclasses.replace(FIRST, height=height, width=height // 2))
  assert (large.height, large.width) == (height * factor, height // 2 * factor)
  assert large.intrinsics[0, 0] == 80 * factor


def test_views_around_a_camera_look_at_the_same_point():
  path = shot.camera_path("spiral", 5)
  cameras = shot.through_scene(path, FIRST)
  offsets = np.array([[-0.2, 0, 0], [0, 0.2, 0], [0, 0, -0.2]])
  views = shot.around(cameras, 3, 4.0, offsets)
  middle = path.world_from_camera[3]
  point = (middle @ np.array([0, 0, 4.0, 1]))[:3]
  pixels, depth = pinhole.project(np.tile(point, (3, 1, 1)), views)
  # All see the point where the camera's axis pierces the picture.
  np.testing.assert_allclose(pixels[:, 0], views.intrinsics[:, :2, 2], atol=1e-3)
  np.testing.assert_allclose(depth[:, 0], [math.hypot(4, 0.8), math.hypot(4, 0.8), 4.8], rtol=1e-5)
  local = poses.relative_to(views.world_from_camera, middle)
  np.testing.assert_allclose(local[:, :3, 3], 4 * offsets, atol=1e-5)
  still = shot.repeated(cameras, 2, 3)
  np.testing.assert_array_equal(
    still.world_from_camera, np.tile(path.world_from_camera[2], (3, 1, 1))
  )
