import gc
import pathlib

import av
import numpy as np
import pytest

from d4s_jax.curation import units
from d4s_jax.data.film import Film
from d4s_jax.formats import footage as footages
from d4s_jax.formats.footage import Footage
from tests.curation.footage import texture
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
    assert frame.dtype == np.uint8
    np.testing.assert_allclose(frame.mean() / 255, 0.1 + 0.04 * number, atol=0.012)
  footage.close()
  np.testing.assert_allclose(footage.read(5).mean() / 255, 0.3, atol=0.012)


@pytest.mark.parametrize("options", [{"g": "250", "bf": "0"}, {"g": "7", "bf": "3"}, {"bf": "4"}])
def test_frames_are_those_of_decoding_all(tmp_path, options):
  """Bit for bit, in any order, with and without times that are known: also before key frames."""
  moving = [np.roll(texture(0, 64, 96), 3 * number, axis=1) for number in range(40)]
  video(tmp_path / "a.mp4", moving, 24, options)
  with av.open(str(tmp_path / "a.mp4")) as container:
    whole = [(x.pts, x.to_ndarray(format="rgb24")) for x in container.decode(video=0)]
  known = Footage(tmp_path / "a.mp4", [pts for pts, _ in whole[5:]])
  assert known.frames == 35
  footage, rng = Footage(tmp_path / "a.mp4"), np.random.default_rng(0)
  orders = [range(40), range(0, 40, 7), range(39, -1, -1), rng.permutation(40), [3, 30, 31, 5, 5]]
  for number in [int(x) for order in orders for x in order]:
    np.testing.assert_array_equal(footage.read(number), whole[number][1])
    if number >= 5:
      np.testing.assert_array_equal(known.read(number - 5), whole[number][1])


def test_few_frames_are_decoded_for_few_that_are_asked_for(path, monkeypatch):
  """Pictures that nothing is predicted from are skipped, and so is what precedes a key frame."""
  footage, decoded = Footage(path), []
  whole = footages._decoded
  monkeypatch.setattr(
    footages, "_decoded", lambda *arguments: (decoded.append(x.pts) or x for x in whole(*arguments))
  )
  footage.read(15)
  assert len(decoded) <= 8
  decoded.clear()
  with av.open(str(path)) as container:
    stamps = sorted(packet.pts for packet in container.demux(video=0) if packet.size)
  known = Footage(path, stamps[17:])
  known.read(0)
  assert len(decoded) <= 8
  known.close()
  known.read(1)
  assert len(decoded) <= 16


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").is_dir(), reason="counts files by Linux")
def test_a_video_that_is_forgotten_is_closed(path):
  """At once: what PyAV doesn't close it never frees, 50 KB each time a clip is read."""

  def is_open():
    return any(x.exists() and x.samefile(path) for x in pathlib.Path("/proc/self/fd").iterdir())

  gc.disable()
  try:
    footage = Footage(path)
    footage.read(3)
    assert is_open()
    del footage
    assert not is_open()
  finally:
    gc.enable()


def test_a_truncated_video_has_the_frames_before_its_end(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) * 2 // 3])
  footage = Footage(path)
  np.testing.assert_allclose(footage.read(0).mean() / 255, 0.1, atol=0.012)
  with pytest.raises(ValueError, match="fälm.mp4 (ends after|is damaged at frame).*fetch it again"):
    footage.read(19)
  # It can still be asked for what is there.
  np.testing.assert_allclose(footage.read(1).mean() / 255, 0.14, atol=0.012)


def test_a_video_of_a_codec_that_nobody_has(path, tmp_path, monkeypatch):
  """One damaged letter in the name of the codec, to whoever decodes."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  before, _, after = path.read_bytes().rpartition(b"avc1")
  path.write_bytes(before + b"avz1" + after)
  for read in (
    lambda: Footage(path),
    lambda: Film(str(path), frames=5, height=32, width=32),
    lambda: units.spans(units.Unit("videos", str(tmp_path), path.name), 9, 5, print),
  ):
    with pytest.raises(
      ValueError, match="fälm.mp4 cannot be read as a video .no decoder .*Fetch the file"
    ):
      read()


def test_no_videos(path, tmp_path):
  for content in (b"", b"hello", path.read_bytes()[:200]):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="a.mp4 (cannot be read as a video|has 0 frames)"):
      Footage(tmp_path / "a.mp4")
  with pytest.raises(FileNotFoundError, match="No video at .*none.mp4"):
    Footage(tmp_path / "none.mp4")
