r"""What noise does to the counts of matches, by matcher: XFeat's, and SIFT's beside it.

  python tests/benchmarks/matches.py

Held-out embedded scenes in which nothing moves but the camera, at 256 pixels, as `evaluate` draws
scenes, with noise that is other in each frame; and noise alone. Of each level, means over scenes of
the pairs of frames that `evaluate` compares: keypoints of a frame, matches, those that agree with a
fundamental matrix (what is reported), those of them that stay within two pixels of their own place
and those that are within four pixels of where depth and cameras say.
"""

import argparse
import functools
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.data.source import open_source  # noqa: E402
from d4s_jax.evaluation import matching, xfeat  # noqa: E402
from d4s_jax.evaluation.settings import Settings  # noqa: E402
from d4s_jax.geometry import cameras as pinhole  # noqa: E402
from d4s_jax.types import Views  # noqa: E402

LEVELS = (0.0, 0.05, 0.15, 0.4)
# Pixels.
STAYS, RIGHT = 2.0, 4.0


def places(views: Views, a: int, b: int, pixels: np.ndarray) -> np.ndarray:
  """Where what is seen at pixels [n 2] of frame a is in frame b."""
  columns, rows = np.clip(np.floor(pixels).astype(int), 0, 255).T
  points = pinhole.unproject(np.asarray(views.depth)[a], views.cameras[a])[rows, columns]
  return np.asarray(pinhole.project(points, views.cameras[b])[0])


def counts(views: Views, video: np.ndarray, features, match) -> list[float]:
  """Keypoints, matches, inliers, those that stay and those that are right, means over pairs."""
  once = functools.cache(lambda number: features(video[number]))
  rows = []
  for a, b in matching.pairs(len(video), Settings().gap):
    matches = match(once(a), once(b))
    agreed = matches[matching.agreeing(matches)]
    first, second = agreed[:, :2], agreed[:, 2:]
    stay = np.abs(first - second).max(axis=1, initial=0) < STAYS
    right = np.abs(places(views, a, b, first) - second).max(axis=1, initial=0) < RIGHT
    rows.append((len(once(a)[0]), len(matches), len(agreed), stay.sum(), right.sum()))
  return np.mean(rows, axis=0).tolist()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--scenes", type=int, default=4)
  options = parser.parse_args()
  size = {"frames": 9, "height": 256, "width": 256, "views": 1}
  source = open_source("synthetic", split="heldout", kind="static", **size)
  scenes = [source.read(number).source for number in range(options.scenes)]
  detect = functools.partial(xfeat.detect, weights=xfeat.load_weights())
  matchers = {
    "XFeat": (detect, xfeat.match),
    "SIFT": (matching.sift_features, matching.sift_match),
  }
  print(
    f"{'':16} " + " ".join(f"{x:>10}" for x in ("keypoints", "matches", "agree", "stay", "right"))
  )

  def row(name: str, videos: list[np.ndarray], tools) -> None:
    found = [counts(*x, *tools) for x in zip(scenes, videos, strict=True)]
    print(f"{name:16} " + " ".join(f"{x:10.0f}" for x in np.mean(found, axis=0)), flush=True)

  for name, tools in matchers.items():
    rng = np.random.default_rng(0)
    for level in LEVELS:
      noisy = [np.asarray(x.images) + level * rng.normal(size=x.images.shape) for x in scenes]
      row(f"{name}, {level:g}", [np.clip(x, 0, 1).astype(np.float32) for x in noisy], tools)
    alone = [rng.random(x.images.shape, np.float32) for x in scenes]
    row(f"{name}, noise alone", alone, tools)


if __name__ == "__main__":
  main()
