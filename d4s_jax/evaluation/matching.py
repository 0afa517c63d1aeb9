"""Matches between frames of a video that agree with one epipolar geometry.

How many a matcher finds says whether the frames show one scene. The count depends on the matcher,
on the size of the pictures, on the gap and on the threshold; all are in the protocol.
"""

import functools
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from d4s_jax.evaluation import xfeat
from d4s_jax.evaluation.metric import foreign

Matches = Float[np.ndarray, "n 4"]
Matcher = Callable[[np.ndarray, np.ndarray], Matches]

# SIFT: the second best may have at most this share of the best's distance.
RATIO = 0.8
# Pixels between a match and its epipolar line.
REACH = 2.0
SIFT = "sift-colmap/ratio.8-mutual"
_LEAST = 8


def pairs(frames: int, gap: int) -> list[tuple[int, int]]:
  """Numbers of the frames that are compared: t and t + gap for t = 0, gap, 2 gap, ...

  A video that is not longer than the gap has one pair, its first and last frame.

  Raises:
    ValueError: there is one frame.
  """
  if frames < 2:
    raise ValueError(f"A video of {frames} frame; matches need at least 2.")
  if frames <= gap:
    return [(0, frames - 1)]
  return [(t, t + gap) for t in range(0, frames - gap, gap)]


def inliers(matches: Matches) -> int:
  """Matches within REACH pixels of their epipolar lines, of the fundamental matrix of RANSAC."""
  return int(np.sum(agreeing(matches)))


def agreeing(matches: Matches) -> Bool[np.ndarray, "n"]:
  """Which ones those are."""
  if len(matches) < _LEAST:
    return np.zeros(len(matches), bool)
  colmap = _colmap()
  options = colmap.RANSACOptions()
  options.max_error, options.random_seed = REACH, 0
  options.num_threads = 1
  with foreign("pycolmap"):
    found = colmap.estimate_fundamental_matrix(matches[:, :2], matches[:, 2:], options)
  return np.zeros(len(matches), bool) if found is None else found["inlier_mask"]


def average(video: Float[np.ndarray, "f h w 3"], gap: int, features: Callable, match: Callable):
  """Mean number of inliers over the pairs of a video.

  Args:
    video: RGB in [0, 1].
    gap: see `pairs`.
    features: of a frame.
    match: of the features of two frames, to matches.
  """
  once = functools.cache(lambda number: features(video[number]))
  counts = [inliers(match(once(a), once(b))) for a, b in pairs(len(video), gap)]
  return float(np.mean(counts))


def sift_features(image: Float[np.ndarray, "h w 3"]) -> xfeat.Keypoints:
  """Places and descriptors that COLMAP's SIFT finds in the mean of the colours."""
  grey = np.ascontiguousarray(image.mean(axis=-1), np.float32)
  with foreign("pycolmap"):
    places, descriptors = _sift().extract_from_float32_array(grey)
  found = np.array([(place.x, place.y) for place in places], np.float64).reshape(-1, 2)
  described = np.asarray(descriptors.data, np.float32)
  norm = np.linalg.norm(described, axis=1, keepdims=True)
  return found, described / np.maximum(norm, 1e-12)


def sift_match(first: xfeat.Keypoints, second: xfeat.Keypoints) -> Matches:
  """Mutual nearest neighbours that are clearly nearer than the second nearest."""
  if min(len(first[0]), len(second[0])) < 2:
    return np.zeros((0, 4))
  similar = first[1] @ second[1].T
  there, back = similar.argmax(axis=1), similar.argmax(axis=0)
  rows = np.arange(len(there))
  two = -np.partition(-similar, 1, axis=1)[:, :2]
  best, other = (np.sqrt(np.maximum(2 - 2 * two[:, i], 0)) for i in (0, 1))
  kept = (back[there] == rows) & (best < RATIO * other)
  return np.concatenate([first[0][rows[kept]], second[0][there[kept]]], axis=1)


def plug_in(place: str) -> Matcher:
  """A matcher of the user's own, from PACKAGE.MODULE:FUNCTION.

  The function takes two pictures [h w 3] in [0, 1] and returns matches [n 4] in pixels; whatever
  it raises is a ValueError of the matcher.

  Raises:
    ValueError: there is none.
  """
  _, found = _found(place)

  def match(first: Float[np.ndarray, "h w 3"], second: Float[np.ndarray, "h w 3"]) -> Matches:
    with foreign(f"config.matcher={place}"):
      matches = found(first, second)
    return checked_matches(matches)

  return match


def source(place: str) -> bytes:
  """Contents of the file of a plug-in's module: whose numbers they are depends on it.

  Raises:
    ValueError: there is none.
  """
  module, _ = _found(place)
  file = getattr(module, "__file__", None)
  if file is None:
    raise ValueError(f"config.matcher is {place!r}; expected a module that is a file.")
  return pathlib.Path(file).read_bytes()


def _found(place: str) -> tuple[Any, Any]:
  """The module and the function."""
  name, _, function = place.partition(":")
  try:
    module = importlib.import_module(name)
    return module, getattr(module, function)
  except Exception as error:  # whatever a module of others' raises when it is imported
    raise ValueError(
      f"config.matcher is {place!r}; expected PACKAGE.MODULE:FUNCTION to be there"
      f" ({type(error).__name__}: {error})."
    ) from error


def checked_matches(matches: ArrayLike) -> Matches:
  """Raises ValueError unless a matcher returned finite numbers of the right shape."""
  array = np.asarray(matches, np.float64)
  if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
    raise ValueError(f"The matcher returned an array of {array.shape}; expected [n, 4], finite.")
  return array


def _colmap() -> Any:
  colmap: Any = importlib.import_module("pycolmap")
  colmap.logging.minloglevel = colmap.logging.Level.FATAL.value
  return colmap


@functools.cache
def _sift() -> Any:
  colmap = _colmap()
  options = colmap.FeatureExtractionOptions()
  options.num_threads, options.use_gpu = 1, False
  return colmap.FeatureExtractor.create(options, device=colmap.Device.cpu)
