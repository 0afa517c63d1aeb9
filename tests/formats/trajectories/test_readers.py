"""Camera files written by us and read by others, and the other way round."""

import dataclasses
import importlib.util
import json
import pathlib

import evo.tools.file_interface as evo_files
import numpy as np
import pycolmap
import pytest
from evo.core.trajectory import PosePath3D, PoseTrajectory3D

from d4s_jax.formats import trajectories
from d4s_jax.formats.images import write_image
from d4s_jax.geometry import plucker, poses, rotations
from d4s_jax.geometry.trajectories import trajectory
from d4s_jax.types import Cameras

COUNT, HEIGHT, WIDTH = 7, 48, 64
FPS = 8.0


def make():
  """An arc from somewhere in a world, with a lens that is off the middle."""
  start = np.eye(4)
  start[:3, :3] = rotations.to_matrix(np.array([0.8, 0.2, -0.4, 0.4]))
  start[:3, 3] = 1, -2, 3
  arc = trajectory("orbit", COUNT, degrees=50, radius=2.5).astype(np.float64)
  lens = np.array([[55.0, 0, 31], [0, 57, 25.5], [0, 0, 1]])
  return Cameras(
    world_from_camera=poses.compose(start, arc),
    intrinsics=np.tile(lens, (COUNT, 1, 1)),
    height=HEIGHT,
    width=WIDTH,
  )


def write(folder, name):
  path = folder / f"path{trajectories.WRITERS[name].suffix}"
  trajectories.WRITERS[name].write(path, make(), np.linspace(0, 1, COUNT), FPS)
  return path


@pytest.mark.parametrize("name", trajectories.WRITERS)
def test_we_read_what_we_write(tmp_path, name):
  found = trajectories.read(write(tmp_path, name))
  np.testing.assert_allclose(found.world_from_camera, make().world_from_camera, atol=2e-6)
  if trajectories.WRITERS[name].lenses:
    normal = make().intrinsics / np.array([[WIDTH], [HEIGHT], [1]])
    if name == "camera-path":
      normal[:, 0, 0], normal[:, :2, 2] = 57 / WIDTH, 0.5  # Which is said.
    np.testing.assert_allclose(found.intrinsics, normal, atol=1e-6)
  if found.seconds is not None:
    gaps = np.diff(found.times) * found.seconds
    np.testing.assert_allclose(gaps, 1 / FPS, rtol=1e-5)


def test_a_camera_out_of_all_proportion_is_refused(tmp_path):
  path = tmp_path / "path.txt"
  rows = [f"{i} {x} 0 0 0 0 0 1" for i, x in enumerate(("0", "-1e200", "5e6"))]
  path.write_text("\n".join(rows))
  with pytest.raises(ValueError, match=r"path.txt: frame 1 is 1e\+200 units from the origin"):
    trajectories.read(path)
  path.write_text("\n".join([rows[0], rows[2]]))
  assert trajectories.read(path).world_from_camera[1, 0, 3] == 5e6


@pytest.mark.parametrize("binary", [False, True])
def test_colmap_reads_our_model_and_we_read_its(tmp_path, binary):
  name = "colmap-binary" if binary else "colmap"
  theirs = pycolmap.Reconstruction(str(write(tmp_path, name)))
  images = sorted(theirs.images.values(), key=lambda image: image.name)
  found = np.stack([image.cam_from_world().matrix() for image in images])
  inverse = np.linalg.inv(make().world_from_camera)[:, :3]
  np.testing.assert_allclose(found, inverse, atol=1e-7)
  (camera,) = theirs.cameras.values()
  np.testing.assert_allclose(camera.calibration_matrix(), make().intrinsics[0])
  assert (camera.width, camera.height) == (WIDTH, HEIGHT)
  # What the first camera sees a little to the right and down of its middle.
  place = make().world_from_camera[0] @ [0.1, 0.2, 1, 1]
  seen = camera.img_from_cam(images[0].cam_from_world() * place[:3])
  np.testing.assert_allclose(seen, [31 + 5.5, 25.5 + 11.4])
  again = tmp_path / "again"
  again.mkdir()
  (theirs.write_binary if binary else theirs.write_text)(str(again))
  ours = trajectories.read(again)
  np.testing.assert_allclose(ours.world_from_camera, make().world_from_camera, atol=1e-7)
  assert ours.size == (HEIGHT, WIDTH)


