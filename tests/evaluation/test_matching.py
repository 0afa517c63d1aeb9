"""Counting matches: pairs, SIFT, epipolar geometry, matchers of the user's own."""

import sys
import types

import numpy as np
import pytest

from d4s_jax.evaluation import matching


def test_pairs_are_a_gap_apart_and_cover_the_video():
  assert matching.pairs(9, 4) == [(0, 4), (4, 8)]
  assert matching.pairs(3, 4) == [(0, 2)]
  with pytest.raises(ValueError, match="1 frame"):
    matching.pairs(1, 4)


def view(shift, seed=0):
  """Two walls of blocks, the near one shifted twice as far."""
  rng = np.random.default_rng(seed)
  far, near = (np.kron(rng.random((20, 40, 1)), np.ones((8, 8, 3))) for _ in range(2))
  image = far[:, shift : shift + 200].copy()
  image[80:] = near[80:, 2 * shift : 2 * shift + 200]
  return image.astype(np.float32)


def test_sift_matches_two_views_of_one_scene_and_not_two_scenes():
  one, other, foreign = (matching.sift_features(x) for x in (view(0), view(10), view(0, seed=5)))
  same = matching.inliers(matching.sift_match(one, other))
  assert same > 50
  assert matching.inliers(matching.sift_match(one, foreign)) < 0.2 * same


def test_the_average_falls_with_noise_and_is_the_same_twice():
  rng = np.random.default_rng(1)
  video = np.stack([view(shift) for shift in (0, 6, 12)])
  noisy = np.clip(video + 0.5 * rng.normal(size=video.shape), 0, 1).astype(np.float32)
  tools = matching.sift_features, matching.sift_match
  found = [matching.average(x, 1, *tools) for x in (video, video, noisy)]
  assert found[0] == found[1] > 2 * found[2]


def identical(first, second):
  del second
  rows, columns = np.mgrid[0 : first.shape[0] : 4, 0 : first.shape[1] : 4]
  places = np.stack([columns.ravel(), rows.ravel()], axis=1)
  return np.concatenate([places, places], axis=1)


def test_a_matcher_of_the_users_own_is_taken_by_name_and_checked(monkeypatch, tmp_path):
  module = types.ModuleType("mine")
  vars(module)["identical"] = identical
  monkeypatch.setitem(sys.modules, "mine", module)
  assert matching.plug_in("mine:identical")(view(0), view(0)).shape == (2000, 4)
  with pytest.raises(ValueError, match="expected PACKAGE.MODULE:FUNCTION"):
    matching.plug_in("no_such_package:function")
  (tmp_path / "broken_matcher.py").write_text("raise RuntimeError('no GPU')")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match=r"to be there \(RuntimeError: no GPU\)"):
    matching.plug_in("broken_matcher:function")
  with pytest.raises(ValueError, match=r"array of \(3, 2\)"):
    matching.checked_matches(np.zeros((3, 2)))
