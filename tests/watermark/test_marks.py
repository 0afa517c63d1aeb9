"""The marks: found after what files do to them, and hardly ever where they are not."""

import dataclasses
import functools
import io
import math

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d4s_jax.geometry import harmonics
from d4s_jax.geometry.deformation import identity
from d4s_jax.types import DynamicGaussians
from d4s_jax.watermark import evidence, frames, gaussians, keys

KEY, OTHER = "secret", "another"
SURE = -6


def cloud(count=3000, seed=0):
  """Gaussians of the colours that photographs have: mostly grey, browns and blues."""
  numbers = np.random.default_rng(seed)
  colors = numbers.uniform(0.1, 0.9, (count, 1)) + numbers.normal(0, 0.07, (count, 3))
  return DynamicGaussians(
    means=jnp.asarray(numbers.normal(0, 1, (count, 3)), jnp.float32),
    quaternions=jnp.tile(jnp.array([1.0, 0, 0, 0]), (count, 1)),
    raw_scales=jnp.zeros((count, 3)),
    footprints=jnp.ones(count),
    opacities=jnp.full(count, 0.9),
    harmonics=jnp.asarray(((colors - 0.5) / harmonics.C0)[:, None], jnp.float32),
    times=jnp.array([0.0, 1.0]),
    deformation=identity(2, count),
  )


def look(colors, key=KEY):
  return gaussians.detect(colors, key).log10_false


@functools.lru_cache
def pictures(count=4, side=192, seed=0):
  """Soft blobs that move: frames like those of a small scene."""
  numbers = np.random.default_rng(seed)
  places, sizes = numbers.uniform(0, side, (60, 2)), numbers.uniform(4, 40, 60)
  colors, moves = numbers.uniform(0, 1, (60, 3)), numbers.normal(0, 6, (60, 2))
  grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
  shown = np.full((count, side, side, 3), 0.5)
  for index in range(count):
    for place, size, color, move in zip(places, sizes, colors, moves):
      distance = np.sum((grid - place - index / count * move) ** 2, axis=-1)
      alpha = 0.7 * np.exp(-distance / size**2)[..., None]
      shown[index] += alpha * (color - shown[index])
  return shown.astype(np.float32)


def psnr(a, b):
  return -10 * math.log10(np.mean((np.asarray(a, np.float64) - b) ** 2))


def test_angles_are_the_same_for_ever():
  found = keys.angles("d4s_jax", "frames", 3)
  np.testing.assert_allclose(found, [3.0212667, 2.0226352, 2.7535156], atol=1e-6)
  assert (found != keys.angles("d4s_jax", "gaussians", 3)).all()
  assert (found != keys.angles("d4s_jay", "frames", 3)).all()


def test_a_scene_changes_in_blue_alone_and_little():
  scene = cloud()
  marked = gaussians.mark(scene, KEY)
  change = gaussians.colors_of(marked.harmonics) - gaussians.colors_of(scene.harmonics)
  assert not change[:, :2].any()
  assert np.abs(change[:, 2]).max() <= 4.001 / 255
  assert 1.5 / 255 < np.std(change[:, 2]) < 2.6 / 255
  for field in dataclasses.fields(scene):
    if field.name != "harmonics":
      assert getattr(marked, field.name) is getattr(scene, field.name)


def round_spz(colors):
  return (np.round(255 * (0.15 * (colors - 0.5) / harmonics.C0 + 0.5)) / 255 - 0.5) / 0.15 * (
    harmonics.C0
  ) + 0.5


