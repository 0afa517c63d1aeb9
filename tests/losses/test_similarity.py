"""SSIM: parity with torchmetrics, closed forms, behaviour."""

import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.losses.similarity import ssim


def images(seed=0, shape=(2, 24, 30, 3)):
  return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parity
def test_it_is_that_of_torchmetrics():
  torch = pytest.importorskip("torch")
  theirs = pytest.importorskip("torchmetrics.functional.image")
  x = images()
  y = np.clip(x + 0.2 * images(1), 0, 1)
  pair = [torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in (x, y)]
  _, full = theirs.structural_similarity_index_measure(
    *pair, data_range=1.0, reduction="none", return_full_image=True
  )
  # It averages over the borders too, whose windows it fills by reflection; the paper does not.
  want = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
  np.testing.assert_allclose(ssim(jnp.asarray(x), jnp.asarray(y)), want, atol=2e-5)


def test_one_for_equal_images_and_less_the_more_noise():
  x = images(shape=(1, 32, 32, 3))
  np.testing.assert_allclose(ssim(jnp.asarray(x), jnp.asarray(x)), 1, atol=1e-6)
  found = [
    float(ssim(jnp.asarray(x), jnp.asarray(x + s * images(2, x.shape)))[0]) for s in (0.1, 1)
  ]
  assert 1 > found[0] > found[1]


def test_flat_images_have_the_closed_form_of_their_means():
  x, y = jnp.full((1, 12, 12, 3), 0.25), jnp.full((1, 12, 12, 3), 0.75)
  want = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
  # Variances are differences of means of squares: 1e-7 beside the constant of 9e-4.
  np.testing.assert_allclose(ssim(x, y), want, rtol=1e-3)


def test_too_small_images_are_refused():
  with pytest.raises(ValueError, match="Images of 10x30; SSIM needs 11"):
    ssim(jnp.zeros((10, 30, 3)), jnp.zeros((10, 30, 3)))
