"""Stereo4D: camera-to-world 3x4, tracks as a list of sightings, square videos 60 degrees wide."""

import math

import numpy as np

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers import pointodyssey
from tests.data.datasets.writers.written import Written, video

SIDE, FPS = 128, 30
UP = (0.0, -1.0, 0.0)


def write(root, clip="CMw_rkh-0ck_130030030", frames=6):
  """One camera more than the video has frames, as others have found."""
  focal = SIDE / 2 / math.tan(math.radians(30))
  written = Written(
    root=root,
    scene=clip,
    eyes={"left": {}, "right": {}},
    world=np.eye(3),
    unit=1.0,
    height=SIDE,
    width=SIDE,
    balls={number: np.array([1 - 0.1 * number, 1.5, 0.7]) for number in range(frames + 1)},
  )
  poses = []
  for number in range(frames + 1):
    cosine, sine = turn(5 * number)
    center = np.array([0.1 * number, 0.4, -3])
    one = eye(center, (sine, 0.05, cosine), UP, focal, (SIDE / 2, SIDE / 2))
    poses.append(np.column_stack([one.right, one.down, one.forward, center]))
    written.eyes["left"][number] = one
    written.eyes["right"][number] = eye(
      center + 0.063 * one.right, (sine, 0.05, cosine), UP, focal, (SIDE / 2, SIDE / 2)
    )
  points = pointodyssey.tracked(written, frames + 1)
  lengths, indices, places = [], [], []
  for track in range(points.shape[1]):
    # Each with a gap somewhere, and its own start.
    there = [n for n in range(track % 3, frames + 1) if n != 2 + track % 2]
    lengths.append(len(there))
    indices += there
    places += [points[number, track] for number in there]
  (root / "npz").mkdir(parents=True)
  np.savez(
    root / "npz" / f"{clip}.npz",
    name=clip,
    video_id=clip.rpartition("_")[0],
    timestamps=130030030 + 33367 * np.arange(frames + 1),
    camera2world=np.array(poses),
    track_lengths=np.array(lengths),
    track_indices=np.array(indices),
    track_coordinates=np.array(places),
    rectified2rig=np.stack([np.eye(3)] * 2),
    fov_bounds=np.array([-60, 60, -60, 60]),
  )
  for side in ("left", "right"):
    del written.eyes[side][frames]
    shown = [written.seen(side, number)[0] for number in range(frames)]
    video(root / "processed" / clip / f"{clip}-{side}_rectified.mp4", shown, FPS)
  return written
