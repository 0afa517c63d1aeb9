"""A procedural scene: any view at any time, exactly."""

import dataclasses
from typing import Any

import numpy as np
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int

from d4s_jax.data.synthetic import textures
from d4s_jax.data.synthetic.description import FIRST_BODY, Body, Place
from d4s_jax.data.synthetic.raycast import Eyes, Hits, Rays, Snapshots
from d4s_jax.data.synthetic.shading import Light, shade
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras

# Where the four rays of a smoothed pixel go, in pixels from its centre.
_SUBPIXELS = np.array([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]], np.float32)
# A point is seen if what the ray through it meets is at its depth, up to float32's rounding.
_SAME_DEPTH = 2e-3


@dataclasses.dataclass(frozen=True)
class Scene:
  """A place with solids in it, some of them moving.

  Attributes:
    place: the static surroundings.
    bodies: the solids; the instance number of a solid is its index plus 1.
    light: the sun.
    atlas_seed: seed of the textures.
    room_from_world: pose of the world's origin, the first source camera, in room axes.
  """

  place: Place
  bodies: list[Body]
  light: Light
  atlas_seed: tuple[int, ...]
  room_from_world: Float[np.ndarray, "4 4"]

  @property
  def dynamic(self) -> bool:
    """Whether anything moves."""
    return any(body.motion.moves for body in self.bodies)

  def render(
    self, cameras: Cameras, times: Float[np.ndarray, "v"]
  ) -> tuple[Float[np.ndarray, "v h w 3"], Float[np.ndarray, "v h w"], Int[np.ndarray, "v h w"]]:
    """RGB in [0, 1], z-depth in metres and instances (0: the place) as each camera sees them.

    Depth and instances are those of pixel centres. Colour is smoothed where pixels lie on an edge.

    Args:
      cameras: cameras [v] in world axes.
      times: the time, 0 to 1 over a clip, at which each camera looks.
    """
    snapshots = self._snapshots(cameras, times)
    grid = camera_geometry.pixel_grid(cameras.height, cameras.width)
    shape = (len(times), cameras.height, cameras.width)
    frame = repeat(np.arange(len(times)), "v -> (v n)", n=cameras.height * cameras.width)
    rays = _rays_through(cameras, frame, repeat(grid, "h w c -> (v h w) c", v=len(times)))
    hits = snapshots.trace(rays)
    images = self._shade(snapshots, cameras, rays, hits)
    edge = np.flatnonzero(_edges(hits.surface.reshape(shape)))
    pixels = grid.reshape(-1, 2)[edge % (cameras.height * cameras.width)]
    images[edge] = self._smooth(
      snapshots, cameras, frame[edge], pixels, images[edge], hits.surface[edge]
    )
    return (
      images.reshape(*shape, 3),
      hits.depth.reshape(shape),
      _instances(hits).reshape(shape),
    )

  def positions(
    self,
    points: Float[np.ndarray, "n 3"],
    instances: Int[np.ndarray, "n"],
    since: Float[np.ndarray, "n"],
    times: Float[np.ndarray, "f"],
  ) -> Float[np.ndarray, "n f 3"]:
    """Where material points are at `times`: world positions, metres.

    Args:
      points: world positions at the times `since`.
      instances: the solid that each belongs to, as `render` numbers them.
      since: the time of each position.
      times: the times asked for.
    """
    rotation, origin = self.room_from_world[:3, :3], self.room_from_world[:3, 3]
    room = points @ rotation.T + origin
    moved = repeat(room, "n c -> n f c", f=len(times)).copy()
    for number in np.unique(instances[instances > 0]):
      index = np.flatnonzero(instances == number)
      motion = self.bodies[number - 1].motion
      turned, center = motion.pose(since[index])
      local = np.einsum("nji,nj->ni", turned, room[index] - center)
      turned, center = motion.pose(times)
      moved[index] = np.einsum("fij,nj->nfi", turned, local) + center
    return ((moved - origin) @ rotation).astype(np.float32)

  def sees(
    self,
    points: Float[np.ndarray, "n f 3"],
    instances: Int[np.ndarray, "n"],
    cameras: Cameras,
    times: Float[np.ndarray, "f"],
  ) -> Bool[np.ndarray, "n f"]:
    """Whether each point is in the image of each camera and nothing is before it.

    Args:
      points: world positions at each of `times`.
      instances: the solid that each belongs to.
      cameras: cameras [f].
      times: when they look.
    """
    by_frame: Any = rearrange(points, "n f c -> f n c")
    pixels, depth = (np.asarray(x) for x in camera_geometry.project(by_frame, cameras))
    size = (cameras.width, cameras.height)
    seen = (depth > 0) & (pixels >= 0).all(axis=-1) & (pixels < size).all(axis=-1)
    frame, number = np.nonzero(seen)
    rays = _rays_through(cameras, frame, pixels[seen])
    hits = self._snapshots(cameras, times).trace(rays)
    same = _instances(hits) == instances[number]
    near = np.abs(hits.depth / depth[seen] - 1) < _SAME_DEPTH
    seen[seen] = same & near
    return np.ascontiguousarray(seen.T)

  def _snapshots(self, cameras, times):
    room_from_camera = self.room_from_world @ cameras.world_from_camera.astype(np.float64)
    eyes = Eyes(room_from_camera[:, :3, :3], room_from_camera[:, :3, 3])
    return Snapshots(self.place, self.bodies, eyes, np.asarray(times, np.float64))

  def _shade(self, snapshots: Snapshots, cameras: Cameras, rays: Rays, hits: Hits):
    atlas = textures.atlas(*self.atlas_seed)
    slope_per_pixel = 1 / np.asarray(cameras.intrinsics)[:, 0, 0]
    return shade(snapshots, self.light, atlas, rays, hits, slope_per_pixel)

  def _smooth(self, snapshots, cameras, frame, pixels, images, surface):
    """Colours of edge pixels: the mean over four rays each, that of the centre where they agree."""
    pixels = rearrange(pixels[:, None] + _SUBPIXELS, "n s c -> (n s) c")
    rays = _rays_through(cameras, np.repeat(frame, len(_SUBPIXELS)), pixels)
    hits = snapshots.trace(rays)
    colors = np.repeat(images, len(_SUBPIXELS), axis=0)
    other = np.flatnonzero(hits.surface != np.repeat(surface, len(_SUBPIXELS)))
    colors[other] = self._shade(snapshots, cameras, rays[other], hits[other])
    return reduce(colors, "(n s) c -> n c", "mean", s=len(_SUBPIXELS))


def _rays_through(cameras: Cameras, frame, pixels) -> Rays:
  focal, center = camera_geometry.focal_and_center(cameras.intrinsics)
  x, y = ((pixels[:, i] - center[frame, i]) / focal[frame, i] for i in range(2))
  return Rays(frame, x, y)


def _instances(hits: Hits) -> Int[np.ndarray, "r"]:
  return np.maximum(hits.surface.astype(np.int32) - (FIRST_BODY - 1), 0)


def _edges(surface: Int[np.ndarray, "v h w"]) -> Bool[np.ndarray, "v h w"]:
  """Pixels with a neighbour, above, below or beside, on another surface."""
  edge = np.zeros(surface.shape, bool)
  across, down = surface[:, :, 1:] != surface[:, :, :-1], surface[:, 1:] != surface[:, :-1]
  edge[:, :, 1:] |= across
  edge[:, :, :-1] |= across
  edge[:, 1:] |= down
  edge[:, :-1] |= down
  return edge