def test_evo_reads_our_tum_and_we_read_its(tmp_path):
  theirs = evo_files.read_tum_trajectory_file(write(tmp_path, "tum"))
  np.testing.assert_allclose(theirs.poses_se3, make().world_from_camera, atol=1e-7)
  np.testing.assert_allclose(np.diff(theirs.timestamps), 1 / FPS)
  path = PoseTrajectory3D(poses_se3=list(make().world_from_camera), timestamps=np.arange(COUNT) / 5)
  evo_files.write_tum_trajectory_file(tmp_path / "their.txt", path)
  ours = trajectories.read(tmp_path / "their.txt")
  np.testing.assert_allclose(ours.world_from_camera, make().world_from_camera, atol=1e-7)


def test_evo_reads_our_kitti_and_we_read_its(tmp_path):
  theirs = evo_files.read_kitti_poses_file(write(tmp_path, "kitti"))
  np.testing.assert_allclose(theirs.poses_se3, make().world_from_camera, atol=1e-7)
  path = PosePath3D(poses_se3=list(make().world_from_camera))
  evo_files.write_kitti_poses_file(tmp_path / "their.txt", path)
  ours = trajectories.read(tmp_path / "their.txt")
  np.testing.assert_allclose(ours.world_from_camera, make().world_from_camera, atol=1e-7)


def test_diffsynth_reads_our_realestate10k(tmp_path):
  """Its reader is CameraCtrl's; it takes the words of a line as numbers."""
  package = importlib.util.find_spec("diffsynth")
  if package is None or not package.submodule_search_locations:
    pytest.skip("diffsynth is not installed")
  # The file alone: the package wants a torchvision of its own.
  file = pathlib.Path(
    package.submodule_search_locations[0], "models/wan_video_camera_controller.py"
  )
  spec = importlib.util.spec_from_file_location("controller", file)
  assert spec and spec.loader
  theirs = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(theirs)
  _, *lines = write(tmp_path, "realestate10k").read_text().splitlines()
  rows = [[float(word) for word in line.split()] for line in lines]
  found = [theirs.Camera(row) for row in rows]
  np.testing.assert_allclose([x.c2w_mat for x in found], make().world_from_camera, atol=1e-7)
  lenses = [[x.fx * WIDTH, x.fy * HEIGHT, x.cx * WIDTH, x.cy * HEIGHT] for x in found]
  np.testing.assert_allclose(lenses, COUNT * [[55, 57, 31, 25.5]], rtol=1e-7)
  # Rays through pixels, seen from the first camera: moments and directions.
  rays = theirs.process_pose_file(rows, WIDTH, HEIGHT, WIDTH, HEIGHT).numpy()
  local = poses.compose(poses.invert(make().world_from_camera[:1]), make().world_from_camera)
  ours = np.asarray(plucker.plucker(dataclasses.replace(make(), world_from_camera=local)))
  np.testing.assert_allclose(rays, ours, atol=1e-5)


def test_realestate10k_by_hand(tmp_path):
  """A point of the world that a camera sees, by the format's own words."""
  fields = write(tmp_path, "realestate10k").read_text().splitlines()[3].split()
  assert len(fields) == 19 and fields[5:7] == ["0", "0"]
  assert int(fields[0]) == 250_000  # microseconds, the third of 8 frames a second
  fx, fy, cx, cy = map(float, fields[1:5])
  matrix = np.array(fields[7:], float).reshape(3, 4)
  # 2 m before the third camera, half a metre to its right, a quarter up.
  pose = make().world_from_camera[2]
  place = pose[:3, 3] + 2 * pose[:3, 2] + 0.5 * pose[:3, 0] - 0.25 * pose[:3, 1]
  x, y, z = matrix @ [*place, 1]
  assert z == pytest.approx(2)
  assert (fx * x / z + cx) * WIDTH == pytest.approx(31 + 55 / 4)
  assert (fy * y / z + cy) * HEIGHT == pytest.approx(25.5 - 57 / 8)


