"""Times and sizes of exports of a scene of 50,000 Gaussians at 49 times, beside gsply's writers.

python tests/benchmarks/export.py

The scene is random: a wall of Gaussians, a tenth of which move and turn along smooth curves. Real
scenes compress differently. A page holds the whole clip, other formats one moment.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import gsply
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.formats import page, splats  # noqa: E402
from d4s_jax.formats.scene import SceneMetadata  # noqa: E402
from d4s_jax.geometry import trajectories  # noqa: E402
from d4s_jax.geometry.cameras import intrinsics_from_fov  # noqa: E402
from d4s_jax.pipeline.clips import moment  # noqa: E402
from d4s_jax.types import Cameras, DynamicGaussians  # noqa: E402

HEIGHT, WIDTH = 480, 720


def scene(count: int, frames: int):
  """A random scene as a pipeline of the published sizes would make it, and its metadata.

  Gaussians of 1 to 4 pixels on an uneven wall, as seen at 480 x 720; a tenth of them move and turn.
  """
  numbers = np.random.default_rng(0)
  clock = np.linspace(0, 1, frames, dtype="f4")
  path = trajectories.trajectory("spiral", frames, distance=0.5, pivot=3.0)
  lens = np.asarray(intrinsics_from_fov(60.0, HEIGHT, WIDTH), "f4")
  cameras = Cameras(
    world_from_camera=path,
    intrinsics=np.tile(lens, (frames, 1, 1)),
    height=HEIGHT,
    width=WIDTH,
  )
  x, y = numbers.uniform(-0.6, 0.6, (2, count)) * [[WIDTH], [HEIGHT]] / lens[0, 0]
  depth = 3 + np.sin(4 * x) * np.cos(5 * y) + numbers.normal(0, 0.02, count)
  turns = numbers.normal(size=(count, 4))
  deformation = numbers.normal(0, 1e-4, (frames, count, 10))
  moving, steps = numbers.random((count, 1)) < 0.1, clock[:, None, None]
  deformation[..., :3] += steps**2 * moving * numbers.normal(0, 0.5, (count, 3))
  deformation[..., 3:7] += [1, 0, 0, 0] + steps * moving * numbers.normal(0, 0.2, (count, 4))
  deformation[..., 3:7] /= np.linalg.norm(deformation[..., 3:7], axis=-1, keepdims=True)
  dynamic = DynamicGaussians(
    means=np.stack([depth * x, depth * y, depth], axis=-1).astype("f4"),
    quaternions=(turns / np.linalg.norm(turns, axis=1, keepdims=True)).astype("f4"),
    raw_scales=np.log(numbers.uniform(1, 4, (count, 3))).astype("f4"),
    footprints=(depth / lens[0, 0]).astype("f4"),
    opacities=numbers.uniform(0.05, 1, count).astype("f4"),
    harmonics=numbers.normal(0, 0.6, (count, 1, 3)).astype("f4"),
    times=clock,
    deformation=deformation.astype("f4"),
  )
  return dynamic, SceneMetadata(
    cameras=cameras, times=clock, prompt="50,000 random Gaussians", package_version="0"
  )


def timed(write, repeats: int = 3) -> float:
  """The shortest of a few times, seconds."""
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    write()
    found.append(time.perf_counter() - start)
  return min(found)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--gaussians", type=int, default=50_000)
  parser.add_argument("--frames", type=int, default=49)
  options = parser.parse_args()
  dynamic, metadata = scene(options.gaussians, options.frames)
  now = moment(dynamic, 0.5)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for suffix, write in splats.WRITERS.items():
      path = folder / f"ours{suffix}"
      seconds = timed(lambda write=write, path=path: write(path, now))
      print(f"{suffix:7} {seconds:6.3f} s  {path.stat().st_size / 1e6:6.2f} MB")
    path = folder / "ours.html"
    seconds = timed(lambda: page.write_page(path, dynamic, metadata), repeats=1)
    print(f".html   {seconds:6.3f} s  {path.stat().st_size / 1e6:6.2f} MB, {options.frames} times")
    theirs = gsply.plyread(str(folder / "ours.ply"))
    for suffix, write in ((".ply", gsply.plywrite), (".spz", gsply.write_spz)):
      path = str(folder / f"theirs{suffix}")
      seconds = timed(lambda write=write, path=path: write(path, theirs))
      ours = timed(lambda suffix=suffix: splats.WRITERS[suffix](folder / f"ours{suffix}", now))
      print(f"{suffix:7} ours / gsply: {ours / seconds:.2f} (gsply {seconds:.3f} s)")


if __name__ == "__main__":
  main()
