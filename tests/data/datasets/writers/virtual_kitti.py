"""Virtual KITTI 2: world-to-camera text, both cameras in turn, pixel centres at whole numbers."""

import numpy as np

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers.written import Written, levels, picture

HEIGHT, WIDTH = 75, 248
UP = (0.0, -1.0, 0.0)


def write(root, scene="Scene06/fog", numbers=(0, 1, 2, 4, 5), apart=True, ball=(-0.2, -0.4, 1.5)):
  """One folder for each archive, or all in one; frame 3 is missing; a ball goes right."""
  middle = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
  written = Written(
    root=root,
    scene=scene,
    eyes={"Camera_0": {}, "Camera_1": {}},
    world=np.eye(3),
    unit=1.0,
    height=HEIGHT,
    width=WIDTH,
    balls={number: np.array([0.2 * number, 0, 0]) + ball for number in numbers},
  )
  archives = ("rgb", "depth", "instanceSegmentation", "textgt")
  folders = {kind: (root / f"vkitti_2.0.3_{kind}" if apart else root) / scene for kind in archives}
  lenses, poses = (
    ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"],
    ["frame cameraID r1,1 ... 0 0 0 1"],
  )
  for number in numbers:
    cosine, sine = turn(4 * number)
    for camera in (0, 1):
      center = np.array([-1.0, -0.5, -3 + 0.3 * number])
      one = eye(center, (sine, 0.02, cosine), UP, 145, middle, first=0)
      one.center = center + 0.532725 * camera * one.right
      written.eyes[f"Camera_{camera}"][number] = one
      axes = np.stack([one.right, one.down, one.forward])
      rows = np.vstack([np.column_stack([axes, -axes @ one.center]), [0, 0, 0, 1]])
      lenses.append(f"{number} {camera} 145.0 145.0 {middle[0]} {middle[1]}")
      poses.append(f"{number} {camera} " + " ".join(f"{value:.9g}" for value in rows.ravel()))
      colors, depth, _, onto = written.seen(f"Camera_{camera}", number)
      where = f"Camera_{camera}"
      picture(
        folders["rgb"] / "frames/rgb" / where / f"rgb_{number:05d}.jpg", colors, quality=98,
        subsampling=0,
      )  # fmt: skip
      stored = np.round(depth * 100).astype(np.uint16)
      stored[2, 3] = 65535
      levels(folders["depth"] / "frames/depth" / where / f"depth_{number:05d}.png", stored)
      levels(
        folders["instanceSegmentation"]
        / "frames/instanceSegmentation"
        / where
        / f"instancegt_{number:05d}.png",
        np.where(onto, 7, 0).astype(np.uint8),  # track 6
      )
  folders["textgt"].mkdir(parents=True, exist_ok=True)
  (folders["textgt"] / "intrinsic.txt").write_text("\n".join(lenses) + "\n")
  (folders["textgt"] / "extrinsic.txt").write_text("\n".join(poses) + "\n")
  return written
