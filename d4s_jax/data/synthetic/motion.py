"""Rigid motions of solids over a clip: stand, slide, roll, bounce, spin.

All five are one formula: a straight way, a turn about a fixed axis and hops, each from time 0 to 1.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

MOVING = ("slide", "roll", "bounce", "spin")
MOTIONS = ("stand", *MOVING)


@dataclasses.dataclass(frozen=True)
class Motion:
  """Where a solid is at each time, in room axes (x right, y down, z forward), metres.

  Attributes:
    kind: one of MOTIONS.
    start: position of the centre at time 0, between hops.
    way: displacement from time 0 to 1, without hops.
    ease: 0 for constant speed, 1 for a start and an end at rest.
    upright: rotation `room_from_body` at time 0.
    axis: unit axis of the turn.
    turn: angle turned from time 0 to 1, radians.
    hops: number of hops from time 0 to 1, any non-negative number.
    hop_height: metres above `start`.
    hop_phase: fraction of a hop that is over at time 0.
  """

  kind: str
  start: Float[np.ndarray, "3"]
  way: Float[np.ndarray, "3"]
  upright: Float[np.ndarray, "3 3"]
  axis: Float[np.ndarray, "3"]
  ease: float = 0.0
  turn: float = 0.0
  hops: float = 0.0
  hop_height: float = 0.0
  hop_phase: float = 0.0

  @property
  def moves(self) -> bool:
    """Whether any point of the solid moves."""
    return self.kind != "stand"

  def pose(
    self, times: Float[np.ndarray, "t"]
  ) -> tuple[Float[np.ndarray, "t 3 3"], Float[np.ndarray, "t 3"]]:
    """Rotation `room_from_body` and position of the centre at each time."""
    progress = (1 - self.ease) * times + self.ease * times**2 * (3 - 2 * times)
    position = self.start + progress[:, None] * self.way
    hop = (self.hops * times + self.hop_phase) % 1
    position[:, 1] -= 4 * self.hop_height * hop * (1 - hop)
    return about(self.axis, progress * self.turn) @ self.upright, position


def about(
  axis: Float[np.ndarray, "3"], angles: Float[np.ndarray, "*b"] | float
) -> Float[np.ndarray, "*b 3 3"]:
  """Rotation matrices about a unit axis by angles in radians (Rodrigues' formula)."""
  x, y, z = axis
  cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  angles = np.asarray(angles)[..., None, None]
  return np.eye(3) + np.sin(angles) * cross + (1 - np.cos(angles)) * (cross @ cross)
