"""Frames of a video file by number, decoded when they are asked for."""

import pathlib

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import Float

from d4s_jax.formats.images import MAX_PIXELS


class Footage:
  """A video of which single frames are read.

  Rising numbers are cheap: decoding goes on from the last frame, and a frame that lies before it
  starts again at the first. Not to be shared between threads.

  Attributes:
    path: the file.
    height: pixels.
    width: pixels.
    frames: number of frames that the file claims to have; a truncated one has fewer.
    fps: frames a second that it claims.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the header.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no video, or its pictures are too large.
    """
    if not path.is_file():
      raise FileNotFoundError(f"No video at {path}; fetch it again.")
    self.path = path
    self._container = None
    try:
      with av.open(str(path)) as container:
        stream = container.streams.video[0]
        self.height, self.width = stream.codec_context.height, stream.codec_context.width
        rate = stream.average_rate
        self.fps = float(rate) if rate else 0.0
        self.frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    except (FFmpegError, IndexError) as error:
      raise ValueError(
        f"{path} cannot be read as a video ({error}); expected an intact mp4. Fetch it again."
      ) from error
    if not (0 < self.height * self.width <= MAX_PIXELS and self.frames > 0):
      raise ValueError(
        f"{path} has {self.frames} frames of {self.width} x {self.height} pixels; expected some,"
        f" of at most {MAX_PIXELS} pixels."
      )

  def read(self, number: int) -> Float[np.ndarray, "h w 3"]:
    """One frame, RGB in [0, 1]; the first has number 0.

    Raises:
      ValueError: the file ends before it, or is damaged there.
    """
    if self._container is None or number < self._next:
      self.close()
      self._open()
    if self._damage:
      raise ValueError(self._damage)
    try:
      while True:
        frame = next(self._decoded)
        self._next += 1
        if self._next > number:
          break
    except (StopIteration, FFmpegError) as error:
      self._damage = f"{self.path} ends after {self._next} frames and claims {self.frames};"
      if isinstance(error, FFmpegError):
        self._damage = f"{self.path} is damaged at frame {self._next} ({error});"
      self._damage += " fetch it again."
      raise ValueError(self._damage) from None
    return frame.to_ndarray(format="rgb24").astype(np.float32) / 255

  def close(self) -> None:
    """Closes the file; reading opens it again."""
    if self._container is not None:
      self._container.close()
    self._container = None

  def _open(self) -> None:
    try:
      self._container = av.open(str(self.path))
    except (FFmpegError, OSError) as error:
      raise ValueError(f"{self.path} cannot be read as a video ({error}).") from error
    # Not with a thread for each frame, which would lose the frames before a damaged one.
    self._decoded, self._next = self._container.decode(video=0), 0
    self._damage = ""
