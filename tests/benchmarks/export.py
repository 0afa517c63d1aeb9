"""Times and sizes of exports of a scene of 50,000 Gaussians at 49 times, beside gsply's writers.

python tests/benchmarks/export.py

The scene is random: a wall of Gaussians, a tenth of which move and turn along smooth curves. Real
scenes compress differently. A page holds the whole clip, other formats one moment.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time

import gsply
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.formats import page, splats  # noqa: E402
from d4s_jax.pipeline.clips import moment  # noqa: E402
from tests.formats.test_page import make  # noqa: E402


def scene(count: int, frames: int):
  """A random scene, and its metadata."""
  small, metadata = make(degree=0)
  numbers = np.random.default_rng(0)
  pick = numbers.integers(len(small.means), size=count)
  clock = np.linspace(0, 1, frames)[:, None, None]
  deformation = numbers.normal(0, 1e-4, (frames, count, 10))
  moving = numbers.random((count, 1)) < 0.1
  deformation[..., :3] += clock**2 * moving * numbers.normal(0, 0.5, (count, 3))
  deformation[..., 3:7] += [1, 0, 0, 0] + clock * moving * numbers.normal(0, 0.2, (count, 4))
  deformation[..., 3:7] /= np.linalg.norm(deformation[..., 3:7], axis=-1, keepdims=True)
  arrays = {name: np.asarray(x)[pick] for name, x in vars(small).items() if name not in (
    "times", "deformation")}  # fmt: skip
  arrays["means"] = numbers.normal(0, 2, (count, 3)).astype("f4")
  arrays["opacities"] = numbers.uniform(0.05, 1, count).astype("f4")
  times = np.linspace(0, 1, frames, dtype="f4")
  dynamic = dataclasses.replace(small, **arrays, times=times, deformation=deformation.astype("f4"))
  return dynamic, metadata


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
