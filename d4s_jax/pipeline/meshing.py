"""The surface of a scene at one time, as a mesh: depth from many views, fused."""

import collections
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Float

from d4s_jax.formats.mesh import Mesh
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import fusion
from d4s_jax.pipeline import shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.types import Cameras, DynamicGaussians

# Voxels along the longest side: 4 cm in a room.
_VOXELS = 128
# What distances from the surface are told as shares of, voxels.
_TRUNCATION = 4.0
# Rows of what they see: a pixel is then about half a voxel.
_ROWS = 256
# Cameras of the path that look: so many, and one more for each turn by so many degrees.
_LEAST, _MOST, _TURN = 3, 12, 30.0
# How far to the sides of its middle one others stand, as shares of the distance to what it sees.
_SIDES = np.array([[-0.2, 0.12, 0], [0.2, 0.12, 0], [0, -0.2, 0]])
# What is less opaque has no surface, and where it is hardly opaque there is nothing.
_SOLID, _EMPTY = 0.5, 0.1
# Neighbouring depths that differ by more lie on different surfaces.
_JUMP = 0.05
# Of the points on either side of each axis, those that may be far from all others.
_OUTLIERS = 0.01
# A piece with fewer faces is a speck.
_LEAST_FACES = 50
_NONE = "The views agree on no surface; the scene has none to export."


def meshes(
  dynamic: DynamicGaussians, metadata: SceneMetadata, times: Float[np.ndarray, "t"]
) -> Iterator[Mesh]:
  """The surface at each time, seen from the path and the sides of its middle.

  Surfaces of different times are unrelated: no vertex of one belongs to a vertex of another.

  Raises:
    ValueError: nothing is opaque enough to have a surface, or scikit-image is not installed.
  """
  cameras, far = view_cameras(dynamic, metadata), np.float32(np.inf)
  dynamic, count = jax.device_put(dynamic), len(cameras.intrinsics)

  def mesh(time: float) -> Mesh:
    # Sharp: with the blur of the scene's own pixels known surfaces came out 17 cm off, not 12.
    drawn = draw(dynamic, cameras, np.full(count, time, np.float32), "")
    depth = np.where(drawn.alpha > _SOLID, drawn.depth, np.where(drawn.alpha < _EMPTY, far, 0))
    # Of the surface alone: what is translucent lets the black behind it through.
    colours = np.asarray(drawn.image) / np.maximum(drawn.alpha, _SOLID)[..., None]
    return surface(fusion.without_edges(depth, _JUMP), colours, cameras)

  # Two moments at once, while the caller writes a third: none uses all cores by itself.
  coming: collections.deque[Future[Mesh]] = collections.deque()
  with ThreadPoolExecutor(2) as threads:
    for time in times:
      coming.append(threads.submit(mesh, time))
      if len(coming) > 2:
        yield coming.popleft().result()
    while coming:
      yield coming.popleft().result()


def surface(
  depth: Float[np.ndarray, "v h w"],
  images: Float[np.ndarray, "v h w 3"],
  cameras: Cameras,
  voxels: int = _VOXELS,
) -> Mesh:
  """The mesh of what depth pictures show.

  Args:
    depth: z-depth, metres; 0 where it is unknown, infinite where there is nothing.
    images: colours in [0, 1].
    cameras: of the pictures; their arrays are NumPy's.
    voxels: along the longest side of what is seen.

  Raises:
    ValueError: nothing is seen, or scikit-image is not installed.
  """
  try:
    from skimage import measure
  except ModuleNotFoundError as error:
    raise ValueError("A mesh needs scikit-image: pip install 'd4s_jax[mesh]'.") from error
  found = fusion.points(depth, cameras)
  if not len(found):
    raise ValueError("Nothing in the scene is opaque, so that it has no surface to export.")
  low, voxel, shape = fusion.bounds(found, voxels, _OUTLIERS)
  field = fusion.fuse(depth, cameras, low, voxel, shape, _TRUNCATION, found)
  distance = field.distance
  if not (distance < 0).any():
    raise ValueError(_NONE)
  try:
    corners, faces, *_ = measure.marching_cubes(
      distance, 0.0, gradient_direction="descent", mask=field.seen
    )
  except (
    RuntimeError,
    ValueError,
  ) as error:  # no voxel that was seen has both signs at its corners
    raise ValueError(_NONE) from error
  # A corner lies between two voxels; where one was not seen, its distance means nothing.
  low_end, high_end = np.floor(corners).astype(np.int64), np.ceil(corners).astype(np.int64)
  known = field.seen[tuple(low_end.T)] & field.seen[tuple(high_end.T)]
  faces = faces[known[faces].all(axis=1)]
  if not len(faces):
    raise ValueError(_NONE)
  keep = _large(faces, len(corners))
  faces, used = faces[keep], np.zeros(len(corners), bool)
  used[faces] = True
  vertices, faces = low + voxel * corners[used], (np.cumsum(used) - 1)[faces]
  return Mesh(
    vertices=vertices.astype(np.float32),
    faces=faces.astype(np.int32),
    normals=_normals(vertices, faces).astype(np.float32),
    colours=fusion.paint(vertices, depth, images, cameras, _TRUNCATION * voxel),
  )


def view_cameras(dynamic: DynamicGaussians, metadata: SceneMetadata) -> Cameras:
  """What looks at the surface: cameras of the path, and some beside its middle one, in NumPy."""
  cameras = shot.enlarged(metadata.cameras)
  if cameras.height > _ROWS:
    cameras = pinhole.resize(cameras, _ROWS, round(_ROWS * cameras.width / cameras.height))
  count, turns = len(cameras.intrinsics), np.asarray(cameras.world_from_camera)[:, :3, :3]
  cosine = (np.einsum("fij,fij->f", turns[:-1], turns[1:]) - 1) / 2
  turned = np.degrees(np.arccos(np.clip(cosine, -1, 1))).sum()
  views = min(_LEAST + int(turned / _TURN), _MOST)
  chosen = np.unique(np.linspace(0, count - 1, views).round().astype(int))
  middle = count // 2
  pose = np.asarray(cameras.world_from_camera)[middle]
  ahead = (np.asarray(dynamic.means) - pose[:3, 3]) @ pose[:3, 2]
  seen = (np.asarray(dynamic.opacities) > _SOLID) & (ahead > 0)
  distance = float(np.median(ahead[seen])) if seen.any() else 1.0
  sides = shot.around(cameras, middle, distance, _SIDES)
  both = [jax.device_get(x) for x in (cameras[chosen], sides)]
  return jax.tree.map(lambda *x: np.concatenate(x), *both)


def _large(faces: np.ndarray, count: int) -> np.ndarray:
  """Which faces belong to a connected piece that is no speck."""
  from scipy.sparse import coo_array, csgraph

  edges = np.concatenate([faces[:, :2], faces[:, 1:]])
  graph = coo_array((np.ones(len(edges), bool), tuple(edges.T)), shape=(count, count))
  _, piece = csgraph.connected_components(graph, directed=False)
  sizes = np.bincount(piece[faces[:, 0]], minlength=piece.max() + 1)
  least = min(_LEAST_FACES, sizes.max())
  return (sizes >= least)[piece[faces[:, 0]]]


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
  """Of the vertices, the mean of their faces' by area: the field is not known on all sides."""
  a, b, c = (vertices[faces[:, i]] for i in range(3))
  crossed = np.cross(b - a, c - a)
  total = np.zeros_like(vertices)
  for axis in range(3):
    weights = np.repeat(crossed[:, axis], 3)
    total[:, axis] = np.bincount(faces.ravel(), weights, minlength=len(vertices))
  return total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-12)
