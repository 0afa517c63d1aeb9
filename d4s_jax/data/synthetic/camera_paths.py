"""How the camera of a clip moves, and from where its other views look."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from d4s_jax.geometry import poses
from d4s_jax.geometry.trajectories import known_parameters, trajectory

# Intervals between the poses that a path is made of; other times are interpolated.
_INTERVALS = 64
# How far a view leaves the path, metres, to each side of it.
OFF_PATH = 0.7
_NEAR_PATH = 0.06


@dataclasses.dataclass(frozen=True)
class CameraPath:
  """A path of a trajectory family, by clip time; world axes are those of the first camera.

  Attributes:
    name: the family, one of `geometry.trajectories.TRAJECTORIES`.
    pivot: distance ahead of the first camera of what is looked at, metres.
    distance: how far the camera goes, metres; an orbit is measured by `portion`.
    portion: the fraction of the family's whole path that the clip goes along.
  """

  name: str
  pivot: float
  distance: float
  portion: float

  @functools.cached_property
  def keys(self) -> Float[np.ndarray, "k 4 4"]:
    """Poses `world_from_camera` at evenly spaced times from 0 to 1."""
    whole = round(_INTERVALS / self.portion)
    lengths = {"distance": self.distance, "pivot": self.pivot, "radius": self.pivot}
    own = {label: lengths[label] for label in known_parameters(self.name) if label in lengths}
    path = trajectory(self.name, whole + 1, **own)
    return path[: _INTERVALS + 1].astype(np.float64)

  def at(self, times: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t 4 4"]:
    """Poses `world_from_camera` at clip times."""
    phases = np.linspace(0, 1, _INTERVALS + 1)
    return poses.interpolate(self.keys, phases, np.asarray(times, np.float64))


def random_path(rng: np.random.Generator, name: str, height: float) -> CameraPath:
  """A path of a family for a camera that starts `height` metres above the floor."""
  pivot = rng.uniform(3.2, 5.5)
  low, high = {
    "spiral": (0.25, 0.7),
    "forward": (0.6, min(2.0, pivot - 2.2)),
    "backward": (0.6, 2.0),
    "up": (0.5, 1.2),
    "down": (0.4, height - 0.6),
    "orbit": (1.0, 1.0),
  }[name]
  portion = rng.uniform(0.08, 0.25) if name == "orbit" else 1.0
  return CameraPath(name, float(pivot), float(rng.uniform(low, high)), float(portion))


def off_path(rng: np.random.Generator, path: CameraPath, count: int) -> Float[np.ndarray, "n 4 4"]:
  """Poses beside the path, at random places along it, that look about where it looks.

  They see round the solids: nothing that is right on the path only draws them right.
  """
  along = path.at(rng.random(count))
  offset = rng.uniform(-1, 1, (count, 3)) * (OFF_PATH, OFF_PATH, 0.5 * OFF_PATH)
  return _aside(rng, along, offset, path.pivot, 0.4)


def near_path(
  rng: np.random.Generator, path: CameraPath, times: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n 4 4"]:
  """Poses within centimetres of where the source camera is at those times."""
  offset = rng.uniform(-_NEAR_PATH, _NEAR_PATH, (len(times), 3))
  return _aside(rng, path.at(times), offset, path.pivot, 0.1)


def _aside(rng, along, offset, pivot, wander):
  """Moves poses by an offset in their own axes and lets them look ahead, up to `wander` metres."""
  rotation, position = along[:, :3, :3], along[:, :3, 3]
  eye = position + np.einsum("nij,nj->ni", rotation, offset)
  target = position + pivot * rotation[:, :, 2] + rng.uniform(-wander, wander, eye.shape)
  return poses.look_at(eye, target, -rotation[:, :, 1])
