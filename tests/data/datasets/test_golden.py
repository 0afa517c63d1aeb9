"""Numbers worked out by hand from the formats' descriptions, or stated by their authors."""

import gzip
import json

import h5py
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from d4s_jax.data.datasets.registry import open_dataset
from tests.data.datasets import checks
from tests.data.datasets.writers import (
  dynamicreplica,
  matrixcity,
  multicamvideo,
  pointodyssey,
  realestate10k,
  spring,
  stereo4d,
  tartanair,
  virtual_kitti,
)


def first(name, written):
  return open_dataset(name, written.root).open(written.scene).views[0]


def test_tartanair_turned_by_30_degrees(tmp_path):
  written = tartanair.write(tmp_path, frames=2)
  # (1, 2, 3), turned about down: half of 30 degrees. Then the same with the quaternion negated.
  sine, cosine = np.sin(np.radians(15)), np.cos(np.radians(15))
  (tmp_path / written.scene / "pose_left.txt").write_text(
    f"1 2 3 0 0 {sine} {cosine}\n1 2 3 -0 -0 {-sine} {-cosine}\n"
  )
  view = first("tartanair", written)
  expected = [[0.8660, 0, 0.5, 2], [0, 1, 0, 3], [-0.5, 0, 0.8660, 1], [0, 0, 0, 1]]
  for pose in view.cameras.world_from_camera:
    np.testing.assert_allclose(pose, expected, atol=1e-4)
  np.testing.assert_array_equal(
    view.cameras.intrinsics[0], [[320, 0, 320], [0, 320, 240], [0, 0, 1]]
  )
  # The sky and what is no number.
  assert view.depth(0)[5, 7] == view.depth(0)[6, 7] == 0


def test_tartanair_depth_is_stored_in_metres_of_any_float(tmp_path):
  written = tartanair.write(tmp_path, frames=2)
  folder = tmp_path / written.scene / "depth_left"
  for number, kind in enumerate((np.float32, np.float16)):
    depth = np.full((480, 640), 3, kind)
    # All exact in half precision: 7.25 = 29 / 4, and 10000, which is the sky.
    depth[479, :4] = 7.25, 0.125, 999.5, 10000
    np.save(folder / f"{number:06d}_left_depth.npy", depth)
    read = first("tartanair", written).depth(number)
    assert read[479, :4].tolist() == [7.25, 0.125, 999.5, 0] and read[0, 0] == 3


def test_matrixcity_of_its_documents(tmp_path):
  written = matrixcity.write(tmp_path)
  path = tmp_path / matrixcity.BLOCK / "transforms.json"
  stored = json.loads(path.read_text())
  # Euler angles 0.785, 0, -1.571; the rotation is divided by 100.
  small = [[0, 0.00707107, -0.00707107], [-0.01, 0, 0], [0, 0.00707107, 0.00707107]]
  for number, frame in enumerate(stored["frames"]):
    frame["rot_mat"] = [[*row, 10.0 + number] for row in small] + [[0, 0, 0, 1]]
  stored["camera_angle_x"] = 0.7853981852531433
  path.write_text(json.dumps(stored))
  view = first("matrixcity", written)
  expected = [[0, -0.7071, 0.7071], [-1, 0, 0], [0, -0.7071, -0.7071]]
  np.testing.assert_allclose(view.cameras.world_from_camera[0, :3, :3], expected, atol=1e-4)
  # 1920 pixels would be 2317.645.
  np.testing.assert_allclose(view.cameras.intrinsics[0, 0, 0] * 19.2, 2317.645, rtol=1e-5)
  # 65504, where half precision ends.
  assert view.depth(0)[0, 0] == 0


def test_matrixcity_poses_of_its_papers_splits_are_in_100_metres(tmp_path):
  written = matrixcity.write(tmp_path, poses=True)
  path = next(tmp_path.rglob("transforms_train.json"))
  stored = json.loads(path.read_text())
  # The camera of the documents, whose rotation is whole here. Right is -y of the world; up, the
  # second column, becomes down; back becomes ahead. 0.1, -0.2 and 0.03 are 10, -20 and 3 metres;
  # each frame is half a metre further along x. The last number need not be 1.
  whole = [[0, 0.70710678, -0.70710678], [-1, 0, 0], [0, 0.70710678, 0.70710678]]
  # Frames are in the order of their numbers, whatever that of the list is.
  stored["frames"].sort(key=lambda frame: int(frame["file_path"].split("/")[-1][:-4]))
  for number, frame in enumerate(stored["frames"]):
    place = (0.1 + 0.005 * number, -0.2, 0.03)
    frame["transform_matrix"] = [[*row, x] for row, x in zip(whole, place)] + [[0, 0, 0, 0.01]]
  stored["frames"].reverse()
  path.write_text(json.dumps(stored))
  poses = first("matrixcity", written).cameras.world_from_camera
  np.testing.assert_allclose(
    poses[:, :3, :3], [[[0, -0.7071, 0.7071], [-1, 0, 0], [0, -0.7071, -0.7071]]] * 5, atol=1e-4
  )
  np.testing.assert_allclose(poses[:, 0, 3], [10, 10.5, 11, 11.5, 12])
  np.testing.assert_allclose(poses[:, 1:, 3], [[-20, 3, 1]] * 5)


