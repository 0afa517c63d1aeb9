"""Anchors of metric scale: places of a clip whose true depth or length is known.

Each function returns what `curation.scale.estimate` takes. Relative values are in the unit of the
clip's own poses and points (or of its relative depth), metric ones in metres.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from d4s_jax.curation.agreement import partner
from d4s_jax.curation.plugins import lifted
from d4s_jax.curation.scale import Refused, Scale, estimate
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras

# Metric depth is believed between these, and where it changes by less than this factor to the next
# pixel: at an outline a point lands on either side.
_NEAR, _FAR, _EDGE = 0.3, 30.0, 0.1
# Standard deviation of the position of a matched point, pixels.
_PIXEL = 0.3
# The ground: tilted by less than this against the cameras' own down, with points this near to it,
# as a share of the camera's height over it; fewer points are no ground.
_TILT, _THICKNESS, _GROUND = 30.0, 0.03, 20
_PLANES, _POINTS_A_FRAME = 500, 50
# Of depth that is held against itself: pairs of frames, and points of each.
_PAIRS, _POINTS_A_PAIR = 24, 200
# Of points that are triangulated: frames, pixels off, degrees between rays.
_LEAST_VIEWS, _MOST_OFF, _LEAST_ANGLE = 3, 2.0, 1.0


@dataclasses.dataclass(frozen=True)
class Anchors:
  """Pairs of a relative and a metric value; see `scale.estimate` for the fields."""

  relative: Float[np.ndarray, "n"]
  metric: Float[np.ndarray, "n"]
  uncertainty: Float[np.ndarray, "n"]
  groups: Int[np.ndarray, "n"]

  def estimate(self, *, shift: bool = False, seed: int = 0) -> Scale:
    """The scale that the anchors tell; raises Refused if they don't."""
    return estimate(
      self.relative,
      self.metric,
      shift=shift,
      uncertainty=self.uncertainty,
      groups=self.groups,
      seed=seed,
    )


def from_depth_maps(
  points: Float[np.ndarray, "n 3"] | Float[np.ndarray, "n f 3"],
  visible: Bool[np.ndarray, "n f"],
  cameras: Cameras,
  depth: Float[np.ndarray, "f h w"],
  *,
  relative: bool = False,
  believed: tuple[float, float] = (_NEAR, _FAR),
) -> Anchors:
  """Points where depth maps see them; a group is a frame.

  Args:
    points: of structure from motion, or, frame by frame, of tracks: in the world of the poses.
    visible: whether a point was seen in a frame.
    cameras: of the frames, [f].
    depth: z-depth of the frames in metres, 0 where unknown, by which poses in a unit of their own
      are scaled; or, if `relative`, depth or disparity that is scaled by metric poses.
    relative: whether the poses are metric.
    believed: metres between which metric depth counts.
  """
  if depth.shape[1:] != (cameras.height, cameras.width):
    raise ValueError(
      f"Depth maps of {depth.shape[2]} x {depth.shape[1]} pixels for cameras of {cameras.width} x"
      f" {cameras.height}; expected one size: resize the cameras or the maps first."
    )
  over = points.swapaxes(0, 1) if points.ndim == 3 else points[None]
  pixels, z = camera_geometry.project(np.broadcast_to(over, (len(depth), *over.shape[1:])), cameras)
  column, row = np.floor(pixels).astype(int).transpose(2, 0, 1)
  inside = (column >= 1) & (column < cameras.width - 1) & (row >= 1) & (row < cameras.height - 1)
  frame, point = np.nonzero(inside & visible.T & (z > 0))
  row, column = row[frame, point], column[frame, point]
  here = depth[frame, row, column]
  pair = (here, z[frame, point]) if relative else (z[frame, point], here)
  good = (here > 0) & (pair[1] > believed[0]) & (pair[1] < believed[1])
  for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
    beside = depth[frame, row + down, column + right]
    with np.errstate(divide="ignore", invalid="ignore"):
      good &= np.abs(np.log(beside / here)) < _EDGE
  return Anchors(pair[0][good], pair[1][good], np.ones(int(good.sum())), frame[good])


