"""Random scenes: a camera path first, then solids in its view, then a place round all of it.

In this order no camera ends up in a wall and no solid out of sight.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float

from d4s_jax.data.synthetic.camera_paths import OFF_PATH, CameraPath, random_path
from d4s_jax.data.synthetic.description import Body, Place, Sky
from d4s_jax.data.synthetic.motion import MOVING, about
from d4s_jax.data.synthetic.palette import COLORS, flat, solid, with_article
from d4s_jax.data.synthetic.scene import Scene
from d4s_jax.data.synthetic.shading import Light
from d4s_jax.data.synthetic.solids import random_solid
from d4s_jax.geometry import poses
from d4s_jax.geometry.trajectories import TRAJECTORIES

_RIGHT, _DOWN = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
_TRIES = 40
_MOST_BODIES = 4
# A spin is the smallest motion: the rarest.
_MOVING_SHARES = (0.3, 0.25, 0.25, 0.2)
# Chance of a solid of two colours.
_TWO_COLORS = 0.25
# Colours kept for the place, so that no solid hides before a wall of its own colour.
_PLACE_COLORS = 4
# Times at which distances and visibility are checked; solids move less than a width in between.
_CHECKED = np.linspace(0, 1, 9)
# Free space round every camera, and its least height above the floor, metres.
_CLEARANCE, _LOWEST = 0.5, 0.35

_GROUNDS = {"grass": "green", "sand": "tan", "snow": "white", "rock": "grey", "soil": "brown"}
# Colours between and on the clouds.
_SKIES = {
  "a blue sky": ((0.30, 0.52, 0.86), (0.93, 0.95, 0.98)),
  "a grey sky": ((0.50, 0.54, 0.60), (0.86, 0.87, 0.89)),
  "a red evening sky": ((0.55, 0.36, 0.52), (0.98, 0.66, 0.42)),
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A scene and the camera that films it.

  Attributes:
    scene: what is there.
    path: how the source camera moves.
    fov: horizontal field of view, degrees.
  """

  scene: Scene
  path: CameraPath
  fov: float


def random_setting(rng: np.random.Generator, dynamic: bool, atlas_seed: tuple[int, ...]) -> Setting:
  """A random scene with at least one solid in view; if `dynamic`, at least one that moves."""
  for _ in range(_TRIES):
    name, heading = str(rng.choice(list(TRAJECTORIES))), rng.uniform(0, 2 * np.pi)
    # An orbit goes round the first camera's own vertical: seen from low, so that it is upright.
    height = rng.uniform(*((0.8, 1.2) if name == "orbit" else (1.3, 2.1)))
    path, fov = random_path(rng, name, height), float(rng.uniform(50, 70))
    pitch = np.arctan((height - 0.6) / path.pivot) + rng.uniform(-0.05, 0.05)
    room_from_world = np.eye(4)
    room_from_world[:3, :3] = about(_DOWN, heading) @ about(_RIGHT, -pitch)
    room_from_world[1, 3] = -height
    colors = [str(name) for name in rng.permutation(list(COLORS))]
    frame = _Frame(path, fov, room_from_world, heading)
    bodies = _random_bodies(rng, dynamic, frame, colors[:-_PLACE_COLORS])
    if bodies and any(body.motion.moves for body in bodies) == dynamic:
      place = _random_place(rng, frame, bodies, colors[-_PLACE_COLORS:])
      scene = Scene(place, bodies, _random_light(rng), atlas_seed, room_from_world)
      return Setting(scene, path, fov)
  raise RuntimeError(
    f"No scene in {_TRIES} tries for dynamic={dynamic}; a limit here is too tight."
  )


