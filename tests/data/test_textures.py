"""Textures: contrast, no seams, no period, nothing finer than the level of detail asked for."""

import numpy as np
import pytest

from d4s_jax.data.synthetic import textures

ATLAS = textures.atlas(0, 0)


def picture(texture, pixels_per_tile, size=128, corner=(0.3, 0.7)):
  """A square picture of a texture seen straight on."""
  position = np.arange(size, dtype=np.float32) / np.float32(pixels_per_tile)
  v, u = (x.ravel() for x in np.meshgrid(position + corner[0], position + corner[1], indexing="ij"))
  footprint = np.full(u.shape, 1 / pixels_per_tile, np.float32)
  return textures.lookup(texture, u, v, footprint).reshape(size, size)


def test_atlas_depends_on_its_seed_alone():
  assert ATLAS.shape[0] == textures.COUNT
  np.testing.assert_array_equal(textures.atlas.__wrapped__(0, 0), ATLAS)
  assert not np.array_equal(textures.atlas(0, 1), ATLAS)
  assert ATLAS.min() > -0.2 and ATLAS.max() < 1.2


@pytest.mark.parametrize("texture", range(textures.COUNT))
@pytest.mark.parametrize("pixels_per_tile", [40, 110, 500])
def test_wavelengths_are_longer_than_the_limit(texture, pixels_per_tile):
  image = picture(ATLAS[texture], pixels_per_tile) * np.hanning(128)[:, None] * np.hanning(128)
  energy = np.abs(np.fft.fft2(image - image.mean())) ** 2
  frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
  # The roll-off is gradual and the window leaks: short waves keep a small share.
  assert energy[frequency > 1.5 / textures.SHORTEST_PIXELS].sum() < 0.03 * energy.sum()


@pytest.mark.parametrize("texture", range(textures.COUNT))
def test_contrast_and_no_period_within_a_tile(texture):
  image = picture(ATLAS[texture], 128)
  assert image.std() > 0.1
  spectrum = np.abs(np.fft.fft2(image - image.mean())) ** 2
  likeness = np.fft.ifft2(spectrum).real
  likeness /= likeness[0, 0]
  shift = np.minimum(np.arange(128), 128 - np.arange(128))
  far = np.hypot(*np.meshgrid(shift, shift)) > 40
  assert likeness[far].max() < 0.5


def test_lookup_is_continuous_across_the_tile_border_and_between_levels():
  step = np.float32(1e-4)
  u = np.array([-step, step, 1 - step, 1 + step], np.float32)
  values = textures.lookup(ATLAS[2], u, np.full(4, 0.4, np.float32), np.full(4, 2e-3, np.float32))
  np.testing.assert_allclose(values, values[0], atol=0.02)
  footprint = np.geomspace(1e-4, 0.3, 400).astype(np.float32)
  still = np.full(400, 0.37, np.float32)
  by_level = textures.lookup(ATLAS[2], still, still, footprint)
  assert np.abs(np.diff(by_level)).max() < 0.06  # no seam: neighbouring levels are alike
