"""EWA projection of 3D Gaussians to 2D splats, shared by the backends (gsplat's classic mode).

A Gaussian that can't be seen (behind the near plane, transparent, not finite, outside the image)
becomes a splat with zero extent and zero opacity; its other numbers are harmless stand-ins, put in
before they are used, so that gradients never meet a division by zero.

The arithmetic is written on scalar components, arrays [v n], and vectors are tuples of those: XLA
makes one vector loop of it, whereas arrays of 3x3 matrices would be multiplied one by one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from d4s_jax.geometry import harmonics, poses, rotations
from d4s_jax.types import Cameras, Gaussians

# Variance in square pixels added to every splat, where nothing else is said: a pixel's footprint.
BLUR = 0.3
# Metres; what is closer to the camera plane is not drawn.
NEAR = 0.01
# Contributions below this opacity are skipped.
MIN_ALPHA = 1 / 255
# Cap of one splat's opacity at a pixel: (1 - alpha) has to stay invertible.
MAX_ALPHA = 0.999
# A pixel is finished before its transmittance would fall to this or below.
MIN_TRANSMITTANCE = 1e-4

# The slope of the viewing ray in the linearisation is limited to the image plus this share of
# half its width (or height) on each side.
_SLOPE_MARGIN = 0.3
# Ratio of a splat's area before and after the blur, squared, below which it counts as none.
_THINNEST = 1e-12
# Centres (metres) and scales beyond this would overflow float32 in the projected covariance.
_LARGEST = 1e6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Splats:
  """2D Gaussians of each view, in pixels.

  Attributes:
    means: centres; the middle of the first pixel is (0.5, 0.5).
    conics: (a, b, c) of the inverse covariance [[a, b], [b, c]].
    extents: half width and half height of the box outside which the splat is below MIN_ALPHA;
      0 for a splat that is not seen. Carries no gradient.
    depths: z-depth of the centre, metres.
    opacities: at the centre; 0 for a splat that is not seen.
    colours: RGB as seen from this camera.
  """

  means: Float[Array, "*v n 2"]
  conics: Float[Array, "*v n 3"]
  extents: Float[Array, "*v n 2"]
  depths: Float[Array, "*v n"]
  opacities: Float[Array, "*v n"]
  colours: Float[Array, "*v n 3"]


def project(
  gaussians: Gaussians, cameras: Cameras, *, antialiased: bool = False, blur: float = BLUR
) -> Splats:
  """Projects Gaussians [v n] into cameras [v].

  The camera sees covariance J W Sigma W^T J^T + blur I, with W the rotation into the camera and J
  the Jacobian of the projection at the centre (Zwicker et al. 2001, "EWA splatting").

  Args:
    gaussians: one set for each camera.
    cameras: one for each set.
    antialiased: lower the opacity of a splat by as much as the blur widens it (Yu et al. 2024,
      "Mip-Splatting", 2D filter), so that what is smaller than a pixel is as bright at any
      resolution.
    blur: variance in square pixels added to every splat.
  """
  centre, quaternion, scale, usable = _components(gaussians)
  camera_from_world = rearrange(poses.invert(cameras.world_from_camera), "v i j -> i j v 1")
  x, y, z = (_dot(row[:3], centre) + row[3] for row in camera_from_world[:3])
  usable &= z >= NEAR
  x, y, z = jnp.where(usable, x, 0), jnp.where(usable, y, 0), jnp.where(usable, z, 1)
  parallel = cameras.model == "orthographic"
  lens = rearrange(cameras.intrinsics, "v i j -> i j v 1")
  focal_x, focal_y, centre_x, centre_y = lens[0, 0], lens[1, 1], lens[0, 2], lens[1, 2]
  zoom_x, zoom_y = (focal_x, focal_y) if parallel else (focal_x / z, focal_y / z)
  mean = zoom_x * x + centre_x, zoom_y * y + centre_y

  # The image of each of the Gaussian's three axes is a column of J W R S.
  slope_x = 0 if parallel else _limit_slope(x / z, focal_x, centre_x, cameras.width)
  slope_y = 0 if parallel else _limit_slope(y / z, focal_y, centre_y, cameras.height)
  axes = _axes(quaternion, scale, camera_from_world)
  right = [zoom_x * (axis[0] - slope_x * axis[2]) for axis in axes]
  down = [zoom_y * (axis[1] - slope_y * axis[2]) for axis in axes]
  sharp_xx, xy, sharp_yy = _dot(right, right), _dot(right, down), _dot(down, down)
  xx, yy = sharp_xx + blur, sharp_yy + blur
  determinant = xx * yy - xy * xy
  usable &= (determinant > 0) & (determinant < jnp.inf)
  determinant = jnp.where(usable, determinant, 1)

  opacities = jnp.where(usable, gaussians.opacities, 0)
  if antialiased:
    ratio = jnp.where(usable, (sharp_xx * sharp_yy - xy * xy) / determinant, 1)
    # Thinner than rounding resolves: invisible, and the root's slope at 0 is infinite.
    solid = ratio > _THINNEST
    opacities *= jnp.where(solid, jnp.sqrt(jnp.where(solid, ratio, 1)), 0)
  visible, extent = _bound(mean, (xx, yy), opacities, cameras)
  return Splats(
    means=jnp.stack(mean, -1),
    conics=jnp.stack([yy / determinant, -xy / determinant, xx / determinant], -1),
    extents=jax.lax.stop_gradient(jnp.stack(extent, -1)),
    depths=z,
    opacities=jnp.where(visible, opacities, 0),
    colours=_colours(gaussians.harmonics, centre, usable, cameras),
  )


def _components(gaussians: Gaussians):
  """Scalar components of centre, quaternion and scale, and which Gaussians can be drawn.

  One with a number that is not finite gets a stand-in: a NaN stays where it came in.
  """
  centre, quaternion, scale = (
    _split(x) for x in (gaussians.means, gaussians.quaternions, gaussians.scales)
  )
  usable = jnp.isfinite(sum(quaternion) + gaussians.opacities)
  usable &= jnp.isfinite(jnp.sum(gaussians.harmonics, axis=(-2, -1)))
  for component in (*centre, *scale):
    usable &= jnp.abs(component) < _LARGEST  # False for NaN

  def clean(components):
    return [jnp.where(usable, component, 0) for component in components]

  return clean(centre), clean(quaternion), clean(scale), usable


def _split(array: Float[Array, "v n c"]) -> list[Float[Array, "v n"]]:
  """Components of the last axis. The gradient is one concatenation; indexing's is a sum of pads."""
  parts = jax.lax.split(array, (1,) * array.shape[-1], axis=array.ndim - 1)
  return [part[..., 0] for part in parts]