def is_clear(
  bodies: list[Body], eyes: Float[np.ndarray, "n 3"], times: Float[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
  """Whether each camera, at its time, is above the floor and away from all solids; room axes."""
  clear = eyes[:, 1] < -_LOWEST
  for body in bodies:
    distance = np.linalg.norm(eyes - body.motion.pose(times)[1], axis=1)
    clear &= distance > body.radius + _CLEARANCE
  return clear


@dataclasses.dataclass(frozen=True)
class _Frame:
  """What the camera frames: its path, its field of view (degrees) and where it starts."""

  path: CameraPath
  fov: float
  room_from_world: Float[np.ndarray, "4 4"]
  heading: float

  @property
  def reach(self) -> float:
    """Half the image's width at depth 1."""
    return float(np.tan(np.radians(self.fov) / 2))

  @functools.cached_property
  def eyes(self) -> Float[np.ndarray, "k 4 4"]:
    """Camera poses all along the path, room axes."""
    return poses.compose(self.room_from_world[None], self.path.keys)

  def keeps(self, body: Body) -> bool:
    """Whether a solid stays away from the camera, and is in view: at first, or always if moving."""
    centers = body.motion.pose(_CHECKED)[1]
    keys = self.eyes[:: (len(self.eyes) - 1) // (len(_CHECKED) - 1)]
    apart = np.linalg.norm(centers[:, None] - keys[None, :, :3, 3], axis=2)
    if apart.min() < body.radius + _CLEARANCE + OFF_PATH:
      return False
    local = np.einsum("fji,fj->fi", keys[:, :3, :3], centers - keys[:, :3, 3])
    in_view = np.abs(local[:, :2]).max(axis=1) < 0.85 * self.reach * local[:, 2]
    return bool(in_view.all() if body.motion.moves else in_view[0])


def _random_bodies(rng, dynamic, frame, colors) -> list[Body]:
  count = int(rng.integers(2, _MOST_BODIES + 1))
  movers = int(rng.integers(1, min(count, 3) + 1)) if dynamic else 0
  bodies: list[Body] = []
  for number in range(count):
    names = colors[2 * number : 2 * number + (2 if rng.random() < _TWO_COLORS else 1)]
    for _ in range(_TRIES):
      motion = str(rng.choice(MOVING, p=_MOVING_SHARES)) if number < movers else "stand"
      body = random_solid(rng, motion, tuple(names), _random_spot(rng, frame), frame.heading)
      if frame.keeps(body) and not any(_collide(body, other) for other in bodies):
        bodies.append(body)
        break
  return bodies


def _random_spot(rng, frame):
  """A place on the floor in the first view; near the pivot if the camera goes round that."""
  pivot = frame.path.pivot
  if frame.path.name == "orbit":
    ahead, side = pivot * (1 + rng.uniform(-0.4, 0.4)), pivot * rng.uniform(-0.4, 0.4)
  else:
    ahead = pivot * rng.uniform(0.7, 1.45)
    side = ahead * frame.reach * rng.uniform(-0.75, 0.75)
  spot = frame.room_from_world[:3, :3] @ (side, 0.0, ahead) + frame.room_from_world[:3, 3]
  return spot * (1.0, 0.0, 1.0)


def _collide(first: Body, second: Body) -> bool:
  offset = first.motion.pose(_CHECKED)[1] - second.motion.pose(_CHECKED)[1]
  return bool(np.hypot(offset[:, 0], offset[:, 2]).min() < first.radius + second.radius)


def _random_place(rng, frame, bodies, colors) -> Place:
  """Surroundings that hold all cameras, with those beside the path, and all solids at all times."""
  kind = str(rng.choice(["room", "courtyard", "landscape"]))
  low, high = _held(frame, bodies)
  low, high = low - rng.uniform(0.3, 2.5, 3), high + rng.uniform(0.3, 2.5, 3)
  high[1] = 0.0
  ground = str(rng.choice(list(_GROUNDS)))
  floor, wall, ceiling, hills = colors
  if kind == "landscape":
    floor = _GROUNDS[ground]
  faces = (wall, wall, ceiling, floor, wall, wall)
  materials = tuple(flat(rng, name, i // 2, rng.uniform(7, 12)) for i, name in enumerate(faces))
  if kind == "room":
    words = f"in {with_article(wall)} room with {with_article(floor)} floor"
    return Place(kind, low, high, materials, None, words)
  sky = _random_sky(rng, low, high, hills)
  if kind == "courtyard":
    low[1] = -rng.uniform(0.8, 2.2)
    words = f"in {with_article(wall)} yard with {with_article(floor)} floor"
    return Place(kind, low, high, materials, sky, words)
  low, high = np.array([-np.inf, 0.0, -np.inf]), np.array([np.inf, 0.0, np.inf])
  return Place(kind, low, high, materials, sky, f"on {ground} under {sky.name}")


def _held(frame, bodies):
  """Corners of the box round all cameras, with room beside them, and all solids at all times."""
  eyes = frame.eyes[:, :3, 3]
  points = [eyes - OFF_PATH - _CLEARANCE, eyes + OFF_PATH + _CLEARANCE]
  for body in bodies:
    centers = body.motion.pose(_CHECKED)[1]
    points += [centers - body.radius, centers + body.radius]
  points = np.concatenate(points)
  return points.min(axis=0), points.max(axis=0)


def _random_sky(rng, low, high, hills) -> Sky:
  center = (low + high) / 2 * (1.0, 0.0, 1.0)
  radius = float(np.linalg.norm((high - low)[::2]) / 2 + rng.uniform(3, 9))
  name = str(rng.choice(list(_SKIES)))
  clouds = flat(rng, "white", 1, tile=radius * rng.uniform(2.5, 4.0))
  clouds = dataclasses.replace(clouds, colors=np.array(_SKIES[name]))
  hill = solid(rng, (hills,), tile=radius * rng.uniform(0.8, 1.2))
  hill = dataclasses.replace(hill, colors=0.4 * hill.colors + 0.3)  # paler with distance
  return Sky(center, radius, clouds, hill, float(rng.uniform(0.08, 0.22)), name)


def _random_light(rng) -> Light:
  angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.9)
  level = np.sqrt(1 - height**2)
  toward = np.array([level * np.cos(angle), -height, level * np.sin(angle)])
  return Light(toward, float(rng.uniform(0.5, 0.65)))
