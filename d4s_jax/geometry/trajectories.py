"""Camera paths by name.

A path starts at the identity: the camera of the input photograph, which is the world origin. Axes
are the camera's own: x right, y down, z forward. Paths are made on the host, in NumPy.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from d4s_jax.geometry import poses


def spiral(
  phase: Float[np.ndarray, "f"], distance: float, pivot: float
) -> Float[np.ndarray, "f 4 4"]:
  """Winds outwards to a radius of `distance` in one turn, upwards first, eyes on the pivot."""
  angle = 2 * np.pi * phase
  radius = distance * phase
  eye = np.stack([radius * np.sin(angle), -radius * np.cos(angle), 0 * phase], axis=-1)
  return _watch(eye, pivot)


def forward(
  phase: Float[np.ndarray, "f"], distance: float, pivot: float
) -> Float[np.ndarray, "f 4 4"]:
  """Moves ahead by `distance` at constant speed."""
  del pivot
  return _move(phase * distance, (0, 0, 1))


def backward(
  phase: Float[np.ndarray, "f"], distance: float, pivot: float
) -> Float[np.ndarray, "f 4 4"]:
  """Moves back by `distance` at constant speed."""
  del pivot
  return _move(phase * distance, (0, 0, -1))


def up(phase: Float[np.ndarray, "f"], distance: float, pivot: float) -> Float[np.ndarray, "f 4 4"]:
  """Rises by `distance` at constant speed."""
  del pivot
  return _move(phase * distance, (0, -1, 0))


def down(
  phase: Float[np.ndarray, "f"], distance: float, pivot: float
) -> Float[np.ndarray, "f 4 4"]:
  """Sinks by `distance` at constant speed."""
  del pivot
  return _move(phase * distance, (0, 1, 0))


def orbit(
  phase: Float[np.ndarray, "f"], distance: float, pivot: float
) -> Float[np.ndarray, "f 4 4"]:
  """Circles the pivot once, to the right first; the last pose is the first again."""
  del distance
  angle = 2 * np.pi * (phase % 1)
  eye = np.stack([np.sin(angle), 0 * phase, 1 - np.cos(angle)], axis=-1)
  return _watch(pivot * eye, pivot)


TRAJECTORIES: dict[str, Callable[..., np.ndarray]] = {
  "spiral": spiral,
  "forward": forward,
  "backward": backward,
  "up": up,
  "down": down,
  "orbit": orbit,
}


def trajectory(
  name: str, frames: int, *, distance: float = 0.5, pivot: float = 2.0
) -> Float[np.ndarray, "f 4 4"]:
  """The poses `world_from_camera` of a named path, float32; the first is the identity.

  Args:
    name: one of TRAJECTORIES.
    frames: number of poses, evenly spaced in time; a single one is the start.
    distance: how far the camera gets from its start, metres; the orbit takes it from the pivot.
    pivot: distance, metres, in front of the first camera of the point that `spiral` watches and
      `orbit` circles.

  Raises:
    ValueError: the name is unknown, or a number is not positive.
  """
  if name not in TRAJECTORIES:
    raise ValueError(f"Unknown trajectory {name!r}; expected one of {', '.join(TRAJECTORIES)}.")
  for label, value in (("frames", frames), ("distance", distance), ("pivot", pivot)):
    if not 0 < value < np.inf:
      raise ValueError(f"Trajectory {name!r} with {label}={value}; expected a positive number.")
  path = TRAJECTORIES[name](np.linspace(0, 1, frames), distance, pivot)
  return path.astype(np.float32)


def _move(distance, direction):
  path = np.tile(np.eye(4), (len(distance), 1, 1))
  path[:, :3, 3] = distance[:, None] * np.asarray(direction)
  return path


def _watch(eye, pivot):
  target = np.broadcast_to([0.0, 0.0, pivot], eye.shape)
  return poses.look_at(eye, target, np.broadcast_to([0.0, -1.0, 0.0], eye.shape))
