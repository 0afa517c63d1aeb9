"""Film: clips of a video file, without cameras or depth, for the autoencoder."""

import hashlib
import os
import pathlib
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import Int, UInt8

from d4s_jax.data.identity import digest
from d4s_jax.data.wanted import Wanted
from d4s_jax.formats import arrays
from d4s_jax.formats.footage import video_stream
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras, Clip, Tracks, Views

# Frames are kept this much larger than a clip, which is cut out of them at random.
MARGIN = 1.25
# Frames apart: 12 a second of a film of 24.
_STRIDE = 2
# Mean absolute difference of neighbouring frames, of 255, from which they belong to two shots.
_CUT = 30.0
# A frame whose pixels are dark by more than this share is a title, a credit or a fade.
_DARK, _DARK_SHARE = 16, 0.6
# Of this many shots, one is held out.
_HELD_OUT = 10
_FOV = 60.0
# Bytes of a film's beginning and end that tell it from others.
_ENDS = 2**20


class Film:
  """Clips of consecutive frames of a video file, each from within one shot.

  The file is decoded once, to small frames in ~/.cache/d4s_jax/films. Every tenth shot is held out.
  Frames have no known depth (0) and no known camera (the identity), and no track is valid.

  Args:
    path: a video file.
    split: "train" or "heldout".
    kind: "mixed"; nothing is known of what moves.
    **sizes: the other fields of `Wanted`; target views are frames of the clip again.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no video, too short, or an argument is out of range.
  """

  def __init__(
    self,
    path: str,
    split: str = "train",
    kind: str = "mixed",
    **sizes: Any,
  ):
    self._wanted = wanted = Wanted(split=split, kind=kind, **sizes)
    if kind != "mixed":
      raise ValueError(f"A film has no scenes of kind {kind!r}; it serves the autoencoder alone.")
    self._path = pathlib.Path(path)
    self._file = decoded(self._path, round(MARGIN * max(wanted.height, wanted.width)))
    self._starts = starts(np.load(self._file, mmap_mode="r"), wanted.frames, split == "heldout")
    if not len(self._starts):
      raise ValueError(
        f"{path} has no shot of {_STRIDE * (wanted.frames - 1) + 1} frames for the split {split!r};"
        " expected a longer film."
      )

  def __len__(self) -> int:
    return self._wanted.length

  def contents(self) -> dict[str, Any]:
    """What tells the film from others."""
    return about(self._path)

  def read(self, index: int) -> Clip:
    """Cuts one clip out; it has no caption."""
    self._wanted.check(index, len(self))
    rng = np.random.default_rng((*self._wanted.entropy, index))
    # Opened here: a source is pickled to worker processes, and a mapped file would go as a copy.
    film = np.load(self._file, mmap_mode="r")
    start = int(rng.choice(self._starts))
    shot = film[start : start + _STRIDE * self._wanted.frames : _STRIDE][: self._wanted.frames]
    row, column = (
      int(rng.integers(there - wanted + 1))
      for there, wanted in zip(shot.shape[1:3], (self._wanted.height, self._wanted.width))
    )
    images = shot[:, row : row + self._wanted.height, column : column + self._wanted.width]
    images = images.astype(np.float32) / 255
    if rng.random() < 0.5:
      images = images[:, :, ::-1]
    chosen = np.sort(rng.integers(self._wanted.frames, size=self._wanted.views))
    source = self._take(images, np.arange(self._wanted.frames))
    dynamic: Any = np.asarray(True)
    unknown: Any = np.float32(0)
    tracked = (self._wanted.tracks, self._wanted.frames)
    nothing: Any = np.zeros(tracked, bool)
    nowhere: Any = np.zeros((*tracked, 3), np.float32)
    still: Any = np.zeros(images.shape[:-1], np.int32)
    return Clip(
      source=source,
      target=self._take(images, chosen),
      tracks=Tracks(points=nowhere, visible=nothing, valid=nothing),
      instances=still,
      dynamic=dynamic,
      scale=unknown,
      text="",
    )

  def _take(self, images, chosen: Int[np.ndarray, "v"]) -> Views:
    """Frames of the clip as views."""
    times: Any = np.linspace(0, 1, self._wanted.frames, dtype=np.float32)[chosen]
    one = np.asarray(
      camera_geometry.intrinsics_from_fov(_FOV, self._wanted.height, self._wanted.width)
    )
    intrinsics: Any = np.tile(one.astype(np.float32), (len(chosen), 1, 1))
    pose: Any = np.tile(np.eye(4, dtype=np.float32), (len(chosen), 1, 1))
    cameras = Cameras(
      world_from_camera=pose,
      intrinsics=intrinsics,
      height=self._wanted.height,
      width=self._wanted.width,
    )
    unknown: Any = np.zeros(images.shape[:-1], np.float32)[chosen]
    return Views(images=images[chosen], depth=unknown, cameras=cameras, times=times)


def starts(film: UInt8[np.ndarray, "f h w 3"], frames: int, heldout: bool):
  """First frames of the clips of a split: those whose frames are all in one shot, and none dark."""
  small = film[:, ::8, ::8].astype(np.float32)
  dark = (small.max(axis=-1) < _DARK).mean(axis=(1, 2)) > _DARK_SHARE
  cut = np.abs(np.diff(small, axis=0, prepend=small[:1])).mean(axis=(1, 2, 3)) > _CUT
  shot = np.cumsum(cut)
  length = _STRIDE * (frames - 1) + 1
  starts = np.arange(max(len(film) - length + 1, 0))
  whole = shot[starts] == shot[starts + length - 1]
  bright = np.cumsum(np.append(0, dark))
  bright = bright[starts + length] == bright[starts]
  mine = (shot[starts] % _HELD_OUT == _HELD_OUT - 1) == heldout
  return starts[whole & bright & mine]


def about(path: pathlib.Path) -> dict[str, Any]:
  """What tells a file from others: its size, beginning and end; a film may take long to read."""
  size = path.stat().st_size
  with path.open("rb") as file:
    begin = file.read(_ENDS)
    file.seek(max(0, size - _ENDS))
    return {"bytes": size, "hash of both ends": digest([begin, file.read(_ENDS)])}


def decoded(path: pathlib.Path, side: int) -> pathlib.Path:
  """The file of a film's frames whose shorter side is `side` pixels, made unless it exists."""
  if not path.is_file():
    raise FileNotFoundError(f"No film at {path}; check the path.")
  state = path.stat()
  identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {side}"
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  folder = pathlib.Path(home) / "d4s_jax" / "films"
  file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
  if not file.exists():
    arrays.write_array(file, _decode(path, side))
  return file


def _decode(path: pathlib.Path, side: int) -> UInt8[np.ndarray, "f h w 3"]:
  frames = []
  try:
    with av.open(str(path)) as container:
      stream = video_stream(container, path)
      stream.thread_type = "AUTO"
      shorter = min(stream.width, stream.height)
      size = {"width": stream.width * side // shorter, "height": stream.height * side // shorter}
      for frame in container.decode(stream):
        small = frame.reformat(**size, format="rgb24", interpolation="AREA")
        frames.append(small.to_ndarray())
  except FFmpegError as error:
    raise ValueError(f"{path} cannot be read as a video ({error}).") from error
  if not frames:
    raise ValueError(f"{path} has no frames; expected a film.")
  return np.stack(frames)
