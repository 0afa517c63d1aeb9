"""Records: bytes and back, and bytes that are none."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from d4s_jax.data import record as records
from tests.data.records import HEIGHT, WIDTH, plain_record, scene_record

WHOLE = (0, 0, HEIGHT, WIDTH)
SIZE = (HEIGHT, WIDTH)


def test_a_record_comes_back():
  record = scene_record()
  back = records.decode(records.encode(record))
  for name in ("name", "caption", "metric", "dynamic", "height", "width", "images", "depth"):
    assert getattr(back, name) == getattr(record, name), name
  for name in ("view", "times", "world_from_camera", "intrinsics"):
    np.testing.assert_array_equal(getattr(back, name), getattr(record, name))
  for name in ("points", "visible", "valid"):
    np.testing.assert_array_equal(getattr(back.tracks, name), getattr(record.tracks, name))
  bare = dataclasses.replace(
    record, world_from_camera=None, intrinsics=None, depth=None, instances=None, tracks=None
  )
  back = records.decode(records.encode(bare))
  assert back.intrinsics is back.depth is back.instances is back.tracks is None


def test_depth_is_kept_to_a_few_hundredths_of_a_percent():
  depth = np.exp(np.random.default_rng(0).uniform(-6.5, 9, (20, 30))).astype(np.float32)
  depth[0] = [0, -1, np.nan, np.inf, 1e5, 1e-4] * 5
  back = records.read_depth(records.to_depth_png(depth), (20, 30))
  np.testing.assert_allclose(back[1:], depth[1:], rtol=2e-4)
  assert not back[0].any()
  assert not records.read_depth(b"", (2, 3)).any()


def test_instances_beyond_a_byte_stay_apart_from_the_background():
  instances = np.arange(600).reshape(20, 30)
  back = records.read_instances(records.to_instance_png(instances), (20, 30))
  np.testing.assert_array_equal(back > 0, instances > 0)
  np.testing.assert_array_equal(back.ravel()[:256], np.arange(256))


def test_a_window_is_cut_and_resized():
  ramp = np.zeros((64, 128, 3), np.uint8)
  ramp[..., 0] = np.arange(128) * 2
  ramp[..., 1] = np.arange(64)[:, None] * 4
  jpeg = records.to_jpeg(ramp)
  for window, to in (((8, 16, 40, 80), (20, 40)), ((0, 0, 64, 128), (16, 32))):
    top, left, height, width = window
    image = records.read_image(jpeg, (64, 128), window, to).astype(float)
    x = left + (np.arange(to[1]) + 0.5) * width / to[1] - 0.5
    y = top + (np.arange(to[0]) + 0.5) * height / to[0] - 0.5
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(image[..., 0] - x * 2)[inner].max() < 4
    assert np.abs(image[..., 1] - y[:, None] * 4)[inner].max() < 4


def _arrays():
  return dict(safetensors.numpy.load(records.encode(scene_record())))


def _with(**changes):
  def change(arrays):
    return {**arrays, **changes}

  return change


def _about(old, new):
  def change(arrays):
    text = arrays["about"].tobytes().replace(old, new)
    return {**arrays, "about": np.frombuffer(text, np.uint8)}

  return change


BROKEN = {
  "no times": (lambda x: {k: v for k, v in x.items() if k != "times"}, "no 'times'"),
  "times missing": (lambda x: x | {"times": x["times"][:-1]}, "of shape"),
  "NaN pose": (
    lambda x: x | {"world_from_camera": np.full_like(x["world_from_camera"], np.nan)},
    "world_from_camera has NaN",
  ),
  "ends": (lambda x: x | {"images_ends": x["images_ends"][::-1].copy()}, "don't add up"),
  "version": (_about(b'"version": 1', b'"version": 9'), "version"),
  "bomb": (_about(b'"height": 48', b'"height": 9999999'), "pixels at most"),
  "no JSON": (_about(b"{", b"["), "not valid JSON"),
  "view": (lambda x: x | {"view": x["view"] + 1000}, "number of a view"),
}


@pytest.mark.parametrize("change, message", BROKEN.values(), ids=BROKEN)
def test_what_is_no_record_is_refused(change, message):
  contents = safetensors.numpy.save(change(_arrays()))
  with pytest.raises(records.CorruptRecord, match=message):
    records.decode(contents)


def test_any_damage_is_an_error_of_one_kind():
  whole = records.encode(plain_record("a/1"))
  rng = np.random.default_rng(0)
  for _ in range(300):
    damaged = bytearray(whole[: rng.integers(len(whole) + 1)])
    for _ in range(rng.integers(4)):
      if damaged:
        damaged[rng.integers(len(damaged))] = rng.integers(256)
    try:
      record = records.decode(bytes(damaged))
      records.read_image(record.images[0], (16, 16), (0, 0, 16, 16), (8, 8))
    except records.CorruptRecord:
      pass


def test_a_picture_of_another_size_is_refused_before_it_is_decoded():
  record = scene_record()
  with pytest.raises(records.CorruptRecord, match="JPEG of 64 x 48; expected 16 x 16"):
    records.read_image(record.images[0], (16, 16), (0, 0, 16, 16), (8, 8))
  with pytest.raises(records.CorruptRecord, match="cannot be read"):
    records.read_image(record.images[0][:500], SIZE, WHOLE, SIZE)
  with pytest.raises(records.CorruptRecord, match="PNG that cannot be read"):
    records.read_depth(record.images[0], SIZE)