def from_own_depth(cameras: Cameras, depth: Float[np.ndarray, "f h w"], seed: int = 0) -> Anchors:
  """Points of a frame's depth where a later frame sees them: both of one dataset, in its metres.

  Their scale is 1 but for noise and what hides them. What it tells is whether depth and poses hold
  together from frame to frame; of a unit that both mistake, or of one factor between them where the
  camera moves sideways, nothing. A group is a frame, of at most 24; the later one is that whose
  camera is as far on as `agreement.partner` asks for, but no further than half of the clip.

  Raises:
    Refused: there are fewer than two frames.
  """
  step = min(partner(cameras, depth[0]), len(depth) // 2)
  if not step:
    raise Refused(f"{len(depth)} frame of depth; expected two or more.")
  rng = np.random.default_rng(seed)
  found = []
  for first in np.unique(np.linspace(0, len(depth) - 1 - step, _PAIRS).round().astype(int)):
    here, there = (slice(i, i + 1) for i in (first, first + step))
    pixels = rng.uniform(0, (cameras.width, cameras.height), (1, _POINTS_A_PAIR, 2))
    points, known = lifted(pixels, depth[here], cameras[here])
    pairs = from_depth_maps(points[:, 0], known, cameras[there], depth[there], believed=(0, np.inf))
    found.append(dataclasses.replace(pairs, groups=np.full(len(pairs.groups), first)))
  parts = [dataclasses.asdict(x) for x in found]
  return Anchors(**{name: np.concatenate([x[name] for x in parts]) for name in parts[0]})


def triangulate(
  pixels: Float[np.ndarray, "f n 2"], visible: Bool[np.ndarray, "f n"], cameras: Cameras
) -> tuple[Float[np.ndarray, "m 3"], Bool[np.ndarray, "m f"]]:
  """Points of tracked pixels, by known poses: for clips that come with poses but without points.

  Points that are seen in fewer than three frames, under an angle of less than a degree, or further
  than two pixels from where they are projected to, are left out.

  Returns:
    The points in the world of the poses, and in which frames each was seen.
  """
  lens = np.asarray(cameras.intrinsics, np.float64)
  poses = np.asarray(cameras.world_from_camera, np.float64)
  local = np.concatenate([pixels, np.ones((*pixels.shape[:2], 1))], axis=-1)
  rays = np.einsum("fij,fnj->fni", poses[:, :3, :3] @ np.linalg.inv(lens), local)
  rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
  weight = visible.astype(np.float64)
  # The point nearest to all rays: the sum of (1 - r r^T)(x - c) is zero.
  across = np.eye(3) - rays[..., :, None] * rays[..., None, :]
  matrix = np.einsum("fn,fnij->nij", weight, across)
  vector = np.einsum("fn,fnij,fj->ni", weight, across, poses[:, :3, 3])
  sound = (visible.sum(axis=0) >= _LEAST_VIEWS) & (np.abs(np.linalg.det(matrix)) > 1e-12)
  points = np.zeros(vector.shape)
  points[sound] = np.linalg.solve(matrix[sound], vector[sound, :, None])[..., 0]
  over = np.broadcast_to(points, (len(poses), *points.shape))
  back, z = camera_geometry.project(over, cameras)
  off = np.where(visible, np.linalg.norm(back - pixels, axis=-1), 0).max(axis=0)
  behind = np.any(visible & (z <= 0), axis=0)
  # The widest angle between the first ray of a point and the others.
  first = rays[np.argmax(visible, axis=0), np.arange(pixels.shape[1])]
  cosine = np.where(visible, np.einsum("fni,ni->fn", rays, first), 1).min(axis=0)
  good = sound & (off < _MOST_OFF) & ~behind & (cosine < np.cos(np.radians(_LEAST_ANGLE)))
  return points[good], visible.T[good]


def from_stereo(
  left: Float[np.ndarray, "n 2"],
  right: Float[np.ndarray, "n 2"],
  relative: Float[np.ndarray, "n"],
  *,
  focal: float | Float[np.ndarray, "n"],
  offset: float | Float[np.ndarray, "n"],
  baseline: float,
) -> Anchors:
  """Matches of a rectified stereo pair of known baseline.

  Args:
    left: pixels (x, y) of the matches in the left picture.
    right: the same in the right one; rows that differ by over a pixel are no matches.
    relative: relative depth, or disparity, at each match in the left picture.
    focal: pixels; one for all, or of the frame of each match.
    offset: cx of the right picture less that of the left one, pixels.
    baseline: metres between the cameras.
  """
  if not (np.all(np.asarray(focal) > 0) and baseline > 0):
    raise ValueError(f"A stereo pair of focal {focal} and baseline {baseline}; expected positive.")
  disparity = left[:, 0] - right[:, 0] + offset
  good = (np.abs(left[:, 1] - right[:, 1]) < 1) & (disparity > 4 * _PIXEL)
  disparity = disparity[good]
  return Anchors(
    np.asarray(relative)[good],
    np.broadcast_to(focal, good.shape)[good] * baseline / disparity,
    _PIXEL / disparity,
    np.arange(len(disparity)),
  )


def from_lengths(
  ends: Float[np.ndarray, "n 2 3"], metres: Float[np.ndarray, "n"], objects: Int[np.ndarray, "n"]
) -> Anchors:
  """Objects of known size: both ends of a length in the world of the poses, and the true length.

  Args:
    ends: two points each.
    metres: their true distance.
    objects: number of the object; one object may have many lengths, or many observations of one.
  """
  length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=-1)
  return Anchors(length, np.asarray(metres), np.ones(len(length)), np.asarray(objects))


