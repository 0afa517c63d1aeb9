"""The colour of what rays meet: textured, lit by a sun and the sky, the same from every side."""

import dataclasses

import numpy as np
from jaxtyping import Float

from d4s_jax.data.synthetic import textures
from d4s_jax.data.synthetic.description import FIRST_BODY, FLOOR, SKY, Material
from d4s_jax.data.synthetic.raycast import Hits, Rays, Snapshots
from d4s_jax.data.synthetic.shapes import SHAPES, dot

_FACE_NORMALS = np.array(
  [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=np.float64
)


# How dark the floor is where a solid stands, and how far from it that reaches, in its half extents.
_DARKENING, _REACH = 0.45, 1.25


@dataclasses.dataclass(frozen=True)
class Light:
  """A sun and an ambient light.

  Attributes:
    toward: unit vector towards the sun, room axes.
    ambient: light on a surface that the sun does not reach; full sun adds up to 1.
  """

  toward: Float[np.ndarray, "3"]
  ambient: float

  def on(self, cosine: np.ndarray) -> np.ndarray:
    """Brightness of a surface by the cosine between its normal and the sun."""
    return self.ambient + (1 - self.ambient) * np.maximum(cosine, 0)


def shade(
  snapshots: Snapshots,
  light: Light,
  atlas: Float[np.ndarray, "textures texels"],
  rays: Rays,
  hits: Hits,
  slope_per_pixel: Float[np.ndarray, "f"],
) -> Float[np.ndarray, "r 3"]:
  """RGB in [0, 1] of each hit; `slope_per_pixel` is a pixel's width at depth 1 in each frame."""
  colors = np.empty((len(hits.depth), 3), np.float32)
  footprint = hits.depth * np.take(slope_per_pixel.astype(np.float32), rays.frame)
  for surface in np.flatnonzero(np.bincount(hits.surface)):
    index = np.flatnonzero(hits.surface == surface)
    at = hits.depth[index], footprint[index]
    if surface >= FIRST_BODY:
      color = _body(snapshots, surface - FIRST_BODY, light, atlas, rays[index], *at)
    else:
      line = np.take(hits.origin, index, axis=1), np.take(hits.direction, index, axis=1)
      if surface == SKY:
        color = _sky(snapshots.place.sky, atlas, *line, *at)
      else:
        color = _face(snapshots, surface, light, atlas, *line, *at)
    for channel in range(3):
      colors[:, channel][index] = color[channel]
  return colors


def _body(snapshots, number, light, atlas, rays, depth, footprint):
  body = snapshots.bodies[number]
  origin, direction = snapshots.body_eyes[number].rays(rays)
  points = origin + depth * direction
  half = body.half.astype(np.float32)[:, None]
  normal = SHAPES[body.shape].normal(points) / half
  sun = np.einsum("fji,j->if", snapshots.rotations[number], light.toward).astype(np.float32)
  cosine = dot(normal, np.take(sun, rays.frame, axis=1)) / np.sqrt(dot(normal, normal))
  value = _texture(body.material, atlas, points * half, footprint)
  return _blend(body.material, value) * light.on(cosine)


def _face(snapshots, surface, light, atlas, origin, direction, depth, footprint):
  material = snapshots.place.materials[surface]
  points = origin + depth * direction
  # A slanting surface shows more of itself in a pixel, along one direction only: take the mean.
  slant = np.abs(direction[surface // 2]) / np.sqrt(dot(direction, direction))
  value = _texture(material, atlas, points, footprint / np.sqrt(np.maximum(slant, 0.02)))
  brightness = light.on(_FACE_NORMALS[surface] @ light.toward)
  colors = _blend(material, value) * np.float32(brightness)
  if surface == FLOOR:
    colors *= _contact(snapshots.bodies, points)
  return colors


def _contact(bodies, points):
  """Darkens the floor around what stands on it, which tells where it touches.

  Only solids that stand still: a moving shadow is a change of colour that no motion explains.
  """
  brightness = np.ones(points.shape[1], np.float32)
  for body in bodies:
    if body.motion.moves:
      continue
    offset = points - body.motion.start.astype(np.float32)[:, None]
    axes = body.motion.upright.astype(np.float32).T[..., None]
    across, along = (dot(axes[i], offset) / np.float32(_REACH * body.half[i]) for i in (0, 2))
    brightness *= 1 - np.float32(_DARKENING) * np.exp(-np.square(across**2 + along**2))
  return brightness


def _sky(sky, atlas, origin, direction, depth, footprint):
  points = origin + depth * direction - sky.center.astype(np.float32)[:, None]
  elevation = -points[1] / np.float32(sky.radius)
  # Clouds lie in a plane overhead, of which the dome shows a perspective.
  overhead = 1 / (np.maximum(elevation, 0) + np.float32(0.25))
  clouds = _texture(sky.clouds, atlas, points * overhead, footprint * overhead)
  clouds = _blend(sky.clouds, clouds)
  # Paler towards the horizon, as air is.
  pale = np.exp(-5 * np.maximum(elevation, 0))
  clouds += 0.6 * pale * (np.float32(0.95) - clouds)
  hills = _blend(sky.hills, _texture(sky.hills, atlas, points, footprint))
  outline = _outline(sky, atlas, points)
  blend = np.clip((outline - elevation) * sky.radius / footprint + 0.5, 0, 1)
  return clouds + (hills - clouds) * blend


def _outline(sky, atlas, points):
  """Height of the hills in each direction, as the sine of an elevation."""
  reach = 0.4 / np.sqrt(points[0] ** 2 + points[2] ** 2 + np.float32(1e-6))
  ripple = np.full_like(reach, 1 / textures.SIZE)
  height = textures.lookup(atlas[0], points[0] * reach, points[2] * reach, ripple)
  return np.float32(2 * sky.hill_height) * height


def _texture(material: Material, atlas, points, footprint):
  """Texture values in [0, 1] at points by components, in the material's own axes."""
  values = []
  for projection, offset in zip(material.projections, material.offset):
    u, v = (
      dot(row[:, None], points) + shift
      for row, shift in zip(projection.astype(np.float32), offset.astype(np.float32))
    )
    rate = np.float32(np.linalg.norm(projection[0]))
    values.append(textures.lookup(atlas[material.texture], u, v, footprint * rate))
  if len(values) == 1:
    return values[0]
  # The mean of two is flatter than one: stretched back to the contrast of one, and more.
  return np.clip(values[0] + values[1] - np.float32(0.5), 0, 1)


def _blend(material, value):
  first, second = material.colors.astype(np.float32)[..., None]
  return first + (second - first) * value
