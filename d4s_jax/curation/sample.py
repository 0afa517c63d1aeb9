"""A small copy of a clip, on which the stages measure: few frames, few pixels."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8

from d4s_jax.types import Cameras, Tracks

# Most frames, and pixels of the shorter side.
FRAMES, SIDE = 25, 120


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
  """Evenly spaced frames of a clip's first view.

  Attributes:
    images: of the frames.
    cameras: of the small pictures; None if unknown.
    depth: z-depth, 0 where unknown; None if there is none.
    moving: pixels of what moves, as the dataset knows it; None if it doesn't.
    tracks: over these frames; None if there are none.
    fps: of these frames, 1 / seconds; 0 if times are no seconds.
    metric: whether lengths are metres.
  """

  images: UInt8[np.ndarray, "f h w 3"]
  cameras: Cameras | None = None
  depth: Float[np.ndarray, "f h w"] | None = None
  moving: Bool[np.ndarray, "f h w"] | None = None
  tracks: Tracks | None = None
  fps: float = 0.0
  metric: bool = False

  def grey(self) -> Float[np.ndarray, "f h w"]:
    """Brightness in [0, 1]."""
    return self.images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255


def chosen(count: int) -> np.ndarray:
  """Which of so many frames are in the sample."""
  return np.unique(np.linspace(0, count - 1, min(count, FRAMES)).round().astype(int))
