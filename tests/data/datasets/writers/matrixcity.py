"""MatrixCity: OpenGL cameras, a world whose z is up, rotations times 0.01; depth in centimetres."""

import json
import math

import numpy as np
import OpenEXR

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers.written import Written, picture

SIDE = 100
UP = (0.0, 0.0, 1.0)
# Numbers jump where pictures were left out; five digits come after four.
NUMBERS = (7, 8, 10, 9999, 10000)
BLOCK = "small_city/street/train/small_city_road_outside"


def write(root, half=True, poses=False, numbers=NUMBERS):
  """A street; picture 9 is on disk and in no list. `poses`: cameras in the other kind of file."""
  written = Written(
    root=root,
    scene=(f"{_POSES}/transforms_train" if poses else BLOCK) + "/00000",
    eyes={"camera": {}},
    world=np.eye(3),
    unit=1.0,
    height=SIDE,
    width=SIDE,
  )
  angle, frames = math.radians(80), []
  focal = SIDE / 2 / math.tan(angle / 2)
  for index, number in enumerate(numbers):
    cosine, sine = turn(3 * index)
    center = np.array([-3 + 0.5 * index, 0.3, 0.1 * index])
    one = eye(center, (cosine, sine, -0.1), UP, focal, (SIDE / 2, SIDE / 2))
    written.eyes["camera"][number] = one
    pose = np.eye(4)
    pose[:3] = np.column_stack([one.right, -one.down, -one.forward, center])
    if poses:
      pose[:3, 3] /= 100
      frames.append(
        {
          "file_path": f"../../train/small_city_road_outside/{number:04d}.png",
          "transform_matrix": pose.tolist(),
        }
      )
    else:
      pose[:3, :3] *= 0.01
      pose[3] = [0, 0, 0, 0.3]  # padding
      frames.append({"frame_index": number, "rot_mat": pose.tolist(), "euler": [0, 0, 0]})
    colors, depth, _, _ = written.seen("camera", number)
    picture(root / BLOCK / f"{number:04d}.png", colors)
    city = BLOCK.replace("small_city/", f"small_city_depth{'' if half else '_float32'}/", 1)
    stored = (depth * 100).astype(np.float16 if half else np.float32)
    stored[0, 0] = 65504 if half else 4e6
    # As the archive unpacks, its own name twice.
    name = "small_city_road_outside_depth"
    place = (root / city).parent / name / name / f"{number:04d}.exr"
    place.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"RGB": np.stack([stored] * 3, -1)}) as file:
      file.write(str(place))
  picture(root / BLOCK / "0009.png", np.zeros((SIDE, SIDE, 3)))
  frames = frames[2:] + frames[:2]
  path = root / (f"{_POSES}/transforms_train.json" if poses else f"{BLOCK}/transforms.json")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
  return written


_POSES = "small_city/street/pose/small_city_road_outside"
