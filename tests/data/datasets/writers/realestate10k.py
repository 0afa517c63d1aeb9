"""RealEstate10K: 19 columns, intrinsics over the picture's sides, timestamps as file names."""

import numpy as np

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers.written import Written, picture

HEIGHT, WIDTH = 90, 160
# As names they sort otherwise than as numbers.
STAMPS = (66733000, 99966000, 100100000, 133467000, 166834000)
UP = (0.0, -1.0, 0.0)


def write(root, clip="0c4c5d5f751aabf5", stamps=STAMPS):
  written = Written(
    root=root,
    scene=f"train/{clip}",
    eyes={"video": {}},
    world=np.eye(3),
    unit=1.0,
    height=HEIGHT,
    width=WIDTH,
  )
  lines = ["https://www.youtube.com/watch?v=9-6CGVbrWHs"]
  for index, stamp in enumerate(stamps):
    cosine, sine = turn(6 * index)
    one = eye((0.3 * index, 0.1 * index, -2), (sine, 0.1, cosine), UP, 0.9 * HEIGHT, (80, 45))
    written.eyes["video"][stamp] = one
    axes = np.stack([one.right, one.down, one.forward])
    rows = np.column_stack([axes, -axes @ one.center])
    numbers = [0.9 * HEIGHT / WIDTH, 0.9, 0.5, 0.5, 0.0, 0.0, *rows.ravel()]
    lines.append(f"{stamp} " + " ".join(f"{value:.9f}" for value in numbers))
    picture(root / "dataset" / "train" / clip / f"{stamp}.png", written.seen("video", stamp)[0])
  folder = root / "RealEstate10K" / "train"
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f"{clip}.txt").write_text("\n".join(lines) + "\n")
  return written
