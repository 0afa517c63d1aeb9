"""DynamicReplica: PyTorch3D's cameras, depth as bits of half precision, tracks of torch.save."""

import gzip
import json

import numpy as np
import torch

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers import pointodyssey
from tests.data.datasets.writers.written import Written, levels, picture

HEIGHT, WIDTH = 90, 160
UP = (0.0, 1.0, 0.0)
# Off the middle, pixels.
MIDDLE = (WIDTH / 2 - 4.5, HEIGHT / 2 + 2.25)


def write(root, sequence="009850-3_obj", frames=5, kind="ndc_isotropic"):
  written = Written(
    root=root,
    scene=f"train/{sequence}",
    eyes={"left": {}, "right": {}},
    world=np.eye(3),
    unit=1.0,
    height=HEIGHT,
    width=WIDTH,
    balls={number: np.array([1.0, 1.5, 0.7 - 0.15 * number]) for number in range(frames)},
  )
  base, entries = root / "train", []
  points = pointodyssey.tracked(written, frames)
  for number in range(frames):
    cosine, sine = turn(-6 * number + 10)
    center = np.array([-0.5 + 0.2 * number, 0.3, -3])
    for side in ("left", "right"):
      one = eye(center, (sine, 0.1, cosine), UP, 120, MIDDLE)
      one.center = center + (0.11 * one.right if side == "right" else 0)
      written.eyes[side][number] = one
      entries.append(_frame(base, sequence, side, number, one, kind, written))
    name = f"{sequence}_source_left/trajectories/{number:06d}.pth"
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    left = written.eyes["left"][number]
    pixels, far = left.see(points[number])
    written.eyes["camera"] = written.eyes["left"]
    flags = pointodyssey.visible(written, number, pixels, far)
    del written.eyes["camera"]
    torch.save(
      {
        "traj_2d": torch.tensor(np.column_stack([pixels, far]), dtype=torch.float32),
        "traj_3d_world": torch.tensor(points[number], dtype=torch.float32),
        "verts_inds_vis": torch.tensor(flags),
        "img": torch.zeros((HEIGHT, WIDTH, 3), dtype=torch.uint8),
        "instances": torch.zeros(len(flags)),
      },
      base / name,
    )
  # Nobody promises an order.
  entries.reverse()
  with gzip.open(base / "frame_annotations_train.jgz", "wt") as file:
    json.dump(entries, file)
  return written


def _frame(base, sequence, side, number, one, kind, written):
  """Writes a frame's files and returns its annotation."""
  folder, stem = f"{sequence}_source_{side}", f"{sequence}_source_{side}"
  colors, depth, _, onto = written.seen(side, number)
  names = {
    "image": f"{folder}/images/{stem}-{number:04d}.png",
    "depth": f"{folder}/depths/{stem}_{number:04d}.geometric.png",
    "mask": f"{folder}/masks/{stem}_{number:04d}.png",
  }
  # Alpha means nothing: the authors read the other three.
  picture(base / names["image"], np.concatenate([colors, np.where(onto, 0.5, 0)[..., None]], -1))
  bits = depth.astype(np.float16)
  bits[0, 0], bits[0, 1], bits[0, 2] = 0, np.inf, np.nan
  levels(base / names["depth"], bits.view(np.uint16))
  levels(base / names["mask"], np.where(onto, 255, 0).astype(np.uint8))
  # The world's row vectors times R are along the camera's left, up and forward axes.
  rotation = np.stack([-one.right, -one.down, one.forward], axis=1)
  half = (
    np.array([WIDTH, HEIGHT]) / 2 if kind == "ndc_norm_image_bounds" else np.full(2, HEIGHT / 2)
  )
  tracks = f"{folder}/trajectories/{number:06d}.pth" if side == "left" else None
  return {
    "sequence_name": f"{sequence}_source_{side}",
    "camera_name": side,
    "frame_number": number,
    "frame_timestamp": number / 30,
    "image": {"path": names["image"], "size": [HEIGHT, WIDTH]},
    "depth": {"path": names["depth"], "scale_adjustment": 1.0, "mask_path": None},
    "mask": {"path": names["mask"], "mass": None},
    "viewpoint": {
      "R": rotation.tolist(),
      "T": (-one.center @ rotation).tolist(),
      "focal_length": (one.focal / half).tolist(),
      "principal_point": ((np.array([WIDTH, HEIGHT]) / 2 - MIDDLE) / half).tolist(),
      "intrinsics_format": kind,
    },
    "trajectories": {"path": tracks} if tracks else None,
  }