def test_transforms_by_hand(tmp_path):
  # A camera of Blender's, 3 m up the z axis, looks down: its picture's right is x, its up is y.
  above = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]
  frames = [
    {"file_path": "images/frame_10.png", "transform_matrix": np.eye(4).tolist()},
    {"file_path": "images/frame_9.png", "transform_matrix": above},
  ]
  document = {"camera_angle_x": np.pi / 2, "frames": frames, "aabb_scale": 16, "k1": 0.1}
  (tmp_path / "transforms.json").write_text(json.dumps(document))
  found = trajectories.read(tmp_path / "transforms.json")
  np.testing.assert_array_equal(found.world_from_camera[0, :3, 3], [0, 0, 3])
  # Ahead, down and right in OpenCV's axes.
  np.testing.assert_array_equal(found.world_from_camera[0, :3, 2], [0, 0, -1])
  np.testing.assert_array_equal(found.world_from_camera[0, :3, 1], [0, -1, 0])
  np.testing.assert_array_equal(found.world_from_camera[0, :3, 0], [1, 0, 0])
  np.testing.assert_allclose(found.intrinsics[0], [[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])
  said = " ".join(found.notes)
  for word in ("OpenGL axes were turned", "order of their files", "distortion", "square"):
    assert word in said


def test_our_transforms_and_camera_path_by_hand(tmp_path):
  document = json.loads(write(tmp_path, "transforms").read_text())
  first = np.array(document["frames"][0]["transform_matrix"])
  pose = make().world_from_camera[0]
  np.testing.assert_allclose(first[:3, :3] @ [0, 0, -1], pose[:3, 2], atol=1e-12)
  np.testing.assert_allclose(first[:3, :3] @ [0, 1, 0], -pose[:3, 1], atol=1e-12)
  np.testing.assert_array_equal(first[:, 3], pose[:, 3])
  numbers = {"fl_x": 55, "fl_y": 57, "cx": 31, "cy": 25.5, "w": WIDTH, "h": HEIGHT}
  assert {key: document[key] for key in numbers} == numbers
  document = json.loads(write(tmp_path, "camera-path").read_text())
  keys = document["camera_path"]
  np.testing.assert_allclose(np.reshape(keys[0]["camera_to_world"], (4, 4)), first, atol=1e-12)
  assert keys[0]["fov"] == pytest.approx(np.degrees(2 * np.arctan(24 / 57)))
  assert document["seconds"] == COUNT / FPS and keys[-1]["render_time"] == 1


def test_nerfbaselines_reads_our_transforms(tmp_path):
  theirs = pytest.importorskip("nerfbaselines.datasets.nerfstudio")
  path = write(tmp_path, "transforms").rename(tmp_path / "transforms.json")
  (tmp_path / "images").mkdir()
  for frame in json.loads(path.read_text())["frames"]:
    write_image(tmp_path / frame["file_path"], np.zeros((HEIGHT, WIDTH, 3), np.float32))
  found = theirs.load_nerfstudio_dataset(str(tmp_path), "train", eval_mode="all")["cameras"]
  # OpenCV's axes, as ours.
  np.testing.assert_allclose(found.poses, make().world_from_camera[:, :3], atol=1e-6)
  np.testing.assert_allclose(found.intrinsics, COUNT * [[55, 57, 31, 25.5]], rtol=1e-6)
  np.testing.assert_array_equal(found.image_sizes, COUNT * [[WIDTH, HEIGHT]])


def test_nerfstudio_reads_our_camera_path(tmp_path):
  theirs = pytest.importorskip("nerfstudio.cameras.camera_paths")
  document = json.loads(write(tmp_path, "camera-path").read_text())
  found = theirs.get_path_from_json(document)
  # OpenGL's axes: y up, z back.
  poses_found = found.camera_to_worlds.numpy() * np.float32([1, -1, -1, 1])
  np.testing.assert_allclose(poses_found, make().world_from_camera[:, :3], atol=1e-6)
  for name, want in (("fx", 57), ("fy", 57), ("cx", WIDTH / 2), ("cy", HEIGHT / 2)):
    np.testing.assert_allclose(getattr(found, name).numpy(), np.full((COUNT, 1), want), rtol=1e-5)
  np.testing.assert_allclose(found.times.numpy()[:, 0], np.linspace(0, 1, COUNT), atol=1e-6)


def test_cameras_of_3dgs_by_hand(tmp_path):
  turn = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
  row = {"id": 0, "img_name": "a", "width": 40, "height": 20, "position": [1, 2, 3]}
  row |= {"rotation": turn, "fx": 20, "fy": 20}
  (tmp_path / "cameras.json").write_text(json.dumps([row]))
  found = trajectories.read(tmp_path / "cameras.json")
  np.testing.assert_array_equal(found.world_from_camera[0, :3, 2], [1, 0, 0])
  np.testing.assert_array_equal(found.world_from_camera[0, :3, 3], [1, 2, 3])
  np.testing.assert_allclose(found.intrinsics[0], [[0.5, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])


def several(sizes):
  """Files of pictures of several sizes, by name of the file."""
  pose, turn = np.eye(4).tolist(), np.eye(3).tolist()
  frames = [
    {"w": w, "h": h, "fl_x": w, "transform_matrix": pose, "file_path": f"{i}.png"}
    for i, (w, h) in enumerate(sizes)
  ]
  yield "transforms.json", json.dumps({"frames": frames})
  rows = [
    {"width": w, "height": h, "fx": w, "fy": w, "position": [0, 0, i], "rotation": turn}
    for i, (w, h) in enumerate(sizes)
  ]
  yield "cameras.json", json.dumps(rows)
  lenses = [f"{i} SIMPLE_PINHOLE {w} {h} {w} {w / 2} {h / 2}" for i, (w, h) in enumerate(sizes)]
  images = [f"{i} 1 0 0 0 0 0 0 {i} {i}.png\n" for i in range(len(sizes))]
  yield "cameras.txt", "\n".join(lenses)
  yield "images.txt", "\n".join(images)


def test_pictures_of_several_sizes_have_one_aspect(tmp_path):
  for name, contents in several([(64, 48), (128, 96), (1960, 1472)]):
    (tmp_path / name).write_text(contents)
  for place in ("transforms.json", "cameras.json", ""):
    found = trajectories.read(tmp_path / place)
    assert found.size == (48, 64)
    np.testing.assert_allclose(found.intrinsics[:, 0, 0], 1)
    assert "of several sizes are all taken for 64 x 48 pixels" in " ".join(found.notes)
  for name, contents in several([(64, 48), (48, 64)]):
    (tmp_path / name).write_text(contents)
  for place in ("transforms.json", "cameras.json", ""):
    with pytest.raises(ValueError, match="pictures of 48 x 64 and 64 x 48 pixels; expected one"):
      trajectories.read(tmp_path / place)


def test_intrinsics_of_some_frames_are_refused(tmp_path):
  frames = [{"transform_matrix": np.eye(4).tolist()} for _ in range(3)]
  frames[1] |= {"camera_angle_x": 1.0}
  (tmp_path / "a.json").write_text(json.dumps({"frames": frames}))
  with pytest.raises(ValueError, match="1 of 3 frames have intrinsics; expected all or none"):
    trajectories.read(tmp_path / "a.json")


def test_colmaps_text_keeps_twelve_digits(tmp_path):
  lens = np.array([[1234.56789012, 0, 31], [0, 57, 25.5], [0, 0, 1]])
  cameras = dataclasses.replace(make(), intrinsics=np.tile(lens, (COUNT, 1, 1)))
  trajectories.WRITERS["colmap"].write(tmp_path / "a", cameras, np.linspace(0, 1, COUNT), FPS)
  found = trajectories.read(tmp_path / "a").intrinsics
  np.testing.assert_allclose(found[0, 0, 0] * WIDTH, 1234.56789012, rtol=1e-12)


BROKEN = {
  "radians": ({"camera_path": [{"camera_to_world": list(np.eye(4).ravel()), "fov": 0.9}],
    "render_height": 4, "render_width": 4}, "Are these radians"),
  "degrees": ({"camera_angle_x": 60, "frames": [{"transform_matrix": np.eye(4).tolist()}]},
    "Are these degrees"),
  "transposed": ({"frames": [{"transform_matrix": [*np.eye(4)[:3].tolist(), [1, 2, 3, 1]]}]},
    r"transposed \(row vectors, as in Unreal"),
  "mirrored": ({"frames": [{"transform_matrix": np.diag([1.0, 1, -1, 1]).tolist()}]},
    "mirror image .* as in Unity and Unreal"),
  "scaled": ({"frames": [{"transform_matrix": np.diag([0.5, 0.5, 0.5, 1]).tolist()}]},
    "it is scaled by 0.5"),
  "sheared": ({"frames": [{"transform_matrix": np.diag([1, 1, 0.5, 1]).tolist()}]},
    "it shears, or scales unevenly"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_wrong_conventions_are_named(tmp_path, name):
  document, message = BROKEN[name]
  (tmp_path / "a.json").write_text(json.dumps(document))
  with pytest.raises(ValueError, match=message):
    trajectories.read(tmp_path / "a.json")


TEXTS = {
  "1 0 0\n0 1 0\n0 0 1\n": "line 1: 3 columns; .* matrices, a row a line[?] Write the 12 numbers",
  "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n": "line 1: 4 columns; .* matrices, a row a line",
  "1 0 0 0 1 0 0 0 1\n": "line 1: 9 columns; .* rotations alone",
  "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n": "16 columns; .* Leave the last row",
  "0.0,0,0,0,0,0,0,1\n0.1,0,0,0,0,0,0,1\n": "line 1: numbers with ',' .* by a space",
  "t;x;y;z;qx;qy;qz;qw\n0;0;0;0;0;0;0;1\n": "line 1: numbers with ';' .* drop a line of names",
}


@pytest.mark.parametrize("text", TEXTS)
def test_numbers_laid_out_otherwise_are_explained(tmp_path, text):
  (tmp_path / "a.txt").write_text(text)
  with pytest.raises(ValueError, match=TEXTS[text]):
    trajectories.read(tmp_path / "a.txt")


def test_the_path_of_a_scene_is_read_from_its_description(tmp_path):
  path = write(tmp_path, "cameras")
  description = {"version": 1, "prompt": "a cat", "trajectory": json.loads(path.read_text())}
  (tmp_path / "scene.json").write_text(json.dumps(description))
  found = trajectories.read(tmp_path / "scene.json")
  np.testing.assert_allclose(found.world_from_camera, make().world_from_camera, atol=1e-6)
  with pytest.raises(ValueError, match="The path of a scene is in its scene.json"):
    trajectories.read(tmp_path)


def test_quaternions_that_are_degrees_are_named(tmp_path):
  (tmp_path / "a.txt").write_text("0 0 0 0 10 20 30 0\n")
  with pytest.raises(ValueError, match="line 1: a quaternion of length 37.4; Euler angles in deg"):
    trajectories.read(tmp_path / "a.txt")


def test_a_cut_off_model_is_one_error(tmp_path):
  folder = write(tmp_path, "colmap-binary")
  file = folder / "images.bin"
  file.write_bytes(file.read_bytes()[:-5])
  with pytest.raises(ValueError, match="images.bin is cut off"):
    trajectories.read(folder)
