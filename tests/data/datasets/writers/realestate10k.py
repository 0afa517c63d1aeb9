"""RealEstate10K: 19 columns, intrinsics over the picture's sides, timestamps as file names."""

import io
import json

import numpy as np
import torch
from PIL import Image

from tests.data.datasets.world import eye, to_bytes, turn
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


def write_chunk(root, clip="0c4c5d5f751aabf5"):
  """The same as pixelSplat packs it: a list of clips in a file, after one of another house."""
  written = write(root / "apart", clip)
  written.root = root / "packed"
  lines = (root / "apart" / "RealEstate10K" / "train" / f"{clip}.txt").read_text().splitlines()
  table = np.array([[float(word) for word in line.split()] for line in lines[1:]])
  pictures = []
  for stamp in STAMPS:
    packed = io.BytesIO()
    shown = Image.fromarray(to_bytes(written.seen("video", stamp)[0]))
    shown.save(packed, "JPEG", quality=98, subsampling=0)
    pictures.append(torch.tensor(list(packed.getvalue()), dtype=torch.uint8))
  ours = {
    "url": lines[0],
    "timestamps": torch.tensor(STAMPS, dtype=torch.int64),
    "cameras": torch.tensor(table[:, 1:], dtype=torch.float32),
    "images": pictures,
    "key": clip,
  }
  folder = root / "packed" / "train"
  folder.mkdir(parents=True)
  other = {**ours, "key": "ffff", "images": [torch.zeros(10**6, dtype=torch.uint8)] * len(STAMPS)}
  torch.save([other, ours], folder / "000000.torch")
  (folder / "index.json").write_text(json.dumps({clip: "000000.torch"}))
  return written
