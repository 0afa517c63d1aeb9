"""Videos, H.264 unless the suffix says else, and depth made visible.

Frames are float32 [f h w 3] in [0, 1].
"""

import itertools
import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import Float, Shaped
from matplotlib import colormaps

from d4s_jax.formats import animation, atomic, images

# Constant quality; 18 is hardly told from the original by eye.
_QUALITY = "18"
# Of depth, from far to near, in bytes: the viewer's page has them too. Without the map's darkest
# tenth, so that far is not taken for unknown.
DEPTH_COLORS = np.asarray(colormaps["inferno"](np.arange(25, 256), bytes=True), np.uint8)[:, :3]
_ANIMATIONS = {".gif": animation.write_gif, ".webp": animation.write_webp}
SUFFIXES = (".mp4", *_ANIMATIONS)
# Of a video that is in memory whole: 1000 frames of 512 x 512, 3.2 GB.
_MOST_FRAMES, _MOST_PIXELS = 1000, 270_000_000


def write_video(
  path: str | os.PathLike, frames: Float[np.ndarray, "f h w 3"], fps: float, comment: str = ""
) -> None:
  """Writes a video: .gif and .webp as `animation` says, all else as an mp4 that plays everywhere.

  The mp4 is H.264, yuv420p, BT.709, header first; an odd height or width is made even by repeating
  the last row or column. The file appears whole or not at all.

  Args:
    path: the file.
    frames: RGB in [0, 1].
    fps: frames a second.
    comment: kept in the metadata of an mp4.

  Raises:
    ValueError: frames of another shape, no frames, NaN, or a frame rate out of range.
    OSError: the file cannot be written, the disk being full for example.
  """
  frames = np.asarray(frames)
  if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
    raise ValueError(f"Video frames of shape {frames.shape}; expected [frames, height, width, 3].")
  if not 0.1 <= fps < 1000:
    raise ValueError(f"A video of {fps} frames per second; expected 0.1 or more, below 1000.")
  if write := _ANIMATIONS.get(pathlib.Path(path).suffix.lower()):
    write(path, frames, fps)
    return
  pixels = images.to_bytes(frames)
  _, height, width, _ = pixels.shape
  pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
  with atomic.replacing(path) as temporary:
    try:
      _encode(temporary, pixels, Fraction(fps).limit_denominator(1001), comment)
    except FFmpegError as error:
      raise OSError(error.errno, f"{error.strerror} while writing the video", str(path)) from error


def _encode(
  path: pathlib.Path, pixels: Shaped[np.ndarray, "f h w 3"], rate: Fraction, comment: str
) -> None:
  options = {"movflags": "+faststart"}
  with av.open(str(path), "w", format="mp4", options=options) as container:
    if comment:
      container.metadata["comment"] = comment
    stream = container.add_stream("libx264", rate=rate, options={"crf": _QUALITY})
    stream.height, stream.width = pixels.shape[1:3]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    for image in pixels:
      frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
      )
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def read_video(path: str | os.PathLike) -> Float[np.ndarray, "f h w 3"]:
  """Reads all frames of a video.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no readable video, or longer than `check_length` allows.
  """
  decoded, pixels = [], 0
  for frame in _decoded(path):
    pixels += frame[..., 0].size
    check_length(path, len(decoded) + 1, pixels)
    decoded.append(frame)
  return np.stack(decoded) / np.float32(255)


def check_length(path: str | os.PathLike, frames: int, pixels: int) -> None:
  """Refuses a video that is too much for the memory.

  Args:
    path: of the video.
    frames: that it has at least.
    pixels: of all these together.

  Raises:
    ValueError: it has more than 1000 frames, or more than 270 million pixels.
  """
  if frames > _MOST_FRAMES:
    raise ValueError(f"{path} has more than {_MOST_FRAMES} frames; cut it first.")
  if pixels > _MOST_PIXELS:
    raise ValueError(
      f"{path} has more than {_MOST_PIXELS} pixels in all its frames; cut it, or make it smaller."
    )


def first_frames(path: str | os.PathLike, most: int) -> Iterator[Float[np.ndarray, "h w 3"]]:
  """The first frames of a video, at most `most`, one at a time; raises as `read_video` does."""
  for frame in itertools.islice(_decoded(path), most):
    yield frame.astype(np.float32) / 255


def _decoded(path: str | os.PathLike) -> Iterator[Shaped[np.ndarray, "h w 3"]]:
  """The frames of a video, bytes."""
  if not pathlib.Path(path).exists():
    raise FileNotFoundError(f"No video at {path}; check the path.")
  empty = True
  try:
    with av.open(str(path)) as container:
      for frame in container.decode(video=0):
        empty = False
        yield frame.to_ndarray(format="rgb24")
  except (FFmpegError, IndexError) as error:
    raise ValueError(f"{path} cannot be read as a video ({error}); expected an mp4.") from error
  if empty:
    raise ValueError(f"{path} has no frames; expected a video.")


def frame_rate(path: str | os.PathLike) -> float | None:
  """Frames a second of a video, as its file says; None if it doesn't.

  Raises:
    ValueError: it is no readable video.
  """
  try:
    with av.open(str(path)) as container:
      rate = container.streams.video[0].average_rate
  except (FFmpegError, IndexError) as error:
    raise ValueError(f"{path} cannot be read as a video ({error}); expected an mp4.") from error
  return None if rate is None else float(rate)


def colorize_depth(
  depth: Float[np.ndarray, "*f h w"], near: float | None = None, far: float | None = None
) -> Float[np.ndarray, "*f h w 3"]:
  """Shows z-depth in a perceptual colour map, near bright, unknown (0) black.

  Colours are even in 1 / depth, where a reconstruction's errors are even too. One scale serves all
  frames.

  Args:
    depth: metres; 0 where unknown.
    near: depth shown brightest; by default 2% of the known pixels are nearer.
    far: depth shown darkest; by default 2% of the known pixels are farther.
  """
  depth = np.asarray(depth, np.float32)
  known = np.isfinite(depth) & (depth > 0)
  inverse = np.where(known, 1 / np.where(known, depth, 1), 0)
  low, high = np.percentile(inverse[known], [2, 98]) if known.any() else (0, 1)
  low = low if far is None else 1 / far
  high = high if near is None else 1 / near
  level = np.clip((inverse - low) / max(high - low, 1e-6), 0, 1)
  colors = DEPTH_COLORS.astype(np.float32)[(level * (len(DEPTH_COLORS) - 1)).astype(np.uint8)] / 255
  return np.where(known[..., None], colors, np.float32(0))
