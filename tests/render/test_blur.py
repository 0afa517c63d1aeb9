"""The blur of a larger picture."""

import numpy as np
import pytest

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.render import render
from d4s_jax.render.projection import BLUR
from tests.render import scenes


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("backend", ["reference", "tiled", "cpu"])
def test_with_the_blur_of_the_small_picture_a_large_one_shows_the_same(backend, antialiased):
  scene, cameras = scenes.gaussians(), scenes.cameras(views=2)
  large = pinhole.resize(cameras, 3 * cameras.height, 3 * cameras.width)
  options = {"backend": backend, "antialiased": antialiased}
  small = render(scene, cameras, **options)
  found = render(scene, large, blur=9 * BLUR, **options)
  # Every third pixel has the middle of a pixel of the small picture.
  for name in ("image", "alpha"):
    every = getattr(found, name)[:, 1::3, 1::3]
    np.testing.assert_allclose(every, getattr(small, name), atol=2e-4)


def test_a_blur_is_positive():
  with pytest.raises(ValueError, match="blur is 0.0; expected a positive number"):
    render(scenes.gaussians(), scenes.cameras(views=1), blur=0.0)