def from_camera_height(
  points: Float[np.ndarray, "n 3"], cameras: Cameras, height: float, seed: int = 0
) -> Anchors:
  """A camera that is carried at a known height over a ground that is flat; a group is a frame.

  The ground is the plane, roughly across the cameras' own down, that most points lie on.

  Args:
    points: of structure from motion, in the world of the poses.
    cameras: of the frames, [f].
    height: of the cameras over the ground, metres.
    seed: of the random planes.

  Raises:
    Refused: no plane has enough points.
  """
  poses = np.asarray(cameras.world_from_camera, np.float64)
  down = poses[:, :3, 1].mean(axis=0)
  down = down / np.linalg.norm(down)
  middle = poses[:, :3, 3].mean(axis=0)
  below = points[(points - middle) @ down > 0]
  if len(below) < _GROUND:
    raise Refused(f"{len(below)} points below the cameras; expected {_GROUND} on the ground.")
  rng = np.random.default_rng(seed)
  corner = below[rng.integers(len(below), size=(_PLANES, 3))]
  normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
  norm = np.linalg.norm(normal, axis=1)
  corner, normal = corner[norm > 1e-12, 0], normal[norm > 1e-12] / norm[norm > 1e-12, None]
  normal = normal * np.sign(normal @ down)[:, None]
  level = normal @ down > np.cos(np.radians(_TILT))
  corner, normal = corner[level], normal[level]
  if not len(normal):
    raise Refused("No three points below the cameras make a level plane; expected a ground.")
  over = np.sum((corner - middle) * normal, axis=1)
  off = np.abs(below @ normal.T - np.sum(corner * normal, axis=1))
  on = off < _THICKNESS * np.maximum(over, 1e-12)
  best = int(np.argmax(on.sum(axis=0)))
  ground = below[on[:, best]]
  if len(ground) < _GROUND:
    raise Refused(f"{len(ground)} points on the ground; expected at least {_GROUND}.")
  center = ground.mean(axis=0)
  *_, axes = np.linalg.svd(ground - center, full_matrices=False)
  up = axes[2] * np.sign(axes[2] @ down)
  chosen = ground[rng.permutation(len(ground))[:_POINTS_A_FRAME]]
  # How far each ground point lies below each camera, across the fitted plane.
  lies = (chosen[None] - poses[:, None, :3, 3]) @ up
  frames = np.repeat(np.arange(len(poses)), len(chosen))
  relative = lies.ravel()
  return Anchors(relative, np.full(len(relative), height), np.ones(len(relative)), frames)
