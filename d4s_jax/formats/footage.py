"""Frames of a video file by number, decoded when they are asked for."""

import bisect
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from d4s_jax.formats.images import MAX_PIXELS


class Footage:
  """A video of which single frames are read.

  Rising numbers are cheap: decoding goes on from the last frame, or from a key frame on the way. Of
  the frames between, those that no other frame is predicted from aren't decoded. One thread decodes
  (whoever reads many videos has a process for each core), and frames before a damaged one are not
  lost. Not to be shared between threads.

  Attributes:
    path: the file.
    height: pixels.
    width: pixels.
    frames: number of frames that the file claims to have; a truncated one has fewer.
    fps: frames a second that it claims.
    base: seconds in a unit of presentation times.
  """

  _container: Any = None
  _before = 0

  def __init__(self, path: pathlib.Path, stamps: Sequence[int] = ()):
    """Reads the header.

    Args:
      path: the file.
      stamps: presentation times of the frames, rising, if they are known; else each of the file's
        frames has a number, and the file is looked through for them at the first reading.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no video, or its pictures are too large.
    """
    if not path.is_file():
      raise FileNotFoundError(f"No video at {path}; fetch it again.")
    self.path = path
    self._stamps, self._keys = list(stamps), []
    # Frames whose times are known may begin anywhere in the file: the first one is sought.
    self._before = 1 << 62 if stamps else 0
    self._frames: Iterator[Any] = iter(())
    self._convert = VideoReformatter()
    # The number of the next frame; of the first one that is damaged, and what is wrong with it.
    self._next, self._damage = self._before, (0, "")
    # When the next frame is shown that is asked for, in a list that what decodes looks into.
    self._wanted = [-(1 << 62)]
    try:
      self._open()
      stream = self._stream
      self.height, self.width = stream.codec_context.height, stream.codec_context.width
      rate, base = stream.average_rate, stream.time_base
      self.fps, self.base = float(rate) if rate else 0.0, float(base) if base else 1.0
      self.frames = len(self._stamps) or stream.frames
      if not self.frames:
        self._look_through()
        self.frames = len(self._stamps)
    except FFmpegError as error:
      raise ValueError(
        f"{path} cannot be read as a video ({error}); expected an intact mp4. Fetch it again."
      ) from error
    if not (0 < self.height * self.width <= MAX_PIXELS and self.frames > 0):
      raise ValueError(
        f"{path} has {self.frames} frames of {self.width} x {self.height} pixels; expected some,"
        f" of at most {MAX_PIXELS} pixels."
      )

  def read(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
    """One frame, RGB; the first has number 0.

    Raises:
      ValueError: the file ends before it, or is damaged there.
    """
    try:
      if self._container is None:
        self._open()
      if not self._stamps:
        self._look_through()
      if self._damage[1] and number >= self._damage[0]:
        raise ValueError(self._damage[1])
      if number >= len(self._stamps):
        raise ValueError(
          f"{self.path} ends after {len(self._stamps)} frames and claims {self.frames}; fetch it"
          " again."
        )
      frame = self._seek(number) if self._jumps(number) else self._forward(number)
    except FFmpegError as error:
      # Where decoding stood, or began.
      at = min(self._next, number)
      self._damage = at, f"{self.path} is damaged at frame {at} ({error}); fetch it again."
      self.close()
      raise ValueError(self._damage[1]) from error
    if frame is None:
      self.close()
      raise ValueError(f"{self.path} has no frame {number} where it should be; fetch it again.")
    self._next = number + 1
    # One for all frames, in this thread: to make one, or threads, takes longer than converting.
    return self._convert.reformat(frame, format="rgb24", threads=1).to_ndarray()

  def close(self) -> None:
    """Closes the file; reading opens it again."""
    if self._container is not None:
      self._container.close()
    self._container, self._frames, self._next = None, iter(()), self._before

  def __del__(self) -> None:
    # PyAV 18 never frees a file that is open when it is forgotten.
    self.close()

  def _open(self) -> None:
    self.close()
    self._container = av.open(str(self.path))
    self._stream = video_stream(self._container, self.path)
    self._stream.codec_context.thread_count = 1
    self._frames = _decoded(self._container, self._stream, self._wanted)

  def _look_through(self) -> None:
    """Notes when frames are shown, and which are key frames: no frame is decoded for it."""
    assert self._container is not None
    try:
      for packet in self._container.demux(self._stream):
        if packet.size and packet.pts is not None and not packet.is_discard:
          self._stamps.append(packet.pts)
          self._keys += [packet.pts] if packet.is_keyframe else []
    except FFmpegError:  # the file ends here
      pass
    self._stamps.sort()
    self._keys.sort()
    # What was looked through is behind.
    self._next = 1 << 62

  def _jumps(self, number: int) -> bool:
    """Whether decoding goes on elsewhere: back, or past a key frame."""
    if number < self._next:
      return True
    here = bisect.bisect_right(self._keys, self._stamps[self._next])
    return bisect.bisect_right(self._keys, self._stamps[number]) > here

  def _seek(self, number: int) -> Any:
    assert self._container is not None
    self._container.seek(self._stamps[number], stream=self._stream)
    self._frames = _decoded(self._container, self._stream, self._wanted)
    frame = self._forward(number)
    if frame is None:
      # A key frame is decoded before frames that are shown before it, and some containers seek to
      # it for those.
      self._open()
      frame = self._forward(number)
    return frame

  def _forward(self, number: int) -> Any:
    """The frame, if it is still to come."""
    stamp = self._wanted[0] = self._stamps[number]
    for frame in self._frames:
      if frame.pts is not None and frame.pts >= stamp:
        return frame if frame.pts == stamp else None
    return None


def video_stream(container: Any, path: pathlib.Path) -> Any:
  """The pictures of an opened video.

  Raises:
    ValueError: it has none, or none that can be decoded.
  """
  stream = next(iter(container.streams.video), None)
  if stream is None or stream.codec_context is None:
    why = "it has no pictures" if stream is None else "no decoder knows its pictures"
    raise ValueError(
      f"{path} cannot be read as a video ({why}). Fetch the file again, or remove it."
    )
  return stream


def _decoded(container: Any, stream: Any, wanted: list[int]) -> Iterator[Any]:
  """The frames from here on; of those shown before the time in `wanted`, not all are decoded.

  No method: with a reference to its `Footage` both would only go when cycles are collected.
  """
  context, skipping = stream.codec_context, None
  for packet in container.demux(stream):
    early = packet.pts is not None and packet.pts < wanted[0]
    if early != skipping:
      context.skip_frame, skipping = "NONREF" if early else "DEFAULT", early
    try:
      frames = packet.decode()
    except FFmpegError:
      # What is decoded already, and waits for its turn.
      yield from context.decode(None)
      raise
    yield from frames