CHANGES = {
  "nothing": lambda x, numbers: x,
  "order": lambda x, numbers: numbers.permutation(x),
  "half of it": lambda x, numbers: numbers.permutation(x)[: len(x) // 2],
  "8 bits": lambda x, numbers: np.round(255 * x) / 255,
  "spz": lambda x, numbers: round_spz(x),
  "half, and spz": lambda x, numbers: round_spz(numbers.permutation(x)[: len(x) // 2]),
  "noise": lambda x, numbers: x + numbers.normal(0, 1 / 255, x.shape),
  "brighter": lambda x, numbers: 1.1 * x,
  "darker": lambda x, numbers: x - 0.05,
  "strangers": lambda x, numbers: np.concatenate([x, numbers.uniform(0, 1, (len(x) // 2, 3))]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_marked_scene_is_found(change):
  marked = gaussians.colors_of(gaussians.mark(cloud(), KEY).harmonics)
  changed = change(marked, np.random.default_rng(1))
  assert look(changed) < SURE
  assert look(changed, OTHER) > -3
  assert look(change(gaussians.colors_of(cloud().harmonics), np.random.default_rng(1))) > -3


def test_a_scene_of_one_color_bears_no_evidence():
  grey = np.full((5000, 3), 0.5)
  assert look(grey) > SURE
  assert gaussians.detect(np.zeros((10, 3)), KEY).log10_false == 0


def test_the_bound_holds_for_scenes():
  colors = gaussians.colors_of(cloud(300).harmonics)
  found = [gaussians.detect(colors, f"wrong {index}") for index in range(60)]
  bounds = np.array([one.log10_false for one in found])
  for level in (0.3, 0.1):
    assert np.mean(bounds <= math.log10(level)) <= level
  # A bound so loose that nothing comes near it would show nothing.
  assert np.mean([one.score for one in found]) > 1


def test_the_bound_holds_for_one_place():
  numbers = np.random.default_rng(0)
  values = numbers.normal(size=50) * np.exp(2j * np.pi * numbers.random(50))
  turned = 2 * np.pi * numbers.random((10_000, 50))
  scores = np.array([float(evidence.score(values, x)) for x in turned])
  for level in (1.0, 2.0):
    # Of a normal variable, whose tail the bound is near to.
    expected = 0.5 * math.erfc(level / math.sqrt(2))
    assert expected / 2 < np.mean(scores > level) <= 10 ** evidence.log10_bound(level)


def test_the_bound_is_that_of_the_best_place():
  assert evidence.log10_bound(3.0) == pytest.approx(-4.5 / math.log(10))
  assert evidence.log10_bound(3.0, 10) == pytest.approx(-4.5 / math.log(10) + 1)
  assert evidence.log10_bound(1.0, 10) == 0
  assert evidence.log10_bound(-9.0) == 0
  assert evidence.Evidence(60.0, -781.7).rate == "1e-781"
  assert evidence.Evidence(3.0, -2.0).rate == "0.01"


def test_frames_keep_46_decibels():
  shown = pictures()
  marked = frames.mark(shown, KEY)
  assert marked.dtype == np.float32
  assert 46 < psnr(marked, shown) < 47
  assert 0 <= marked.min() and marked.max() <= 1


def jpeg(pictures, quality=60):
  again = []
  for picture in pictures:
    buffer = io.BytesIO()
    Image.fromarray((255 * picture + 0.5).astype("u1")).save(buffer, "JPEG", quality=quality)
    again.append(np.asarray(Image.open(buffer), np.float32) / 255)
  return np.stack(again)


def resized(pictures, side):
  return np.stack(
    [
      np.asarray(Image.fromarray((255 * x + 0.5).astype("u1")).resize((side, side)), np.float32)
      / 255
      for x in pictures
    ]
  )


VIEWS = {
  "mirrored": lambda x: x[:, :, ::-1],
  "nothing": lambda x: x,
  "jpeg": jpeg,
  "smaller": lambda x: resized(x, 120),
  "larger": lambda x: resized(x, 300),
  "cropped": lambda x: x[:, 20:170, 31:185],
  "one frame less dark": lambda x: np.clip(1.1 * x[1:] + 0.03, 0, 1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_marked_frames_are_found(name):
  found = frames.detect(VIEWS[name](frames.mark(pictures(), KEY)), KEY)
  assert found.log10_false < SURE
  part = "a part, 78% of the height that was marked"
  places = {"cropped": part, "mirrored": "a part, 100% of the height that was marked, mirrored"}
  assert found.where == places.get(name, "the whole picture")


@pytest.mark.parametrize("name", ["nothing", "jpeg"])
def test_unmarked_frames_are_not_found(name):
  assert frames.detect(VIEWS[name](pictures()), KEY).log10_false > -3
  assert frames.detect(VIEWS[name](frames.mark(pictures(), OTHER)), KEY).log10_false > -3


def test_a_recording_may_change_its_shape():
  shown = frames.mark(pictures(), KEY)
  dragged = [shown[0, :, :width] for width in range(130, 150)]
  found = frames.detect([*dragged, *shown[:3], *resized(shown[3:], 120)], KEY)
  assert found.log10_false < SURE
  assert found.left_out == 20
  assert found.score == frames.detect([*shown[:3], *resized(shown[3:], 120)], KEY).score


def test_what_shows_no_pattern_is_no_evidence():
  for shape in ((1, 8, 8, 3), (1, 20, 400, 3), (0, 64, 64, 3), (1, 64, 64, 3)):
    assert frames.detect(np.zeros(shape, np.float32), KEY) == evidence.NOTHING
