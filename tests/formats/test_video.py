import av
import jaxtyping
import numpy as np
import pytest

from d4s_jax.formats import video
from tests.support import full_disk


def clip(frames=5, height=32, width=48):
  """A smooth moving gradient, which H.264 keeps well."""
  y, x = np.mgrid[:height, :width] / 64
  phase = np.linspace(0, 1, frames)[:, None, None]
  channels = [0.5 + 0.4 * np.sin(3 * (x + y + phase + k)) for k in range(3)]
  return np.stack(channels, axis=-1).astype(np.float32)


def test_round_trip(tmp_path):
  frames = clip()
  video.write_video(tmp_path / "a.mp4", frames, fps=8)
  decoded = video.read_video(tmp_path / "a.mp4")
  assert decoded.shape == frames.shape
  # Colour at half resolution and lossy coding; a wrong matrix or range would be off by 0.05.
  assert np.abs(decoded - frames).mean() < 0.02
  assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_it_plays_everywhere(tmp_path):
  video.write_video(tmp_path / "a.mp4", clip(6), fps=23.976)
  with av.open(str(tmp_path / "a.mp4")) as container:
    stream = container.streams.video[0]
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert stream.codec_context.colorspace == 1  # BT.709.
    assert stream.frames == 6
    assert float(stream.average_rate) == pytest.approx(23.976, abs=1e-3)
  contents = (tmp_path / "a.mp4").read_bytes()
  assert contents.index(b"moov") < contents.index(b"mdat")


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0.2, 0.3, 0.9), (1, 1, 1), (0, 0, 0)])
def test_flat_colours_survive(tmp_path, colour):
  frames = np.broadcast_to(np.array(colour, np.float32), (2, 16, 16, 3))
  video.write_video(tmp_path / "a.mp4", frames, fps=8)
  np.testing.assert_allclose(video.read_video(tmp_path / "a.mp4"), frames, atol=0.02)


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (7, 64)])
def test_odd_sizes_are_padded_to_even(tmp_path, size):
  frames = clip(3, *size)
  video.write_video(tmp_path / "a.mp4", frames, fps=8)
  decoded = video.read_video(tmp_path / "a.mp4")
  height, width = size
  assert decoded.shape == (3, height + height % 2, width + width % 2, 3)
  assert np.abs(decoded[:, :height, :width] - frames).mean() < 0.03


@pytest.mark.parametrize(
  ("frames", "fps", "message"),
  [
    (np.zeros((2, 8, 8)), 8, "expected .frames, height, width, 3."),
    (np.zeros((0, 8, 8, 3)), 8, "expected .frames, height, width, 3."),
    (np.full((2, 8, 8, 3), np.nan), 8, "NaN or infinite"),
    (np.zeros((2, 8, 8, 3)), 0, "0 frames per second"),
  ],
)
def test_what_is_no_video_is_refused(tmp_path, monkeypatch, frames, fps, message):
  # Callers have no hook that checks shapes before.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  with pytest.raises(ValueError, match=message):
    video.write_video(tmp_path / "a.mp4", frames, fps)
  assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_video(tmp_path):
  path = tmp_path / "a.mp4"
  video.write_video(path, clip(2), fps=8)
  before = path.read_bytes()
  noise = np.random.default_rng(0).uniform(size=(8, 64, 64, 3))
  with full_disk(2048), pytest.raises(OSError, match="a.mp4"):
    video.write_video(path, noise, fps=8)
  assert path.read_bytes() == before
  assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_broken_and_missing_videos_are_named(tmp_path, monkeypatch):
  (tmp_path / "text.mp4").write_text("not a video")
  with pytest.raises(ValueError, match="text.mp4 cannot be read as a video"):
    video.read_video(tmp_path / "text.mp4")
  with pytest.raises(FileNotFoundError, match="No video at"):
    video.read_video(tmp_path / "nowhere.mp4")
  video.write_video(tmp_path / "long.mp4", clip(5), fps=8)
  frames, height, width, _ = video.read_video(tmp_path / "long.mp4").shape
  for limit, most, what in (
    ("_MOST_FRAMES", frames - 1, "4 frames; cut it"),
    ("_MOST_PIXELS", frames * height * width - 1, r"\d+ pixels in all its frames; cut it, or"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(video, limit, most)
      with pytest.raises(ValueError, match=f"long.mp4 has more than {what}"):
        video.read_video(tmp_path / "long.mp4")


def test_near_is_bright_unknown_is_black_and_the_scale_is_fixed():
  depth = np.tile(np.linspace(1, 10, 200, dtype=np.float32), (2, 3, 1))
  depth[1] *= 2
  depth[0, 0, 0] = 0
  depth[0, 0, 1] = np.nan
  colors = video.colorize_depth(depth)
  assert colors.shape == (2, 3, 200, 3) and colors.dtype == np.float32
  np.testing.assert_array_equal(colors[0, 0, :2], 0)
  brightness = colors.sum(axis=-1)[0, 1]
  assert (np.diff(brightness) <= 0).all() and brightness[0] > 2 > 0.1 < brightness[-1]
  # The same depth has the same colour in both frames.
  first, second = np.argmin(np.abs(depth[0, 1] - 5)), np.argmin(np.abs(depth[1, 1] - 5))
  np.testing.assert_allclose(colors[0, 1, first], colors[1, 1, second], atol=0.02)


def test_stated_limits_are_used():
  colors = video.colorize_depth(np.array([[1.0, 2.0, 4.0]]), near=2, far=4)
  np.testing.assert_array_equal(colors[0, 0], colors[0, 1])
  assert colors[0, 1].sum() > colors[0, 2].sum() > 0


def test_depth_that_is_unknown_everywhere_is_black():
  np.testing.assert_array_equal(video.colorize_depth(np.zeros((2, 4, 4))), 0)
