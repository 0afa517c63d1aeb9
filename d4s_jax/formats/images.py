"""Photographs in, pictures out. Images are float32 [h w 3], sRGB-encoded RGB in [0, 1]."""

import io
import os
import pathlib
import struct
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from d4s_jax.formats import atomic

# Larger than any phone's default photograph; 80 million pixels take 1 GB as float32.
MAX_PIXELS = 80_000_000

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Everything that Pillow's decoders raise on a file that is not what it claims to be.
BROKEN = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  struct.error,
  RuntimeError,  # of AVIF
  Image.DecompressionBombError,
)

_MARGIN = 6
_CAPTION = 20


def read_image(
  path: str | os.PathLike, most_pixels: int = MAX_PIXELS
) -> Float[np.ndarray, "h w 3"]:
  """Reads a photograph of any size and mode.

  Turned upright by its EXIF tag; transparency is laid over white; grey becomes RGB; 16 bits keep
  their precision where the file is grey. Of an animation, the first frame.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no readable image, or has more than `most_pixels` pixels.
  """
  return _opened(path, most_pixels, _to_rgb)


def read_pixels(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
  """Reads a frame as `read_image` does, in 8 bits, but for its colours whatever alpha says.

  Frames of datasets are opaque, and DynamicReplica's alpha isn't meant, by its authors' loader.
  """

  def to_pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
      return to_bytes(_to_rgb(image))
    return np.asarray(image.convert("RGB"))

  return _opened(path, MAX_PIXELS, to_pixels)


def _opened(
  path: str | os.PathLike, most_pixels: int, read: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"No image at {path}; check the path.")
  return _decoded(path, str(path), most_pixels, read)


def decode(contents: bytes, name: str) -> Float[np.ndarray, "h w 3"]:
  """The picture that the contents of a file hold, as `read_image` reads it; `name` is for errors.

  Raises:
    ValueError: it is no readable image, or has more than MAX_PIXELS pixels.
  """
  return _decoded(io.BytesIO(contents), name, MAX_PIXELS, _to_rgb)


def _decoded(
  file: pathlib.Path | io.BytesIO,
  path: str,
  most_pixels: int,
  read: Callable[[Image.Image], np.ndarray],
) -> np.ndarray:
  try:
    # The limit is ours: Pillow would print a warning of its own before the error.
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    with quiet, Image.open(file, formats=FORMATS) as image:
      small = image.width * image.height <= most_pixels
      if small:
        return read(ImageOps.exif_transpose(image))
  except BROKEN as error:
    raise ValueError(
      f"{path} cannot be read as an image ({error}). Expected an intact "
      f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} file."
    ) from error
  raise ValueError(
    f"{path} has {image.width} x {image.height} pixels; expected at most {most_pixels}. "
    "Scale it down first."
  )


def _to_rgb(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I"):
    grey = np.asarray(image, np.float32) / 65535
    return np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=-1)
  if image.mode == "F":
    raise ValueError("its floating-point pixels have no agreed white; save it with 8 or 16 bits")
  if not image.has_transparency_data:
    return np.asarray(image.convert("RGB"), np.float32) / 255
  layers = np.asarray(image.convert("RGBA"), np.float32) / 255
  alpha = layers[..., 3:]
  return layers[..., :3] * alpha + (1 - alpha)


def write_image(path: str | os.PathLike, image: Float[np.ndarray, "h w 3"]) -> None:
  """Writes an image as PNG, JPEG or WebP, by the suffix; values beyond [0, 1] are clipped."""
  with atomic.replacing(path) as temporary:
    Image.fromarray(to_bytes(image)).save(temporary)


def jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int, comment: str = "") -> bytes:
  """The contents of a JPEG."""
  contents = io.BytesIO()
  Image.fromarray(pixels).save(contents, "JPEG", quality=quality, comment=comment)
  return contents.getvalue()


def to_bytes(image: Float[np.ndarray, "*b h w 3"]) -> np.ndarray:
  """The nearest of 256 levels, uint8; values beyond [0, 1] are clipped.

  Raises:
    ValueError: a value is NaN or infinite.
  """
  image = np.asarray(image, np.float32)
  if not np.isfinite(image).all():
    raise ValueError("The image holds NaN or infinite values; expected numbers in [0, 1].")
  return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def center_crop(
  height: int, width: int, target_height: int, target_width: int
) -> tuple[float, float, float, float]:
  """The largest centred window of the target's aspect: (top, left, height, width), pixels.

  `fit` keeps this window, so it turns the camera of the photograph into that of the fitted image:
  the horizontal tangent of the half field of view shrinks by window width / width.
  """
  aspect = target_width / target_height
  crop_height, crop_width = min(height, width / aspect), min(width, height * aspect)
  return (height - crop_height) / 2, (width - crop_width) / 2, crop_height, crop_width


def fit(
  image: Float[np.ndarray, "h w 3"], height: int, width: int
) -> Float[np.ndarray, "height width 3"]:
  """Cuts the `center_crop` out and resizes it with an antialiased bicubic filter."""
  source_height, source_width, _ = image.shape
  top, left, crop_height, crop_width = center_crop(source_height, source_width, height, width)
  box = (left, top, left + crop_width, top + crop_height)
  channels = []
  for channel in np.moveaxis(np.asarray(image, np.float32), -1, 0):
    whole = Image.fromarray(np.ascontiguousarray(channel))
    channels.append(np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC, box=box)))
  return np.clip(np.stack(channels, axis=-1), 0, 1)


def contact_sheet(
  path: str | os.PathLike,
  rows: Mapping[str, Float[np.ndarray, "n h w 3"]],
  columns: int = 6,
  cell_height: int = 160,
) -> None:
  """Writes a picture that shows clips as rows, each under its caption.

  Args:
    path: the picture to write.
    rows: caption to images; rows may differ in length and size.
    columns: how many images of a row are shown, evenly spaced in it, first and last included.
    cell_height: height of a shown image in pixels; its width keeps the aspect.

  Raises:
    ValueError: there is no row, or a row without images.
  """
  if not rows or not all(len(images) for images in rows.values()):
    raise ValueError("A contact sheet without images; expected at least one in every row.")
  shown = {caption: _cells(images, columns, cell_height) for caption, images in rows.items()}
  width = max(sum(cell.width + _MARGIN for cell in cells) for cells in shown.values()) + _MARGIN
  row_height = _CAPTION + cell_height + _MARGIN
  sheet = Image.new("RGB", (width, row_height * len(shown) + _MARGIN), "white")
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
  for row, (caption, cells) in enumerate(shown.items()):
    top = row * row_height + _MARGIN
    draw.text((_MARGIN, top), caption, fill="black", font=font)
    left = _MARGIN
    for cell in cells:
      sheet.paste(cell, (left, top + _CAPTION))
      left += cell.width + _MARGIN
  with atomic.replacing(path) as temporary:
    sheet.save(temporary)


def _cells(images, columns: int, height: int) -> list[Image.Image]:
  images = np.asarray(images)
  chosen = np.unique(np.linspace(0, len(images) - 1, columns).round().astype(int))
  width = max(1, round(height * images.shape[2] / images.shape[1]))
  size, bicubic = (width, height), Image.Resampling.BICUBIC
  return [Image.fromarray(to_bytes(images[i])).resize(size, bicubic) for i in chosen]
