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
    scene=f"{BLOCK}/00000",
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
    _exr((root / city).parent / name / name / f"{number:04d}.exr", stored)
  picture(root / BLOCK / "0009.png", np.zeros((SIDE, SIDE, 3)))
  frames = frames[2:] + frames[:2]
  path = root / (f"{_POSES}/transforms_train.json" if poses else f"{BLOCK}/transforms.json")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
  return written


def write_split(root, block="block_A", folders=("block_1", "block_2"), numbers=range(4)):
  """Blocks of the air and the file of the paper's split that lists them one after the other.

  As the authors' own script makes it: each frame in the order of its block's list, which counts
  from the same number as that of any other block; no block has a list of its own beside it.
  """
  angle, frames, all_written = math.radians(60), [], []
  height, width = 54, 96
  focal = width / 2 / math.tan(angle / 2)
  for place, folder in enumerate(folders):
    there = f"small_city/aerial/train/{folder}"
    eyes = {"camera": {}}
    written = Written(root, f"{there}/00000", eyes, np.eye(3), 1.0, height, width)
    for index, number in enumerate(numbers):
      # Each block is flown over in a direction of its own; one ends where the next one begins.
      center = np.array([-3 + 0.4 * (index + len(numbers) * place), 0.3 - 0.1 * place, 1.0])
      one = eye(center, (*turn(4 * index), -0.4), UP, focal, (width / 2, height / 2))
      eyes["camera"][number] = one
      pose = np.eye(4)
      pose[:3] = np.column_stack([one.right, -one.down, -one.forward, center / 100])
      frames.append(
        {
          "file_path": f"../../train/{folder}/{number:04d}.png",
          "transform_matrix": pose.tolist(),
        }
      )
      colors, depth, _, _ = written.seen("camera", number)
      picture(root / there / f"{number:04d}.png", colors)
      depths = f"small_city_depth_float32/aerial/train/{folder}_depth"
      _exr(root / depths / f"{number:04d}.exr", (depth * 100).astype(np.float32))
    all_written.append(written)
  path = root / f"small_city/aerial/pose/{block}/transforms_train.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    json.dumps(
      {
        "camera_angle_x": angle,
        **{"fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2},
        **{"w": float(width), "h": float(height), "k1": 0, "k2": 0, "p1": 0, "p2": 0},
        "frames": frames,
      },
      indent=2,
    )
  )
  return all_written


def _exr(path, stored):
  """A map in all three channels."""
  path.parent.mkdir(parents=True, exist_ok=True)
  header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
  with OpenEXR.File(header, {"RGB": np.stack([stored] * 3, -1)}) as file:
    file.write(str(path))


_POSES = "small_city/street/pose/small_city_road_outside"
