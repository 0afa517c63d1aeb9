"""Features of videos: what they depend on, and what Frechet distances of them do."""

import numpy as np
import pytest

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation.distances import frechet
from d4s_jax.evaluation.i3d import features

COUNT = 5


@pytest.fixture(scope="module")
def videos():
  source = SyntheticScenes(split="heldout", views=0)
  return [np.asarray(source.read(index).source.images) for index in range(COUNT)]


@pytest.fixture(scope="module")
def known(videos):
  return features(videos)


def test_logits_of_each_video_whatever_the_batches(videos, known):
  assert known.shape == (COUNT, 400)
  # Trained on other things, but it tells them apart.
  assert np.std(known, axis=0).mean() > 0.1
  np.testing.assert_allclose(features(iter(videos[:2]), batch_size=4), known[:2], atol=1e-3)


def test_order_of_the_frames_counts(videos, known):
  backwards = features([video[::-1] for video in videos[:1]])
  assert np.abs(backwards - known[:1]).max() > 0.05


def test_the_distance_grows_with_noise(videos, known):
  rng = np.random.default_rng(0)
  noises = [rng.normal(size=video.shape).astype(np.float32) for video in videos]
  found = [
    frechet(known, features([np.clip(v + level * n, 0, 1) for v, n in zip(videos, noises)]))
    for level in (0.05, 0.2)
  ]
  assert frechet(known, known) < 1e-6 < found[0] < found[1]


@pytest.mark.parametrize(
  "given, message",
  [
    ([], "No videos"),
    ([np.zeros((5, 8, 8, 3))], "5 frames; expected at least 9"),
    ([np.zeros((9, 8, 8, 3)), np.zeros((9, 8, 9, 3))], "expected one shape for all"),
  ],
)
def test_what_it_cant_take_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    features(given)
