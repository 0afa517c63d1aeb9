"""MultiCamVideo: matrices of Unreal Engine as text: forward, right, up, position in centimetres."""

import json

import numpy as np

from tests.data.datasets.world import eye, turn
from tests.data.datasets.writers.written import Written, video

SIDE, FPS = 128, 15
UP = (0.0, 0.0, 1.0)


def write(root, folder="f24_aperture5", scene="scene12", cameras=3, frames=12):
  """Frame 10 comes before frame 2 where keys are sorted as text."""
  written = Written(
    root=root,
    scene=f"train/{folder}/{scene}",
    eyes={f"cam{number:02d}": {} for number in range(1, cameras + 1)},
    # Right is Unreal's y, down its -z, ahead its x, which is left-handed.
    world=np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]]),
    unit=0.01,
    height=SIDE,
    width=SIDE,
    balls={number: np.array([1.0, 1.5, 0.7 + 0.05 * number]) for number in range(frames)},
  )
  focal = 24 / 23.76 * SIDE
  texts = {}
  for number in range(frames):
    texts[f"frame{number}"] = {}
    for camera, eyes in written.eyes.items():
      which = int(camera[3:])
      cosine, sine = turn(2 * number + 15 * which)
      center = 100 * np.array([-4 + 0.05 * number, -3 + 0.5 * which, 0.2])
      one = eye(
        center, (cosine, sine, 0.02 * which), UP, focal, (SIDE / 2, SIDE / 2), left_handed=True
      )
      eyes[number] = one
      rows = [[*one.forward, 0], [*one.right, 0], [*(-one.down), 0], [*one.center, 1]]
      texts[f"frame{number}"][camera] = "".join(
        "[" + " ".join(f"{value:.8g}" for value in row) + "] " for row in rows
      )
  place = root / written.scene
  (place / "cameras").mkdir(parents=True)
  order = sorted(texts, reverse=True)
  (place / "cameras" / "camera_extrinsics.json").write_text(
    json.dumps({key: texts[key] for key in order})
  )
  for camera in written.eyes:
    shown = [written.seen(camera, number)[0] for number in range(frames)]
    video(place / "videos" / f"{camera}.mp4", shown, FPS)
  return written
