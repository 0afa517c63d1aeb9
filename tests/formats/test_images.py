import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from d4s_jax.formats import images

RED = [200, 0, 0]


def saved(path, array, mode=None, **options):
  Image.fromarray(np.asarray(array), mode).save(path, **options)
  return path


def test_colours_and_orientation_of_the_array(tmp_path):
  pixels = np.zeros((2, 3, 3), np.uint8)
  pixels[1, 2] = [255, 128, 0]
  image = images.read_image(saved(tmp_path / "a.png", pixels))
  assert image.shape == (2, 3, 3) and image.dtype == np.float32
  np.testing.assert_allclose(image[1, 2], [1, 128 / 255, 0], atol=1e-7)


def test_exif_turns_the_photograph_upright(tmp_path):
  pixels = np.zeros((16, 32, 3), np.uint8)
  pixels[:, :16] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # The camera was held turned: show it a quarter turn clockwise.
  image = images.read_image(saved(tmp_path / "a.jpg", pixels, exif=exif, quality=95))
  assert image.shape == (32, 16, 3)
  assert image[:14].min() > 0.9 and image[18:].max() < 0.1


def test_grey_and_palette_and_cmyk_become_rgb(tmp_path):
  grey = np.full((4, 4), 51, np.uint8)
  np.testing.assert_allclose(images.read_image(saved(tmp_path / "g.png", grey)), 0.2, atol=1e-6)
  red = Image.new("RGB", (4, 4), tuple(RED))
  red.quantize(4).save(tmp_path / "p.png")
  red.convert("CMYK").save(tmp_path / "c.tif")
  for name in ("p.png", "c.tif"):
    np.testing.assert_allclose(
      images.read_image(tmp_path / name)[0, 0], np.array(RED) / 255, atol=0.01
    )


def test_sixteen_bits_keep_their_precision(tmp_path):
  grey = np.array([[0, 1000, 1001, 65535]], np.uint16)
  image = images.read_image(saved(tmp_path / "a.png", grey))
  np.testing.assert_allclose(image[0, :, 1], grey[0] / 65535, atol=1e-7)


def test_transparency_is_laid_over_white(tmp_path):
  pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
  image = images.read_image(saved(tmp_path / "a.png", pixels))
  np.testing.assert_allclose(image[0], [[200 / 255, 0, 0], [1, 1, 1], [0.8, 0.8, 0.8]], atol=1e-6)
  palette = Image.new("P", (2, 2), 0)
  palette.putpalette(RED + [0, 0, 0])
  palette.save(tmp_path / "p.png", transparency=0)
  np.testing.assert_array_equal(images.read_image(tmp_path / "p.png"), 1)


def test_a_missing_photograph_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="No image at .*nowhere.png; check the path"):
    images.read_image(tmp_path / "nowhere.png")


