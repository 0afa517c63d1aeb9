"""Depth pictures, read by OpenEXR's own library and by PyAV."""

import av
import numpy as np
import OpenEXR
import pytest

from d4s_jax.formats import depth


def ramp(height=5, width=7):
  numbers = np.random.default_rng(0).uniform(0.5, 60, (height, width)).astype(np.float32)
  numbers[0, 0], numbers[-1, 0] = 0, 1.25
  return numbers


@pytest.mark.parametrize("size", [(5, 7), (64, 48), (1, 1)])
def test_exr_keeps_every_bit(tmp_path, size):
  want = np.asarray(np.random.default_rng(0).uniform(0, 100, size), np.float32)
  depth.write_exr(tmp_path / "a.exr", want)
  with OpenEXR.File(str(tmp_path / "a.exr")) as file:
    (channel,) = file.channels().values()
    np.testing.assert_array_equal(channel.pixels, want)


def test_png_has_millimetres_the_right_way_up(tmp_path):
  depth.write_png(tmp_path / "a.png", ramp())
  with av.open(str(tmp_path / "a.png")) as file:
    (frame,) = file.decode(video=0)
    found = frame.to_ndarray()
  assert found.dtype == np.uint16
  np.testing.assert_allclose(found / 1000, ramp(), atol=0.00051)
  assert found[-1, 0] == 1250 and found[0, 0] == 0


def test_png_refuses_what_its_bits_do_not_hold(tmp_path):
  with pytest.raises(ValueError, match=r"A depth of 70.0 m; .* up to 65.5 m. Export .exr"):
    depth.write_png(tmp_path / "a.png", np.full((2, 2), 70, np.float32))
  assert not list(tmp_path.iterdir())
