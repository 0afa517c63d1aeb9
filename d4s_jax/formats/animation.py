"""Moving pictures for web pages and chats: GIF and animated WebP, by Pillow."""

import os

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from d4s_jax.formats import atomic, images

# GIF counts hundredths of a second, and browsers slow down what is faster than fifty a second.
_GIF_TICK, _GIF_LEAST = 10, 20
_PALETTE_PIXELS = 20_000
_WEBP_QUALITY = 90


def write_gif(path: str | os.PathLike, frames: Float[np.ndarray, "f h w 3"], fps: float) -> None:
  """Writes a GIF that loops: 256 colours a frame, times in whole hundredths of a second."""
  pictures = [_with_256_colours(x) for x in images.to_bytes(frames)]
  ends = np.round(np.arange(len(pictures) + 1) * 1000 / fps / _GIF_TICK) * _GIF_TICK
  durations = np.maximum(np.diff(ends), _GIF_LEAST).astype(int).tolist()
  with atomic.replacing(path) as temporary:
    first, *others = pictures
    first.save(
      temporary, "GIF", save_all=True, append_images=others, duration=durations, loop=0, disposal=1
    )


def _with_256_colours(pixels: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
  """In the nearest colours of a palette that some of the pixels made: six times as fast."""
  step = max(1, int((pixels.shape[0] * pixels.shape[1] / _PALETTE_PIXELS) ** 0.5))
  some = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step])).quantize(256)
  return Image.fromarray(pixels).quantize(palette=some, dither=Image.Dither.NONE)


def write_webp(path: str | os.PathLike, frames: Float[np.ndarray, "f h w 3"], fps: float) -> None:
  """Writes an animated WebP that loops: lossy at quality 90, times in whole milliseconds."""
  pictures = [Image.fromarray(x) for x in images.to_bytes(frames)]
  ends = np.round(np.arange(len(pictures) + 1) * 1000 / fps)
  with atomic.replacing(path) as temporary:
    first, *others = pictures
    durations = np.diff(ends).astype(int).tolist()
    options = {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
    first.save(temporary, "WEBP", quality=_WEBP_QUALITY, method=2, **options)
