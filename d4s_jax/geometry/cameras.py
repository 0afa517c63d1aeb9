"""Pinhole and orthographic cameras: the one statement of the camera conventions.

OpenCV axes: x right, y down, z forward. Poses are `world_from_camera`, metres. Intrinsics are in
pixels, without skew: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]. Pixel (row i, column j) covers
[j, j + 1] x [i, i + 1] of the image plane, its centre is at (j + 0.5, i + 0.5), and the plane
reaches from (0, 0) to (width, height). Depth is z-depth: the distance along the camera's z axis,
not along the ray.

A pinhole camera sees the point (x, y, z) of its own axes at (fx x / z + cx, fy y / z + cy), an
orthographic one at (fx x + cx, fy y + cy).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from d4s_jax.geometry import EitherArray, namespace, poses, rotations
from d4s_jax.types import Cameras

MODELS = ("pinhole", "orthographic")
# Horizontal degrees that a picture may see.
FOV_RANGE = (1, 179)
# Depths nearer to the camera plane than this do not divide; renderers cull far before it.
_NEAREST = 1e-6


def pixel_grid(height: int, width: int, xp: Any = np) -> Float[EitherArray, "h w 2"]:
  """Image-plane positions (x, y) of all pixel centres, as float32 arrays of the namespace `xp`."""
  x = xp.arange(width, dtype=xp.float32) + 0.5
  y = xp.arange(height, dtype=xp.float32) + 0.5
  return xp.stack(xp.meshgrid(x, y, indexing="xy"), axis=-1)


def focal_and_center(
  intrinsics: Float[EitherArray, "*b 3 3"],
) -> tuple[Float[EitherArray, "*b 2"], Float[EitherArray, "*b 2"]]:
  """Focal lengths (fx, fy) and principal point (cx, cy), pixels."""
  xp = namespace(intrinsics)
  focal = xp.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], axis=-1)
  return focal, intrinsics[..., :2, 2]


def rays(
  cameras: Cameras,
) -> tuple[Float[EitherArray, "*b h w 3"], Float[EitherArray, "*b h w 3"]]:
  """Origins and unit directions, in world axes, of the rays through all pixel centres."""
  xp = namespace(cameras.world_from_camera, cameras.intrinsics)
  plane = _plane(cameras)
  forward = xp.ones_like(plane[..., :1])
  rotation = _over_pixels(cameras.world_from_camera[..., :3, :3], 2)
  origins = _over_pixels(cameras.world_from_camera[..., :3, 3], 1)
  if cameras.model == "orthographic":
    origins = origins + rotations.rotate(rotation, xp.concatenate([plane, 0 * forward], axis=-1))
    plane = xp.zeros_like(plane)
  local = xp.concatenate([plane, forward], axis=-1)
  directions = rotations.rotate(rotation, local)
  directions = directions / xp.sqrt(xp.sum(local * local, axis=-1, keepdims=True))
  return xp.broadcast_to(origins, directions.shape), directions


def project(
  points: Float[EitherArray, "*b n 3"], cameras: Cameras
) -> tuple[Float[EitherArray, "*b n 2"], Float[EitherArray, "*b n"]]:
  """Image-plane positions (pixels) and z-depths (metres) of world points.

  Points are seen where the depth is positive; behind the camera the pixel means nothing, but it and
  its gradient are finite. The leading axes of `points` and `cameras` have the same rank and
  broadcast.
  """
  xp = namespace(points, cameras.world_from_camera, cameras.intrinsics)
  camera_from_world = poses.invert(cameras.world_from_camera)
  rotation, translation = camera_from_world[..., :3, :3], camera_from_world[..., :3, 3]
  local = rotations.rotate(rotation[..., None, :, :], points) + translation[..., None, :]
  depth = local[..., 2]
  if cameras.model == "orthographic":
    divisor = xp.ones_like(depth)
  else:
    divisor = xp.where(xp.abs(depth) < _NEAREST, _NEAREST, depth)
  focal, center = focal_and_center(cameras.intrinsics)
  pixels = focal[..., None, :] * local[..., :2] / divisor[..., None] + center[..., None, :]
  return pixels, depth


def unproject(
  depth: Float[EitherArray, "*b h w"], cameras: Cameras
) -> Float[EitherArray, "*b h w 3"]:
  """World points of all pixel centres at a z-depth in metres."""
  xp = namespace(depth, cameras.intrinsics)
  plane = _plane(cameras)
  if cameras.model != "orthographic":
    plane = plane * depth[..., None]
  local = xp.concatenate([xp.broadcast_to(plane, (*depth.shape, 2)), depth[..., None]], axis=-1)
  rotation = _over_pixels(cameras.world_from_camera[..., :3, :3], 2)
  return rotations.rotate(rotation, local) + _over_pixels(cameras.world_from_camera[..., :3, 3], 1)


def resize(cameras: Cameras, height: int, width: int) -> Cameras:
  """The same cameras for the whole image resampled to `height` x `width`."""
  xp = namespace(cameras.intrinsics)
  scale = [[width / cameras.width], [height / cameras.height], [1.0]]
  scale = xp.asarray(scale, dtype=cameras.intrinsics.dtype)
  scale = xp.broadcast_to(scale, (*cameras.intrinsics.shape[:-1], 1))
  return dataclasses.replace(
    cameras, intrinsics=cameras.intrinsics * scale, height=height, width=width
  )


def crop(cameras: Cameras, top: int, left: int, height: int, width: int) -> Cameras:
  """The same cameras for the image cut to `height` x `width`, starting at pixel (`top`, `left`)."""
  xp = namespace(cameras.intrinsics)
  shift = xp.asarray([[0, 0, left], [0, 0, top], [0, 0, 0]], dtype=cameras.intrinsics.dtype)
  shift = xp.broadcast_to(shift, cameras.intrinsics.shape)
  return dataclasses.replace(
    cameras, intrinsics=cameras.intrinsics - shift, height=height, width=width
  )


def intrinsics_from_fov(fov_x_degrees: float, height: int, width: int) -> Float[np.ndarray, "3 3"]:
  """Intrinsics of square pixels and a centred axis, from the horizontal field of view in degrees.

  Raises:
    ValueError: the field of view is not from 1 to 179 degrees.
  """
  low, high = FOV_RANGE
  if not low <= fov_x_degrees <= high:
    raise ValueError(
      f"Field of view {fov_x_degrees:g} degrees; expected {low} to {high}. "
      "A phone's main camera has about 65."
    )
  focal = 0.5 * width / math.tan(math.radians(fov_x_degrees) / 2)
  return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=np.float32)


def fov_from_intrinsics(
  intrinsics: Float[EitherArray, "*b 3 3"], width: int
) -> Float[EitherArray, "*b"]:
  """Horizontal field of view in degrees of cameras whose axis is centred."""
  xp = namespace(intrinsics)
  return xp.asarray(xp.rad2deg(2 * xp.arctan(0.5 * width / intrinsics[..., 0, 0])))


def _plane(cameras: Cameras):
  """Camera-space (x, y) of all pixel centres: at z-depth 1, or, orthographic, at any depth.

  Raises:
    ValueError: the camera model is unknown.
  """
  if cameras.model not in MODELS:
    raise ValueError(f"Unknown camera model {cameras.model!r}; expected one of {MODELS}.")
  xp = namespace(cameras.intrinsics)
  grid = pixel_grid(cameras.height, cameras.width, xp)
  grid = xp.broadcast_to(grid, (*cameras.intrinsics.shape[:-2], *grid.shape))
  focal, center = focal_and_center(cameras.intrinsics)
  return (grid - _over_pixels(center, 1)) / _over_pixels(focal, 1)


def _over_pixels(per_camera, trailing: int):
  """Inserts the two pixel axes before the last `trailing` axes."""
  index = (..., None, None) + (slice(None),) * trailing
  return per_camera[index]
