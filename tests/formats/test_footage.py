import numpy as np
import pytest

from d4s_jax.formats.footage import Footage
from tests.data.datasets.writers.written import video

# Noise, so that frames take some of the file each.
NOISE = 0.1 * np.random.default_rng(0).random((20, 32, 48, 3)) - 0.05
FRAMES = [0.1 + 0.04 * number + noise - noise.mean() for number, noise in enumerate(NOISE)]


@pytest.fixture
def path(tmp_path):
  video(tmp_path / "fälm.mp4", FRAMES, 15, {"g": "8", "bf": "2"})
  return tmp_path / "fälm.mp4"


def test_frames_in_any_order(path):
  footage = Footage(path)
  assert (footage.height, footage.width, footage.frames, footage.fps) == (32, 48, 20, 15)
  for number in (0, 3, 3, 19, 2, 10, 11, 12):
    frame = footage.read(number)
    assert frame.dtype == np.float32
    np.testing.assert_allclose(frame.mean(), 0.1 + 0.04 * number, atol=0.012)
  footage.close()
  np.testing.assert_allclose(footage.read(5).mean(), 0.3, atol=0.012)


def test_a_truncated_video_has_the_frames_before_its_end(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) * 2 // 3])
  footage = Footage(path)
  np.testing.assert_allclose(footage.read(0).mean(), 0.1, atol=0.012)
  with pytest.raises(ValueError, match="fälm.mp4 (ends after|is damaged at frame).*fetch it again"):
    footage.read(19)
  # It can still be asked for what is there.
  np.testing.assert_allclose(footage.read(1).mean(), 0.14, atol=0.012)


def test_no_videos(path, tmp_path):
  for content in (b"", b"hello", path.read_bytes()[:200]):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="a.mp4 (cannot be read as a video|has 0 frames)"):
      Footage(tmp_path / "a.mp4")
  with pytest.raises(FileNotFoundError, match="No video at .*none.mp4"):
    Footage(tmp_path / "none.mp4")
