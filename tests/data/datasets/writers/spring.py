"""Spring: rows of camera files are frames 1, 2, ...; disparity on a grid twice as fine."""

import h5py
import numpy as np

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers.written import Written, levels, picture

# A twentieth of 1920 x 1080.
HEIGHT, WIDTH = 54, 96
UP = (0.0, 1.0, 0.0)


def write(root, scene="0041", frames=4, centers=(960.0, 540.0)):
  written = Written(
    root=root,
    scene=f"spring/train/{scene}",
    eyes={"left": {}, "right": {}},
    world=np.eye(3),
    unit=1.0,
    height=HEIGHT,
    width=WIDTH,
    balls={n: np.array([1.0, 1.5 + 0.1 * n, 0.7]) for n in range(1, frames + 1)},
  )
  folder = root / written.scene
  lenses, poses = [], []
  for number in range(1, frames + 1):
    cosine, sine = turn(180 + 7 * number)
    focal = 1500.0 + 60 * number  # a zoom
    center = np.array([0.5, -1, 4 - 0.2 * number])
    one = eye(center, (sine, 0.05, cosine), UP, focal / 20, (48, 27))
    written.eyes["left"][number] = one
    right = eye(center + 0.065 * one.right, (sine, 0.05, cosine), UP, focal / 20, (48, 27))
    written.eyes["right"][number] = right
    lenses.append(f"{focal} {focal} {centers[0]} {centers[1]}")
    axes = np.stack([one.right, one.down, one.forward])
    matrix = np.vstack([np.column_stack([axes, -axes @ center]), [0, 0, 0, 1]])
    poses.append(" ".join(f"{value:.10f}" for value in matrix.ravel()))
    for side in ("left", "right"):
      colors, depth, _, _ = written.seen(side, number)
      picture(folder / f"frame_{side}" / f"frame_{side}_{number:04d}.png", colors)
      # Only every other row and column belongs to a pixel.
      disparity = np.full((2 * HEIGHT, 2 * WIDTH), 77.0, np.float32)
      disparity[::2, ::2] = focal * 0.065 / depth
      disparity[0, 0], disparity[0, 2], disparity[0, 4] = 0, np.inf, np.nan
      path = folder / f"disp1_{side}" / f"disp1_{side}_{number:04d}.dsp5"
      path.parent.mkdir(parents=True, exist_ok=True)
      with h5py.File(path, "w") as file:
        file.create_dataset("disparity", data=disparity, compression="gzip", compression_opts=5)
      sky = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8)
      sky[:4, -4:] = 255
      levels(folder / "maps" / f"skymap_{side}" / f"skymap_{side}_{number:04d}.png", sky)
  (folder / "cam_data").mkdir()
  (folder / "cam_data" / "intrinsics.txt").write_text("\n".join(lenses) + "\n")
  (folder / "cam_data" / "extrinsics.txt").write_text("\n".join(poses) + "\n")
  return written