@pytest.mark.parametrize("half", [True, False])
def test_matrixcity_depth_in_centimetres(tmp_path, half):
  written = matrixcity.write(tmp_path, half=half)
  path = next(tmp_path.rglob("0007.exr"))
  stored = np.full((100, 100), 500, np.float16 if half else np.float32)
  # Exact in half precision: 1234 cm, 2.5 cm, 40000 cm.
  stored[0, :3] = 1234, 2.5, 40000
  header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
  with OpenEXR.File(header, {"RGB": np.stack([stored] * 3, -1)}) as file:
    file.write(str(path))
  depth = first("matrixcity", written).depth(0)
  np.testing.assert_allclose(depth[0, :4], [12.34, 0.025, 400, 5], rtol=1e-6)


@pytest.mark.parametrize("half", [True, False])
def test_matrixcity_has_the_same_cameras_in_both_files(tmp_path, half):
  raw = matrixcity.write(tmp_path / "raw", half=half)
  posed = matrixcity.write(tmp_path / "posed", half=half, poses=True)
  ours, theirs = first("matrixcity", raw), first("matrixcity", posed)
  np.testing.assert_allclose(
    ours.cameras.world_from_camera, theirs.cameras.world_from_camera, atol=1e-6
  )
  np.testing.assert_allclose(ours.depth(1), theirs.depth(1))
  assert theirs.numbers.tolist() == list(matrixcity.NUMBERS)
  # Where both are, pictures aren't listed twice.
  matrixcity.write(tmp_path / "raw", half=half, poses=True)
  assert open_dataset("matrixcity", raw.root).names == [raw.scene]


def test_matrixcity_split_of_two_blocks(tmp_path):
  """Numbers begin anew in the second block, which the camera reaches by one more step."""
  blocks = matrixcity.write_split(tmp_path)
  # The split of the whole city, which lists the same again, and one block more.
  more = ("block_1", "block_2", "block_3")
  blocks = [*blocks, matrixcity.write_split(tmp_path, "block_all", more)[2]]
  # A path with ".." in it is the same folder.
  dataset = open_dataset("matrixcity", tmp_path / "small_city" / "..")
  assert dataset.names == [written.scene for written in blocks] and not dataset.problems
  assert len({dataset.group(name) for name in dataset.names}) == 3
  assert {dataset.official(name) for name in dataset.names} == {"train"}
  for written in blocks:
    scene = dataset.open(written.scene)
    (view,) = scene.views
    assert not scene.problems
    checks.check_cameras(view, written)
    checks.check_pixels(view, written)


def test_matrixcity_is_cut_where_the_camera_jumps(tmp_path):
  matrixcity.write(tmp_path)
  path = tmp_path / matrixcity.BLOCK / "transforms.json"
  stored = json.loads(path.read_text())
  frames = sorted(stored["frames"], key=lambda frame: frame["frame_index"])
  for row in frames[3]["rot_mat"][:3], frames[4]["rot_mat"][:3]:
    row[0][3] += 4.0  # eight steps
  path.write_text(json.dumps(stored))
  dataset = open_dataset("matrixcity", tmp_path)
  numbers = [dataset.open(name).views[0].numbers.tolist() for name in dataset.names]
  assert numbers == [[7, 8, 10], [9999, 10000]]


def test_realestate10k_row(tmp_path):
  written = realestate10k.write(tmp_path)
  path = next(tmp_path.rglob("*.txt"))
  # World to camera: turned by 90 degrees about y, then moved by (1, 2, 3).
  row = "66733000 0.5 0.888888889 0.5 0.5 0 0 0 0 -1 1 0 1 0 2 1 0 0 3"
  path.write_text("https://www.youtube.com/watch?v=x\n" + row + "\n")
  view = first("realestate10k", written)
  expected = [[0, 0, 1, -3], [0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 0, 1]]
  np.testing.assert_allclose(view.cameras.world_from_camera[0], expected, atol=1e-9)
  np.testing.assert_allclose(
    view.cameras.intrinsics[0], [[80, 0, 80], [0, 80, 45], [0, 0, 1]], atol=1e-6
  )
  assert view.times.tolist() == [66.733]


