"""GIF and animated WebP, read by FFmpeg and by Pillow."""

import av
import numpy as np
import pytest
from PIL import Image

from d4s_jax.formats.video import write_video


def clip(frames=6, height=24, width=32):
  """A ramp to the right and down that grows lighter."""
  x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
  light = np.linspace(0.3, 1, frames)[:, None, None]
  return np.stack([light * x, light * y, light * (0.5 + 0 * x)], axis=-1).astype(np.float32)


def test_gif_read_by_ffmpeg(tmp_path):
  write_video(tmp_path / "a.gif", clip(), 12)
  with av.open(str(tmp_path / "a.gif")) as file:
    frames = list(file.decode(video=0))
    found = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]) / 255
    starts = [float(frame.pts * frame.time_base) for frame in frames]
  # 256 colours a frame.
  assert np.abs(found - clip()).mean() < 0.02
  np.testing.assert_allclose(starts, np.arange(6) / 12, atol=0.0051)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_both_loop_and_last_as_long_as_asked(tmp_path, suffix):
  write_video(tmp_path / f"a.{suffix}", clip(), 24)
  total, pictures = 0, []
  with Image.open(tmp_path / f"a.{suffix}") as image:
    assert image.n_frames == 6 and image.info["loop"] == 0
    for index in range(6):
      image.seek(index)
      pictures.append(np.asarray(image.convert("RGB"), np.float32) / 255)
      total += image.info["duration"]
  assert total == pytest.approx(250, abs=6)
  assert np.abs(np.stack(pictures) - clip()).mean() < 0.02
