"""Data that others made, near a format: paths in classes of evo, and drawn frames with depth.

`apt-get install visp-images-data` brings the latter (or VISP_IMAGES names its folder).
"""

import dataclasses
import os
import pathlib

import h5py
import numpy as np
import pytest
from evo.core import trajectory
from PIL import Image

from d4s_jax.curation.agreement import depth_agreement
from d4s_jax.data.datasets.registry import open_dataset
from tests.data.datasets.writers import tartanair

CASTLE = (
  pathlib.Path(os.environ.get("VISP_IMAGES", "/usr/share/visp-images-data"))
  / "ViSP-images/mbt-depth/Castle-simu"
)
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
  lines = np.column_stack([path.positions_xyz, np.roll(path.orientations_quat_wxyz, -1, axis=1)])
  for side in ("left", "right"):
    np.savetxt(tmp_path / written.scene / f"pose_{side}.txt", lines, fmt="%.18e")
  poses = open_dataset("tartanair", tmp_path).open(written.scene).views[0].cameras.world_from_camera
  for a, b in ((0, 1), (1, 2), (0, 2)):
    theirs = np.linalg.inv(path.poses_se3[a]) @ path.poses_se3[b]
    ours = np.linalg.inv(poses[a]) @ poses[b]
    # East, down, north of what is north, east, down.
    np.testing.assert_allclose(ours[:3, 3], theirs[[1, 2, 0], 3], atol=1e-9)
    np.testing.assert_allclose(ours[:3, :3], theirs[np.ix_([1, 2, 0], [1, 2, 0])], atol=1e-9)