def broken_files(folder):
  (folder / "text.png").write_text("not an image")
  (folder / "empty.jpg").write_bytes(b"")
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  whole = saved(folder / "whole.png", noise).read_bytes()
  (folder / "half.png").write_bytes(whole[: len(whole) // 2])
  damaged = bytearray(whole)
  damaged[30] ^= 0xFF
  (folder / "damaged.png").write_bytes(damaged)
  (folder / "folder.png").mkdir()
  (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
  Image.fromarray(np.zeros((2, 2), np.float32)).save(folder / "float.tif")
  avif = saved(folder / "whole.avif", noise).read_bytes()
  (folder / "bits.avif").write_bytes(avif.replace(b"iloc", b"ilox"))
  names = "text.png", "empty.jpg", "half.png", "damaged.png", "folder.png", "page.eps"
  return (*names, "float.tif", "bits.avif")


def test_every_broken_file_gives_one_clear_error(tmp_path):
  for name in broken_files(tmp_path):
    with pytest.raises(ValueError, match=f"{name} cannot be read as an image .*Expected an intact"):
      images.read_image(tmp_path / name)


def test_decompression_bombs_are_refused_before_they_unpack(tmp_path):
  path = saved(tmp_path / "bomb.png", np.zeros((100, 100), np.uint8))
  with pytest.raises(ValueError, match="100 x 100 pixels; expected at most 9999"):
    images.read_image(path, most_pixels=9_999)
  # A header that claims 50,000 x 50,000 pixels: more than Pillow itself admits.
  header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
  chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
  (tmp_path / "claim.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
  with pytest.raises(ValueError, match="claim.png"):
    images.read_image(tmp_path / "claim.png")


def test_center_crop_by_hand():
  assert images.center_crop(100, 200, 64, 64) == (0, 50, 100, 100)
  assert images.center_crop(300, 200, 50, 100) == (100, 0, 100, 200)


def test_fit_keeps_the_centre_and_does_not_alias():
  wide = np.zeros((40, 120, 3), np.float32)
  wide[:, 40:80] = 1
  # The filter looks beyond the cut at its two edge columns.
  assert images.fit(wide, 20, 20)[:, 1:-1].min() > 0.99
  # One-pixel stripes have no place in an image a quarter the size: they must become grey.
  stripes = np.zeros((64, 64, 3), np.float32)
  stripes[:, ::2] = 1
  np.testing.assert_allclose(images.fit(stripes, 16, 16)[:, 2:-2], 0.5, atol=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (33, 17)])
def test_fit_takes_any_size(shape):
  image = np.full((*shape, 3), 0.25, np.float32)
  fitted = images.fit(image, 16, 24)
  assert fitted.shape == (16, 24, 3) and fitted.dtype == np.float32
  np.testing.assert_allclose(fitted, 0.25, atol=1e-6)


def test_write_image_rounds_clips_and_leaves_nothing_else(tmp_path):
  image = np.array([[[0.5, -1, 2]]], np.float32)
  images.write_image(tmp_path / "new" / "a.png", image)
  np.testing.assert_allclose(
    images.read_image(tmp_path / "new" / "a.png"), [[[128 / 255, 0, 1]]], atol=1e-6
  )
  assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_failed_write_keeps_the_old_picture(tmp_path):
  path = tmp_path / "a.png"
  images.write_image(path, np.zeros((2, 2, 3)))
  before = path.read_bytes()
  with pytest.raises(ValueError, match="NaN or infinite"):
    images.write_image(path, np.full((2, 2, 3), np.nan))
  assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_contact_sheet_shows_first_and_last_of_every_row(tmp_path):
  ramp = np.linspace(0, 1, 9, dtype=np.float32)[:, None, None, None]
  clip = np.broadcast_to(ramp * [1, 0, 0], (9, 8, 16, 3))
  still = np.broadcast_to(np.array([0.0, 1.0, 0.0]), (1, 8, 8, 3))
  images.contact_sheet(
    tmp_path / "preview.png", {"clip": clip, "still": still}, columns=3, cell_height=40
  )
  sheet = images.read_image(tmp_path / "preview.png")
  # Three cells of 80 x 40, margins of 6, captions of 20 above each row.
  assert sheet.shape == (2 * (20 + 40 + 6) + 6, 3 * (80 + 6) + 6, 3)
  row = 6 + 20 + 20
  for column, level in enumerate((0, 128 / 255, 1)):
    np.testing.assert_allclose(sheet[row, 6 + column * 86 + 40], [level, 0, 0], atol=0.01)
  np.testing.assert_allclose(sheet[row + 66, 6 + 20], [0, 1, 0], atol=0.01)
  # The caption has left ink.
  assert sheet[6:26].min() < 0.5


def test_an_empty_contact_sheet_is_refused(tmp_path):
  for rows in ({}, {"clip": np.zeros((0, 4, 4, 3))}):
    with pytest.raises(ValueError, match="expected at least one"):
      images.contact_sheet(tmp_path / "preview.png", rows)
  assert not list(tmp_path.iterdir())