def test_pointodyssey_depth_and_flags(tmp_path):
  written = pointodyssey.write(tmp_path, savez=np.savez_compressed)
  folder = tmp_path / written.scene
  levels = np.array(Image.open(folder / "depths" / "depth_00000.png"))
  levels[3, 3] = 655
  Image.fromarray(levels).save(folder / "depths" / "depth_00000.png")
  view = first("pointodyssey", written)
  depth = view.depth(0)
  np.testing.assert_allclose(depth[3, 3], 9.9947, atol=1e-4)
  assert depth[0, 0] == depth[0, 1] == 0
  tracks = view.tracks(np.array([1, 2, 4]))
  # Frame 2 of point 3 is flagged, frame 1 of point 4 is no number.
  assert not tracks.valid[3, 1] and not tracks.valid[4, 0]
  assert tracks.valid.sum() == tracks.valid.size - 2
  assert not (tracks.visible & ~tracks.valid).any()
  assert not tracks.points[4, 0].any()


def test_pointodyssey_pose(tmp_path):
  written = pointodyssey.write(tmp_path)
  path = tmp_path / written.scene / "anno.npz"
  stored = dict(np.load(path))
  # World to camera: x stays, y of the camera is -z of the world, its z is y of the world; then
  # moved by (1, 2, 3). The camera stands where that is zero: x + 1 = -z + 2 = y + 3 = 0, so at
  # (-1, -3, 2); right is x, down is -z, ahead is y.
  stored["extrinsics"][1] = [[1, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]
  np.savez(path, **stored)
  poses = first("pointodyssey", written).cameras.world_from_camera
  expected = [[1, 0, 0, -1], [0, 0, 1, -3], [0, -1, 0, 2], [0, 0, 0, 1]]
  np.testing.assert_allclose(poses[1], expected, atol=1e-9)
  # The middle of 192 x 108 pixels stays where it is.
  lens = first("pointodyssey", written).cameras.intrinsics[0]
  np.testing.assert_allclose(lens, [[150, 0, 96], [0, 150, 54], [0, 0, 1]])


def test_dynamicreplica_pose(tmp_path):
  written = dynamicreplica.write(tmp_path, frames=1)
  path = tmp_path / "train" / "frame_annotations_train.jgz"
  with gzip.open(path, "rt") as file:
    entries = json.load(file)
  # A row (a, b, c) of the world times R, plus T: (1 - c, b + 2, a + 3) along left, up and ahead. So
  # (c - 1, -b - 2, a + 3) along right, down and ahead: the camera stands at (-3, -2, 1), right is
  # z, down is -y, ahead is x.
  for entry in entries:
    entry["viewpoint"] |= {"R": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], "T": [1, 2, 3]}
  with gzip.open(path, "wt") as file:
    json.dump(entries, file)
  pose = first("dynamicreplica", written).cameras.world_from_camera[0]
  expected = [[0, 0, 1, -3], [0, -1, 0, -2], [1, 0, 0, 1], [0, 0, 0, 1]]
  np.testing.assert_allclose(pose, expected, atol=1e-9)


def test_dynamicreplica_bits_of_half_precision(tmp_path):
  written = dynamicreplica.write(tmp_path)
  path = next(tmp_path.rglob("*left_0000.geometric.png"))
  levels = np.array(Image.open(path))
  levels[1, :4] = 15360, 16640, 18688, 22080
  Image.fromarray(levels).save(path)
  depth = first("dynamicreplica", written).depth(0)
  assert depth[1, :4].tolist() == [1, 2.5, 10, 100]
  assert depth[0, :3].tolist() == [0, 0, 0]  # 0, infinite, no number


