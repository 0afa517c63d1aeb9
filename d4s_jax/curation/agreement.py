"""Whether depth, cameras and tracks of a scene tell the same story: a check of conventions.

An axis or an inverse that is mistaken makes pictures that look right one by one; seen from
elsewhere they fall apart.
"""

import numpy as np
from jaxtyping import Float

from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras

# Depths that differ by less agree; a pixel's own slope makes a few percent.
CLOSE = 0.05
# Frames are compared that are this far apart, relative to the median depth, or turned by so many
# degrees: neighbours agree under any convention.
_FAR_APART, _TURNED = 0.25, 20.0
_SAMPLES = 4000


def partner(cameras: Cameras, depth: Float[np.ndarray, "h w"]) -> int:
  """The first frame whose camera is far enough from that of frame 0, which has this depth.

  If the camera hardly moves, the last.
  """
  world = np.asarray(cameras.world_from_camera)
  known = depth[depth > 0]
  middle = float(np.median(known)) if len(known) else np.inf
  away = np.linalg.norm(world[:, :3, 3] - world[0, :3, 3], axis=-1)
  turned = np.degrees(np.arccos(np.clip(world[:, :3, 2] @ world[0, :3, 2], -1, 1)))
  far = (away > _FAR_APART * middle) | (turned > _TURNED)
  return int(np.argmax(far)) if far.any() else len(world) - 1


def depth_agreement(
  depth: Float[np.ndarray, "h w"],
  camera: Cameras,
  other_depth: Float[np.ndarray, "h w"],
  other: Cameras,
) -> float:
  """Share of the points of one frame whose depth in another frame is what that frame says.

  Of the points that the other camera has in its picture, both ways, the lesser of the two. Points
  that something hides disagree, so a few do in any scene.

  Args:
    depth: of the frame, metres; 0 where unknown.
    camera: of the frame.
    other_depth: of the other frame.
    other: its camera.

  Returns:
    From 0 to 1; NaN if no point can be compared.
  """
  return float(
    np.fmin(
      _one_way(depth, camera, other_depth, other), _one_way(other_depth, other, depth, camera)
    )
  )


def _one_way(depth: np.ndarray, camera: Cameras, other_depth: np.ndarray, other: Cameras) -> float:
  points = camera_geometry.unproject(depth, camera)[depth > 0]
  points = points[:: max(1, len(points) // _SAMPLES)]
  pixels, expected = camera_geometry.project(points, other)
  inside = (
    (expected > 0)
    & (pixels >= 0).all(-1)
    & (pixels[:, 0] < other.width)
    & (pixels[:, 1] < other.height)
  )
  column, row = pixels[inside].astype(int).T
  stated, expected = other_depth[row, column], expected[inside]
  known = stated > 0
  if not known.any():
    return float("nan")
  return float((np.abs(expected[known] / stated[known] - 1) < CLOSE).mean())


def carried(
  image: Float[np.ndarray, "h w 3"],
  depth: Float[np.ndarray, "h w"],
  camera: Cameras,
  other: Cameras,
) -> Float[np.ndarray, "h w 3"]:
  """A frame's pixels where another camera would see them; black where it would see none."""
  known = depth > 0
  points = camera_geometry.unproject(depth, camera)[known]
  pixels, distance = camera_geometry.project(points, other)
  inside = (
    (distance > 0)
    & (pixels >= 0).all(-1)
    & (pixels[:, 0] < other.width)
    & (pixels[:, 1] < other.height)
  )
  # Far pixels first, so that near ones cover them; each in the four pixels around it before, where
  # the other camera is nearer and would see gaps.
  order = np.argsort(-distance[inside])
  place, colors = pixels[inside][order], image[known][inside][order]
  out = np.zeros((other.height, other.width, 3), np.float32)
  for shift in ([-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0, 0]):
    column, row = (place + shift).clip(0, (other.width - 1, other.height - 1)).astype(int).T
    out[row, column] = colors
  return out
