"""Depth pictures that keep their numbers: OpenEXR in metres, 16-bit PNG in millimetres.

0 is unknown in both. EXR has one channel of 32-bit floats, "Y", which is where readers of grey
pictures look.
"""

import os
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float
from PIL import Image

from d4s_jax.formats import atomic
from d4s_jax.formats.visible import write_bytes

# Of a PNG's step, metres.
MILLIMETRE = 1e-3
_MOST = 65535


def write_exr(path: str | os.PathLike, depth: Float[np.ndarray, "h w"]) -> None:
  """Writes z-depth in metres; nothing is lost."""
  height, width = depth.shape
  context = av.CodecContext.create("exr", "w")
  context.width, context.height, context.pix_fmt = width, height, "grayf32le"
  context.options = {"compression": "zip16"}
  context.time_base = Fraction(1)
  frame = av.VideoFrame(width, height, "grayf32le")
  plane = frame.planes[0]
  rows = np.zeros((height, plane.line_size // 4), "<f4")
  rows[:, :width] = depth
  plane.update(rows.tobytes())
  packets = [*context.encode(frame), *context.encode(None)]
  write_bytes(path, b"".join(map(bytes, packets)))


def write_png(path: str | os.PathLike, depth: Float[np.ndarray, "h w"]) -> None:
  """Writes z-depth in whole millimetres.

  Raises:
    ValueError: something is farther than 16 bits of millimetres reach.
  """
  steps = np.round(np.asarray(depth, np.float64) / MILLIMETRE)
  if steps.max() > _MOST:
    raise ValueError(
      f"A depth of {depth.max():.1f} m; a 16-bit PNG holds millimetres up to"
      f" {_MOST * MILLIMETRE:.1f} m. Export .exr."
    )
  with atomic.replacing(path) as temporary:
    Image.fromarray(steps.astype(np.uint16)).save(temporary, "PNG")


# By suffix.
WRITERS: dict[str, Callable[[str | os.PathLike, np.ndarray], None]] = {
  ".exr": write_exr,
  ".png": write_png,
}
