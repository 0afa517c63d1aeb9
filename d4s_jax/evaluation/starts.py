"""Where per-scene optimisation may start without a prediction: random points, points of SIFT."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from d4s_jax.evaluation import matching
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry.deformation import identity
from d4s_jax.geometry.harmonics import from_rgb
from d4s_jax.types import Cameras, DynamicGaussians, Views

# As in 3D Gaussian splatting; the size is the mean distance to the three nearest points.
_OPACITY, _NEIGHBOURS = 0.1, 3
# Nearest and farthest point of a random start, in medians of depth.
_NEAR, _FAR = 0.3, 3.0
# Pixels between a triangulated point and both of its keypoints, and the least angle of its rays.
_REACH, _LEAST_ANGLE = 2.0, 0.2
# Videos are enlarged to so many pixels: SIFT finds little in small ones.
_SIDE = 256


def of_random(views: Views, count: int, depth: float, seed: int = 0) -> DynamicGaussians:
  """Points spread evenly over what the cameras see, from 0.3 to 3 times a depth, of any colours.

  Args:
    views: the cameras.
    count: Gaussians.
    depth: metres to what is seen.
    seed: of the points.
  """
  random = np.random.default_rng(seed)
  frames = random.integers(0, len(views.times), count)
  cameras = jax.tree.map(np.asarray, views.cameras)
  pixels = random.random((count, 2)) * (cameras.width, cameras.height)
  # Even in 1 / depth, as pictures are.
  z = depth / random.uniform(1 / _FAR, 1 / _NEAR, count)
  points = _lift(cameras, frames, pixels, z)
  return of_points(points, random.random((count, 3)), views.times, count)


def of_sift(views: Views, count: int, gap: int = 2) -> tuple[DynamicGaussians, int]:
  """SIFT matches between frames `gap` apart, triangulated at the known cameras.

  Args:
    views: pictures and cameras.
    count: Gaussians; those without a point are room, with opacity 0.
    gap: frames.

  Returns:
    The start, and how many points it has.

  Raises:
    ValueError: there are fewer than 4 points.
  """
  images = np.asarray(views.images)
  side = max(_SIDE / min(images.shape[1:3]), 1.0)
  size = round(images.shape[1] * side), round(images.shape[2] * side)
  large = np.asarray(jax.image.resize(images, (len(images), *size, 3), "cubic")).clip(0, 1)
  cameras = jax.tree.map(np.asarray, pinhole.resize(views.cameras, *size))
  features = [matching.sift_features(image) for image in large]
  points, colours = [], []
  for a, b in [(t, t + gap) for t in range(len(images) - gap)]:
    matches = matching.sift_match(features[a], features[b])
    found, kept = triangulate(matches, cameras[a], cameras[b])
    rows, columns = matches[kept, 1].astype(int), matches[kept, 0].astype(int)
    points.append(found[kept])
    colours.append(large[a, rows.clip(0, size[0] - 1), columns.clip(0, size[1] - 1)])
  where, colour = np.concatenate(points), np.concatenate(colours)
  if len(where) < _NEIGHBOURS + 1:
    raise ValueError(f"{len(where)} points were triangulated; expected at least 4.")
  return of_points(where[:count], colour[:count], views.times, count), min(len(where), count)


def triangulate(
  matches: Float[np.ndarray, "n 4"], first: Cameras, second: Cameras
) -> tuple[Float[np.ndarray, "n 3"], np.ndarray]:
  """Points in the middle between the rays of each match.

  Returns:
    The points, and which of them lie before both cameras, within two pixels of both keypoints and
    on rays of different directions.
  """
  eyes, rays = [], []
  for camera, pixels in ((first, matches[:, :2]), (second, matches[:, 2:])):
    pose = np.asarray(camera.world_from_camera, np.float64)
    focal, center = pinhole.focal_and_center(np.asarray(camera.intrinsics, np.float64))
    local = np.concatenate([(pixels - center) / focal, np.ones((len(pixels), 1))], axis=1)
    ray = local @ pose[:3, :3].T
    rays.append(ray / np.linalg.norm(ray, axis=1, keepdims=True))
    eyes.append(pose[:3, 3])
  cosine = np.sum(rays[0] * rays[1], axis=1)
  base = eyes[1] - eyes[0]
  along = [rays[0] @ base, rays[1] @ base]
  spread = np.maximum(1 - cosine**2, 1e-12)
  s, t = (along[0] - cosine * along[1]) / spread, (cosine * along[0] - along[1]) / spread
  points = (eyes[0] + s[:, None] * rays[0] + eyes[1] + t[:, None] * rays[1]) / 2
  kept = (s > 0) & (t > 0) & (np.degrees(np.arccos(np.clip(cosine, -1, 1))) > _LEAST_ANGLE)
  for camera, pixels in ((first, matches[:, :2]), (second, matches[:, 2:])):
    seen, depth = pinhole.project(points.astype(np.float32), camera)
    kept &= (np.asarray(depth) > 0) & (np.linalg.norm(np.asarray(seen) - pixels, axis=1) < _REACH)
  return points, kept


def of_points(
  points: Float[np.ndarray, "n 3"], colours: Float[np.ndarray, "n 3"], times: Any, count: int
) -> DynamicGaussians:
  """Round Gaussians at points, as 3D Gaussian splatting starts, and room for more up to `count`."""
  given = len(points)
  places = np.zeros((count, 3), np.float32)
  places[:given] = points
  # Room lies where a point is: what has opacity 0 moves before it is seen.
  places[given:] = points[0]
  rgb = np.full((count, 3), 0.5, np.float32)
  rgb[:given] = colours
  size = np.full(count, np.float32(1.0))
  size[:given] = _spacing(points)
  opacity = np.where(np.arange(count) < given, _OPACITY, 0.0)
  times = jnp.asarray(times)
  return DynamicGaussians(
    means=jnp.asarray(places),
    quaternions=jnp.tile(jnp.array([1.0, 0, 0, 0]), (count, 1)),
    raw_scales=jnp.zeros((count, 3)),
    footprints=jnp.asarray(size),
    opacities=jnp.asarray(opacity, jnp.float32),
    harmonics=from_rgb(jnp.asarray(rgb)),
    times=times,
    deformation=identity(len(times), count),
  )


def _spacing(points: np.ndarray) -> np.ndarray:
  """Mean distance to the three nearest others."""
  found = []
  for start in range(0, len(points), 512):
    gaps = np.linalg.norm(points[start : start + 512, None] - points[None], axis=-1)
    nearest = np.partition(gaps, _NEIGHBOURS, axis=1)[:, 1 : _NEIGHBOURS + 1]
    found.append(nearest.mean(axis=1))
  return np.maximum(np.concatenate(found), 1e-4)


def _lift(cameras: Cameras, frames, pixels, depth) -> np.ndarray:
  """World points at pixels of frames."""
  poses = np.asarray(cameras.world_from_camera)[frames]
  focal, center = pinhole.focal_and_center(np.asarray(cameras.intrinsics)[frames])
  local = np.concatenate([(pixels - center) / focal, np.ones((len(pixels), 1))], axis=1)
  local = local * depth[:, None]
  return np.einsum("nij,nj->ni", poses[:, :3, :3], local) + poses[:, :3, 3]
