"""Times, sizes and memory of all exports of a scene of 50,000 Gaussians at 49 times.

Times of other programs stand beside some.

python tests/benchmarks/export.py

The scene is random: a wall of Gaussians, a tenth of which move and turn along smooth curves. Real
scenes compress differently. Formats of one moment are written once, and as 49 numbered files.
"""

import argparse
import gc
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import gsply
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.formats import atomic, splats  # noqa: E402
from d4s_jax.formats.scene import SceneMetadata  # noqa: E402
from d4s_jax.geometry import trajectories  # noqa: E402
from d4s_jax.geometry.cameras import intrinsics_from_fov  # noqa: E402
from d4s_jax.pipeline.clips import moment  # noqa: E402
from d4s_jax.pipeline.exports import FORMATS, Export  # noqa: E402
from d4s_jax.types import Cameras, DynamicGaussians  # noqa: E402

HEIGHT, WIDTH = 480, 720
SPLAT_TRANSFORM = shutil.which("splat-transform")


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
    opacities=numbers.uniform(0.3, 1, count).astype("f4"),
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


def rows(frames: int):
  """What is exported: file, format, frames of a sequence."""
  for name, row in FORMATS.items():
    for suffix in (*row.suffixes, *row.named) or ("",):
      yield f"one{suffix}", name, None
      if row.moments is not None:
        yield f"many{suffix}", name, frames


def size(path: pathlib.Path) -> float:
  """Megabytes of a file, or of all in a folder."""
  files = [path] if path.is_file() else path.rglob("*")
  return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def resident() -> float:
  """Megabytes that this process has in memory."""
  gc.collect()
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024 / 1e6


def export_all(dynamic, metadata, frames: int, folder: pathlib.Path) -> None:
  """Prints seconds of each format, as the command exports it, but for reading the scene.

  And, of what is quick enough to be made five times, what the memory grew by from the first to the
  last.
  """
  for index, (file, name, count) in enumerate(rows(frames)):
    # Compiling is in the first: a command compiles once. What is slow is not repeated.
    seconds, held, place = [], [], folder / str(index) / file
    while len(seconds) < 5 and sum(seconds) < 10:
      shutil.rmtree(place.parent, ignore_errors=True)
      start, worked = time.perf_counter(), time.process_time()
      Export(place, frames=count, format=name).write(dynamic, metadata)
      seconds.append(time.perf_counter() - start)
      worked = time.process_time() - worked
      held.append(resident())
    first = seconds[0]
    again = f", again {seconds[1]:6.2f} s" if len(seconds) > 1 else " " * 16
    again += f", {worked:6.2f} s of a core"
    what = f"{name} {pathlib.Path(file).suffix}{f', {count} files' if count else ''}"
    grown = f"  {held[0]:.0f} MB in memory, {held[-1] - held[0]:+.1f} after 5" * (len(held) == 5)
    late = "  MORE THAN 10 s" if first > 10 else ""
    written = size(place.parent if count else place)
    print(f"{what:32} {first:7.2f} s{again} {written:8.2f} MB{grown}{late}", flush=True)
    shutil.rmtree(place.parent)


def beside_others(now, folder: pathlib.Path) -> None:
  """Prints our writers' times over those of gsply and of splat-transform, one moment each."""
  plain = folder / "ours.ply"
  splats.write_ply(plain, now)
  theirs = gsply.plyread(str(plain))

  def ours(suffix):
    return timed(lambda: splats.WRITERS[suffix](folder / f"ours{suffix}", now), 7)

  others = {
    ".ply": gsply.plywrite,
    ".compressed.ply": gsply.plywrite,
    ".spz": gsply.write_spz,
  }
  for suffix, write in others.items():
    path = folder / f"theirs{suffix}"

    def flushed(write=write, path=path):
      write(str(path), theirs)
      # Ours wait until the file is on the disk.
      atomic.flush(path)

    bare = timed(lambda write=write, path=path: write(str(path), theirs), 7)
    seconds, own = timed(flushed, 7), ours(suffix)
    print(
      f"{suffix}: ours / gsply {own / seconds:.2f} (gsply {1000 * seconds:.1f} ms on the disk,"
      f" {1000 * bare:.1f} without waiting for it)"
    )
  if not SPLAT_TRANSFORM:
    print("splat-transform is not installed (npm install -g @playcanvas/splat-transform)")
    return

  def run(*arguments):
    command = [SPLAT_TRANSFORM, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)

  start = timed(lambda: run("--version"))
  for suffix in (".ply", ".compressed.ply", ".sog", ".spz"):
    path = folder / f"theirs{suffix}"
    seconds = timed(lambda path=path: run("-w", plain, path)) - start
    print(
      f"{suffix}: ours / splat-transform {ours(suffix) / seconds:.2f} (it takes {seconds:.2f} s,"
      f" with reading the PLY, without {start:.2f} s of its start)"
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--gaussians", type=int, default=50_000)
  parser.add_argument("--frames", type=int, default=49)
  options = parser.parse_args()
  dynamic, metadata = scene(options.gaussians, options.frames)
  with tempfile.TemporaryDirectory() as name:
    beside_others(moment(dynamic, 0.5), pathlib.Path(name))
    export_all(dynamic, metadata, options.frames, pathlib.Path(name))


if __name__ == "__main__":
  main()
