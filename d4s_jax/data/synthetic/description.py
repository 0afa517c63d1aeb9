"""What a scene is made of: materials, solids and the place around them.

Everything is in room axes: x right, y down, z forward, metres, the floor at y = 0.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from d4s_jax.data.synthetic.motion import Motion

# Surfaces of a place, as indices: walls by the side that they close, then the sky. Solids follow.
WALL_LEFT, WALL_RIGHT, CEILING, FLOOR, WALL_BACK, WALL_FRONT, SKY = range(7)
FIRST_BODY = 7


@dataclasses.dataclass(frozen=True)
class Material:
  """A blend of two colours by texture.

  The texture is laid on by projecting points: once for a flat surface; a solid takes the mean of
  two oblique projections, which has neither seams nor poles and is never squeezed.

  Attributes:
    texture: row of the atlas.
    projections: texture coordinates, in tiles per metre, of one or two projections.
    offset: texture coordinates of the origin.
    colors: RGB where the texture is 0 and where it is 1.
    name: the colours in words.
  """

  texture: int
  projections: Float[np.ndarray, "m 2 3"]
  offset: Float[np.ndarray, "m 2"]
  colors: Float[np.ndarray, "2 3"]
  name: str


@dataclasses.dataclass(frozen=True)
class Body:
  """A solid.

  Attributes:
    noun: what it is, in words.
    shape: one of SHAPES.
    half: half extents along its own axes.
    material: its look.
    motion: where it is.
  """

  noun: str
  shape: str
  half: Float[np.ndarray, "3"]
  material: Material
  motion: Motion

  @property
  def radius(self) -> float:
    """Radius of a sphere around the centre that holds the solid."""
    if self.shape == "sphere":
      return float(self.half.max())
    # The corner of a box; the rim of what is round about its y axis.
    reach = self.half if self.shape == "box" else self.half[:2]
    return float(np.linalg.norm(reach))


@dataclasses.dataclass(frozen=True)
class Sky:
  """A dome around the place: hills below, clouds above, at a true and finite distance.

  Attributes:
    center: of the dome, on the floor.
    radius: of the dome.
    clouds: material of the sky, laid on by direction.
    hills: material of the hills, laid on by direction.
    hill_height: mean elevation of the hills' outline, as a sine.
    name: the sky in words.
  """

  center: Float[np.ndarray, "3"]
  radius: float
  clouds: Material
  hills: Material
  hill_height: float
  name: str


@dataclasses.dataclass(frozen=True)
class Place:
  """The static surroundings.

  Attributes:
    kind: "room" (floor, four walls, ceiling), "courtyard" (floor, walls, sky) or "landscape".
    low: corner of the box with the smallest coordinates; `low[1]` is minus the walls' height;
      infinite where there is no wall.
    high: the opposite corner, on the floor.
    materials: of the six faces.
    sky: above an open place.
    name: the place in words.
  """

  kind: str
  low: Float[np.ndarray, "3"]
  high: Float[np.ndarray, "3"]
  materials: tuple[Material, ...]
  sky: Sky | None
  name: str
