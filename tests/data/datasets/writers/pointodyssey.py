"""PointOdyssey: arrays of half precision, world-to-camera, depth of a 65,535th of a kilometre."""

import numpy as np

from tests.data.datasets.world import HIGH, LOW, RADIUS, eye, turn
from tests.data.datasets.writers.written import Written, levels, picture

HEIGHT, WIDTH = 108, 192
UP = (0.0, 0.0, 1.0)


def write(root, name="cnb_dlab_0215_3rd", frames=6, dtype=np.float16, savez=np.savez):
  written = Written(
    root=root,
    scene=f"train/{name}",
    eyes={"camera": {}},
    world=np.eye(3),
    unit=1.0,
    height=HEIGHT,
    width=WIDTH,
    balls={number: np.array([1.0, 1.5 - 0.2 * number, 0.7]) for number in range(frames)},
  )
  folder = root / written.scene
  points = tracked(written, frames)
  axes, arrays = [], {key: [] for key in ("trajs_2d", "visibs", "intrinsics", "extrinsics")}
  for number in range(frames):
    cosine, sine = turn(5 * number)
    one = eye((-3 + 0.2 * number, -2, 0.5), (sine, cosine, -0.05), UP, 150, (96, 54))
    written.eyes["camera"][number] = one
    colors, depth, _, _ = written.seen("camera", number)
    picture(folder / "rgbs" / f"rgb_{number:05d}.jpg", colors, quality=98, subsampling=0)
    stored = np.round(depth / 1000 * 65535).astype(np.uint16)
    stored[0, 0], stored[0, 1] = 0, 65535
    levels(folder / "depths" / f"depth_{number:05d}.png", stored)
    axes = np.stack([one.right, one.down, one.forward])
    pixels, far = one.see(points[number])
    arrays["trajs_2d"].append(pixels)
    arrays["visibs"].append(visible(written, number, pixels, far))
    arrays["intrinsics"].append([[150, 0, 96], [0, 150, 54], [0, 0, 1]])
    arrays["extrinsics"].append(
      np.vstack([np.column_stack([axes, -axes @ one.center]), [0, 0, 0, 1]])
    )
  valids = np.ones(points.shape[:2], np.float32)
  valids[2, 3] = 0  # though it may be visible
  points[1, 4] = np.nan
  arrays = {key: np.array(value, dtype) for key, value in arrays.items()}
  savez(folder / "anno.npz", **arrays, trajs_3d=points.astype(dtype), valids=valids.astype(dtype))
  return written


def tracked(written, frames):
  """World points over time [f n 3]: of the walls, then of the ball."""
  rng = np.random.default_rng(0)
  walls = rng.uniform(LOW, HIGH, (40, 3))
  walls[np.arange(40), np.arange(40) % 3] = np.where(
    np.arange(40) % 2, HIGH[np.arange(40) % 3], LOW[np.arange(40) % 3]
  )
  onto = rng.normal(size=(20, 3))
  onto *= RADIUS / np.linalg.norm(onto, axis=-1, keepdims=True)
  return np.stack([np.vstack([walls, written.balls[number] + onto]) for number in range(frames)])


def visible(written, number, pixels, far):
  """Whether points [n], seen at pixels that far away, are in the picture and hidden by nothing."""
  _, depth, _, _ = written.seen("camera", number)
  inside = (far > 0) & (pixels > 0).all(-1) & (pixels < (written.width, written.height)).all(-1)
  column, row = np.where(inside[:, None], pixels, 0).astype(int).T
  return inside & (far < depth[row, column] * 1.02)
