"""Camera paths by name, with parameters.

A path starts at the identity: the camera of the input photograph, which is the world origin. Axes
are the camera's own: x right, y down, z forward. Paths are made on the host, in NumPy.
"""

import inspect
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from d4s_jax.geometry import poses


def spiral(
  phase: Float[np.ndarray, "f"], distance: float = 0.5, pivot: float = 2.0, turns: float = 1.0
) -> Float[np.ndarray, "f 4 4"]:
  """Winds outwards to a radius of `distance` in `turns`, upwards first, eyes on the pivot."""
  angle = 2 * np.pi * turns * phase
  radius = distance * phase
  eye = np.stack([radius * np.sin(angle), -radius * np.cos(angle), 0 * phase], axis=-1)
  return _watch(eye, pivot)


def forward(phase: Float[np.ndarray, "f"], distance: float = 0.5) -> Float[np.ndarray, "f 4 4"]:
  """Moves ahead by `distance` at constant speed."""
  return _move(phase * distance, (0, 0, 1))


def backward(phase: Float[np.ndarray, "f"], distance: float = 0.5) -> Float[np.ndarray, "f 4 4"]:
  """Moves back by `distance` at constant speed."""
  return _move(phase * distance, (0, 0, -1))


def up(phase: Float[np.ndarray, "f"], distance: float = 0.5) -> Float[np.ndarray, "f 4 4"]:
  """Rises by `distance` at constant speed."""
  return _move(phase * distance, (0, -1, 0))


def down(phase: Float[np.ndarray, "f"], distance: float = 0.5) -> Float[np.ndarray, "f 4 4"]:
  """Sinks by `distance` at constant speed."""
  return _move(phase * distance, (0, 1, 0))


def orbit(
  phase: Float[np.ndarray, "f"], degrees: float = 360.0, radius: float = 2.0
) -> Float[np.ndarray, "f 4 4"]:
  """Circles the point `radius` ahead, to the right first; after 360 degrees it is back."""
  angle = 2 * np.pi * (phase * degrees / 360 % 1)
  eye = np.stack([np.sin(angle), 0 * phase, 1 - np.cos(angle)], axis=-1)
  return _watch(radius * eye, radius)


# Training draws its paths from these (`data.synthetic`): another one makes all scenes others.
TRAJECTORIES: dict[str, Callable[..., np.ndarray]] = {
  "spiral": spiral,
  "forward": forward,
  "backward": backward,
  "up": up,
  "down": down,
  "orbit": orbit,
}
# The most of each parameter; those of turns may be negative: the other way.
_MOST = {"degrees": 3600.0, "turns": 10.0, "frames": math.inf}
_SIGNED = ("degrees", "turns")
_MOST_METRES = 10_000.0


def trajectory(name: str, frames: int, **parameters: float) -> Float[np.ndarray, "f 4 4"]:
  """The poses `world_from_camera` of a named path, float32; the first is the identity.

  Args:
    name: one of TRAJECTORIES.
    frames: number of poses, evenly spaced in time; a single one is the start.
    parameters: those of the path's function; lengths are metres.

  Raises:
    ValueError: the name or a parameter is unknown, or a number makes no sense.
  """
  if name not in TRAJECTORIES:
    raise ValueError(f"Unknown trajectory {name!r}; expected one of {', '.join(TRAJECTORIES)}.")
  known = known_parameters(name)
  for label, value in (("frames", frames), *parameters.items()):
    if label not in ("frames", *known):
      raise ValueError(f"Trajectory {name!r} has no {label!r}; expected {', '.join(known)}.")
    positive, most = label not in _SIGNED, _MOST.get(label, _MOST_METRES)
    if not 0 < abs(value) <= most or positive and value < 0:
      expected = (
        f"a positive number up to {most:g}" if positive else f"-{most:g} to {most:g}, not 0"
      )
      raise ValueError(f"Trajectory {name!r} with {label}={value:g}; expected {expected}.")
  path = TRAJECTORIES[name](np.linspace(0, 1, frames), **parameters)
  return path.astype(np.float32)


def known_parameters(name: str) -> list[str]:
  """The parameters of a named path."""
  return [*inspect.signature(TRAJECTORIES[name]).parameters][1:]


def parse(text: str) -> tuple[str, dict[str, float]]:
  """The name and the parameters of a text such as "orbit:degrees=90,radius=3".

  Raises:
    ValueError: it is not written so, or the name is unknown.
  """
  name, _, rest = text.partition(":")
  if name not in TRAJECTORIES:
    names = ", ".join(TRAJECTORIES)
    raise ValueError(f"Unknown trajectory {text!r}; expected one of {names}, or a file.")
  parameters = {}
  for part in filter(None, rest.split(",")):
    label, _, value = part.partition("=")
    try:
      parameters[label.strip()] = float(value)
    except ValueError:
      example = f"{name}:{','.join(f'{x}=NUMBER' for x in known_parameters(name))}"
      raise ValueError(f"Trajectory {text!r}: {part!r}; expected {example}.") from None
  return name, parameters


def _move(distance, direction):
  path = np.tile(np.eye(4), (len(distance), 1, 1))
  path[:, :3, 3] = distance[:, None] * np.asarray(direction)
  return path


def _watch(eye, pivot):
  target = np.broadcast_to([0.0, 0.0, pivot], eye.shape)
  return poses.look_at(eye, target, np.broadcast_to([0.0, -1.0, 0.0], eye.shape))
