"""What a writer of a fixture leaves, and the truth about it."""

import dataclasses
import pathlib

import av
import numpy as np
from PIL import Image

from tests.data.datasets.world import BALL, Eye, look, to_bytes


@dataclasses.dataclass
class Written:
  """A dataset on disk with one scene that is whole.

  Attributes:
    root: its folder.
    scene: the name that the reader should give the scene.
    eyes: cameras that filmed it, by the reader's name for the camera and the number of the frame.
    world: OpenCV-like axes of the reader's world from those of the dataset's, 3x3.
    unit: metres in a unit of the dataset's world.
    height: pixels.
    width: pixels.
    balls: centre of the ball in the dataset's axes, metres, by number; None: it stands.
  """

  root: pathlib.Path
  scene: str
  eyes: dict[str, dict[int, Eye]]
  world: np.ndarray
  unit: float
  height: int
  width: int
  balls: dict[int, np.ndarray] | None = None

  def seen(self, camera: str, number: int):
    """Colours, depth in metres, what is hit in the dataset's world, and where it is the ball."""
    ball = BALL if self.balls is None else self.balls[number]
    return look(self.eyes[camera][number], self.height, self.width, 1 / self.unit, ball)

  def place(self, points):
    """Points of the dataset's world in the reader's world, metres."""
    return np.asarray(points) @ self.world.T * self.unit


def picture(path, colors, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(to_bytes(colors)).save(path, **options)


def levels(path, values):
  """A grey PNG."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(values).save(path)


def video(path, frames, fps, options=None):
  """An mp4 of hardly any loss, its index at the front."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
    stream = container.add_stream("libx264", rate=fps, options={"crf": "4", **(options or {})})
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv444p"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(to_bytes(frame), format="rgb24")))
    container.mux(stream.encode())