@pytest.mark.parametrize("kind", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_dynamicreplica_intrinsics(tmp_path, kind):
  written = dynamicreplica.write(tmp_path, frames=1, kind=kind)
  view = first("dynamicreplica", written)
  np.testing.assert_allclose(
    view.cameras.intrinsics[0], [[120, 0, 75.5], [0, 120, 47.25], [0, 0, 1]], atol=1e-9
  )
  # As in its own files: a focal length of 2 of a picture of 1280 x 720 is 720 pixels.
  path = tmp_path / "train" / "frame_annotations_train.jgz"
  with gzip.open(path, "rt") as file:
    entries = json.load(file)
  for entry in entries:
    entry["image"]["size"] = [720, 1280]
    entry["viewpoint"] |= {
      "focal_length": [2.0, 2.0],
      "principal_point": [0, 0],
      "intrinsics_format": "ndc_isotropic",
    }
  with gzip.open(path, "wt") as file:
    json.dump(entries, file)
  lens = first("dynamicreplica", written).cameras.intrinsics[0]
  np.testing.assert_allclose(lens, [[720, 0, 640], [0, 720, 360], [0, 0, 1]])


@pytest.mark.parametrize("centers", [(960.0, 540.0), (959.5, 539.5)])
def test_spring_in_either_counting_of_pixels(tmp_path, centers):
  written = spring.write(tmp_path, centers=centers)
  view = first("spring", written)
  assert view.numbers.tolist() == [1, 2, 3, 4]
  # Focal lengths 1560, 1620, ... of 1920 columns; here there are 96.
  np.testing.assert_allclose(view.cameras.intrinsics[:, 0, 0], [78, 81, 84, 87])
  np.testing.assert_allclose(view.cameras.intrinsics[:, :2, 2], [[48, 27]] * 4)
  depth = view.depth(0)
  # Disparities 0, infinite, no number; and two columns of sky.
  assert not depth[0, :3].any() and not depth[:2, -2:].any() and depth[2:, 3:].all()


def test_spring_poses_and_depth(tmp_path):
  written = spring.write(tmp_path)
  folder = tmp_path / written.scene
  path = folder / "cam_data" / "extrinsics.txt"
  # World to camera: x of the camera is -y of the world, its y is x; then moved by (1, 2, 3). The
  # camera stands where -y + 1 = x + 2 = z + 3 = 0, at (-2, 1, -3); right is -y, down is x. The
  # right one is 65 mm further along -y.
  lines = path.read_text().splitlines()
  lines[0] = "0 -1 0 1 1 0 0 2 0 0 1 3 0 0 0 1"
  path.write_text("\n".join(lines) + "\n")
  for number in (1, 2):
    disparity = np.full((108, 192), 3.0, np.float32)
    # Pixels have every other row and column.
    disparity[100, 60:66:2], disparity[100, 61:66:2] = (10, 0.5, 195), 1000
    name = f"disp1_left_{number:04d}.dsp5"
    with h5py.File(folder / "disp1_left" / name, "w") as file:
      file["disparity"] = disparity
  left, right = open_dataset("spring", tmp_path).open(written.scene).views
  expected = [[0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 1, -3], [0, 0, 0, 1]]
  np.testing.assert_allclose(left.cameras.world_from_camera[0], expected, atol=1e-9)
  np.testing.assert_allclose(right.cameras.world_from_camera[0, :3, 3], [-2, 0.935, -3], atol=1e-9)
  # 1560 pixels times 0.065 m are 101.4, of which a tenth, twice, and a 195th; in frame 2, of 1620
  # pixels, 105.3. Both count in pixels of 1920 columns, though the pictures here have 96.
  np.testing.assert_allclose(left.depth(0)[50, 30:33], [10.14, 202.8, 0.52], rtol=1e-6)
  np.testing.assert_allclose(left.depth(1)[50, 30:33], [10.53, 210.6, 0.54], rtol=1e-6)


def test_virtual_kitti_counts_pixel_centres_as_whole_numbers(tmp_path):
  written = virtual_kitti.write(tmp_path, numbers=(0,), apart=False)
  folder = tmp_path / written.scene
  (folder / "intrinsic.txt").write_text(
    "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n0 0 725.0087 725.0087 620.5 187\n"
  )
  (folder / "extrinsic.txt").write_text(
    "frame cameraID r1,1 ...\n0 0 0 0 -1 1 0 1 0 2 1 0 0 3 0 0 0 1\n"
  )
  for path in folder.rglob("rgb_00000.jpg"):
    Image.new("RGB", (1242, 375)).save(path)
  cameras = first("virtual_kitti", written).cameras
  np.testing.assert_allclose(cameras.intrinsics[0, :2, 2], [1242 / 2, 375 / 2])
  expected = [[0, 0, 1, -3], [0, 1, 0, -2], [-1, 0, 0, 1], [0, 0, 0, 1]]
  np.testing.assert_allclose(cameras.world_from_camera[0], expected, atol=1e-9)


def test_virtual_kitti_depth_in_centimetres(tmp_path):
  written = virtual_kitti.write(tmp_path)
  path = next(tmp_path.rglob("Camera_1/depth_00002.png"))
  levels = np.array(Image.open(path))
  levels[1, :3] = 1234, 65534, 65535
  Image.fromarray(levels).save(path)
  scene = open_dataset("virtual_kitti", tmp_path).open(written.scene)
  np.testing.assert_allclose(scene.views[1].depth(2)[1, :3], [12.34, 655.34, 0], rtol=1e-6)
  # Frame 3 is in no file: the fourth is number 4.
  assert scene.views[1].numbers.tolist() == [0, 1, 2, 4, 5]
  assert set(np.unique(scene.views[0].instances(0))) == {0, 7}


def test_multicamvideo_of_its_example(tmp_path):
  written = multicamvideo.write(tmp_path, cameras=1, frames=2)
  path = next(tmp_path.rglob("camera_extrinsics.json"))
  # As in the file that its authors give: negative zeros, a space at the end; and shorter rows.
  path.write_text(
    json.dumps(
      {
        "frame0": {"cam01": "[1 0 0 0] [-0 1 0 0] [0 -0 1 0] [3390 1380 240 1] "},
        "frame1": {"cam01": "[1 0 0] [0 1 0] [0 0 1] [3390 1380 240]"},
      }
    )
  )
  view = first("multicamvideo", written)
  for pose in view.cameras.world_from_camera:
    np.testing.assert_allclose(pose[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(pose[:3, 3], [13.8, -2.4, 33.9])
  # 24 mm before 23.76 mm; 1280 pixels would be 1292.929.
  np.testing.assert_allclose(view.cameras.intrinsics[0, 0, 0] * 10, 1292.929, rtol=1e-6)
  assert view.times.tolist() == [0, 1 / 15]


def test_multicamvideo_relative_motion_of_a_camera_that_goes_ahead_and_tilts_up(tmp_path):
  written = multicamvideo.write(tmp_path, cameras=1, frames=2)
  path = next(tmp_path.rglob("camera_extrinsics.json"))
  cosine, sine = np.cos(np.radians(10)), np.sin(np.radians(10))
  ahead = f"[{cosine} 0 {sine} 0] [0 1 0 0] [{-sine} 0 {cosine} 0] [198.8 0 0 1] "
  path.write_text(
    json.dumps(
      {"frame0": {"cam01": "[1 0 0 0] [0 1 0 0] [0 0 1 0] [0 0 0 1] "}, "frame1": {"cam01": ahead}}
    )
  )
  start, end = first("multicamvideo", written).cameras.world_from_camera
  relative = np.linalg.inv(start) @ end
  np.testing.assert_allclose(relative[:3, 3], [0, 0, 1.988], atol=1e-9)
  np.testing.assert_allclose(relative[:3, 2], [0, -0.173648, 0.984808], atol=1e-6)


def test_stereo4d_poses(tmp_path):
  written = stereo4d.write(tmp_path)
  path = next(tmp_path.rglob("*.npz"))
  stored = dict(np.load(path))
  # Camera to world: the camera stands at (1, 2, 3); right is -z, down is y, ahead is x. The right
  # one is 63 mm further along -z.
  stored["camera2world"][2] = [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3]]
  np.savez(path, **stored)
  left, right = open_dataset("stereo4d", tmp_path).open(written.scene).views
  expected = [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]
  np.testing.assert_allclose(left.cameras.world_from_camera[2], expected, atol=1e-9)
  expected = [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 2.937], [0, 0, 0, 1]]
  np.testing.assert_allclose(right.cameras.world_from_camera[2], expected, atol=1e-9)
  # Microseconds of the source video.
  np.testing.assert_allclose(left.times[:2], [130.03003, 130.063397], atol=1e-9)


def test_stereo4d_lens_and_gaps(tmp_path):
  written = stereo4d.write(tmp_path)
  scene = open_dataset("stereo4d", tmp_path).open(written.scene)
  left, right = scene.views
  # 512 pixels would be 443.405.
  np.testing.assert_allclose(left.cameras.intrinsics[0, 0, 0] * 4, 443.405, rtol=1e-6)
  assert len(left) == 6  # of seven cameras
  away = np.linalg.inv(left.cameras.world_from_camera) @ right.cameras.world_from_camera
  np.testing.assert_allclose(away[:, :3, 3], [[0.063, 0, 0]] * 6, atol=1e-7)
  tracks = left.tracks(np.array([0, 2, 3, 5]))
  # Track 0 starts at 0 and lacks 2, track 1 starts at 1 and lacks 3, track 2 starts and lacks 2.
  expected = [[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]]
  np.testing.assert_array_equal(tracks.valid[:3], np.array(expected, bool))
  assert open_dataset("stereo4d", tmp_path).group(written.scene) == "CMw_rkh-0ck"
