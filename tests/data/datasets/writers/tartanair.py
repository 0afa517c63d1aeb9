"""TartanAir: NED axes, quaternions with the scalar last, planar depth in metres as float32."""

import numpy as np
from scipy.spatial.transform import Rotation

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers.written import Written, picture

UP = (0.0, 0.0, -1.0)


def write(root, frames=4):
  """Archives that unpacked with the place's name twice."""
  written = Written(
    root=root,
    scene="office/office/Hard/P003",
    eyes={"left": {}, "right": {}},
    # East is right, down is down, north is ahead.
    world=np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    unit=1.0,
    height=480,
    width=640,
  )
  folder = root / written.scene
  for number in range(frames):
    cosine, sine = turn(10 * number - 20)
    center = np.array([-2 + 0.3 * number, 0.2 * number, 0.1 * number])
    left = eye(center, (cosine, sine, 0.05), UP, 320, (320, 240))
    written.eyes["left"][number] = left
    written.eyes["right"][number] = eye(
      center + 0.25 * left.right, (cosine, sine, 0.05), UP, 320, (320, 240)
    )
  for side, eyes in written.eyes.items():
    lines = []
    for number, one in eyes.items():
      colors, depth, _, _ = written.seen(side, number)
      picture(folder / f"image_{side}" / f"{number:06d}_{side}.png", colors, compress_level=1)
      depth = depth.astype(np.float32)
      depth[5, 7] = 1e4  # sky
      depth[6, 7] = np.nan
      path = folder / f"depth_{side}" / f"{number:06d}_{side}_depth.npy"
      path.parent.mkdir(parents=True, exist_ok=True)
      np.save(path, depth)
      turned = Rotation.from_matrix(np.stack([one.forward, one.right, one.down], axis=1)).as_quat()
      # Some of theirs are negated.
      values = [*one.center, *(turned * (-1 if number == 1 else 1))]
      lines.append(" ".join(f"{value:.18e}" for value in values))
    (folder / f"pose_{side}.txt").write_text("\n".join(lines) + "\n")
  return written