def _dot(left, right):
  return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


def _axes(quaternion, scale, camera_from_world):
  """The three standard-deviation vectors of each Gaussian in camera axes, metres."""
  unit = rotations.normalize(jnp.stack(quaternion, -1))
  rotation = rearrange(rotations.to_matrix(unit), "v n i j -> i j v n")
  columns = [[rotation[i, j] * scale[j] for i in range(3)] for j in range(3)]
  return [[_dot(row[:3], column) for row in camera_from_world[:3]] for column in columns]


def _limit_slope(slope, focal, centre, size):
  margin = _SLOPE_MARGIN * size / (2 * focal)
  return jnp.clip(slope, -(centre / focal + margin), (size - centre) / focal + margin)


def _bound(mean, variance, opacities, cameras: Cameras):
  """Which splats are seen, and half width and height of their boxes, 0 for the others.

  opacity exp(-r^2 / 2) = MIN_ALPHA gives the radius r in standard deviations (Radl et al. 2024,
  "StopThePop", section B.2). A thousandth on top absorbs the rounding of thin splats' conics.
  """
  visible = opacities >= MIN_ALPHA
  radius = jnp.sqrt(2 * jnp.log(jnp.where(visible, opacities, MIN_ALPHA) / MIN_ALPHA))
  extent = [1e-3 + 1.001 * radius * jnp.sqrt(along) for along in variance]
  for middle, half, size in zip(mean, extent, (cameras.width, cameras.height)):
    visible &= (middle + half > 0) & (middle - half < size)
  return visible, [jnp.where(visible, half, 0) for half in extent]


def _colours(
  coefficients: Float[Array, "v n k 3"], centre, usable: Bool[Array, "v n"], cameras: Cameras
) -> Float[Array, "v n 3"]:
  """RGB along the ray from each camera to each Gaussian."""
  eye = rearrange(cameras.world_from_camera[:, :3, 3], "v i -> i v 1")
  offset = [jnp.where(usable, centre[i] - eye[i], 1) for i in range(3)]
  length = jnp.sqrt(_dot(offset, offset))
  directions = jnp.stack([component / length for component in offset], -1)
  coefficients = jnp.where(rearrange(usable, "v n -> v n 1 1"), coefficients, 0)
  return harmonics.evaluate(coefficients, directions)
