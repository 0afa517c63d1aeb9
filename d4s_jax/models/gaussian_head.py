"""From tokens to a map of Gaussians: one for each cell of each source frame."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import harmonics, rotations
from d4s_jax.layers.convolution import FrameConv
from d4s_jax.layers.linear import dense
from d4s_jax.models.deconvolution import Deconvolution
from d4s_jax.types import Cameras

# Depth, rgb, scale, quaternion, opacity.
CHANNELS = 12
# Bounds of depth as a multiple of the scene scale.
DEPTH_RANGE = (0.01, 100.0)
# Standard deviation of an untrained Gaussian in cells. Splats at true depth show the scene sharpest
# near this: half a cell blurs, a quarter leaves gaps.
INITIAL_SCALE = 0.37
# Harmonics of degree 1 start this much smaller than the constant colour (MoVieS: .1 * .25^degree).
DEGREE_1_SCALE = 0.025
# Of a pixel's colour in [-1, 1], whose raw value would be infinite at 1.
COLOUR_LIMIT = 0.98


class GaussianMap(NamedTuple):
  """Canonical Gaussians of all cells, as in `DynamicGaussians`, and the depth they were put at."""

  means: Float[Array, "*b 3"]
  quaternions: Float[Array, "*b 4"]
  raw_scales: Float[Array, "*b 3"]
  footprints: Float[Array, "*b"]
  opacities: Float[Array, "*b"]
  harmonics: Float[Array, "*b k 3"]
  depth: Float[Array, "*b"]


class GaussianHead(nn.Module):
  """Deconvolution of the tokens to raw channels, with a skip from the input to colour.

  The skip lets colours be right long before the trunk is. At generation there are no pixels, only
  latents, so it is a linear map from them. A latent colours the frames that it was encoded from,
  with its neighbours: for `tiny`, the best such map explains colours 2 dB better than that of each
  latent alone. Where there is a decoded video (`models.stem`), the skip is its pixels.

  Attributes:
    upsampling: frames, rows, columns of the map a token.
    latent_upsampling: frames, rows, columns of the map a latent.
    degree: of the spherical harmonics, 0 or 1.
    dtype: compute dtype.
  """

  upsampling: tuple[int, int, int]
  latent_upsampling: tuple[int, int, int]
  degree: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Float[Array, "b f h w d"],
    latents: Float[Array, "b f y x c"],
    video: Float[Array, "b F Y X 3"] | None = None,
    detail: Float[Array, "b F H W e"] | None = None,
  ) -> Float[Array, "b F H W k"]:
    """Returns the raw channels, float32; see `activate`."""
    if self.degree not in (0, 1):
      raise ValueError(f"Spherical harmonics of degree {self.degree}; the head predicts 0 or 1.")
    features = CHANNELS + 9 * self.degree
    # Small at first: every Gaussian starts near the biases of `activate`.
    raw = Deconvolution(features, self.upsampling, 0.1, self.dtype, name="map")(tokens)
    raw = raw.astype(jnp.float32)
    if video is None or detail is None:
      return raw.at[..., 1:4].add(self._colour(latents))
    small = nn.initializers.normal(0.1 / detail.shape[-1] ** 0.5)
    fine = dense(features, None, None, dtype=self.dtype, kernel_init=small, name="detail")(detail)
    return (raw + fine.astype(jnp.float32)).at[..., 1:4].add(raw_colour(video, raw.shape[2:4]))

  def _colour(self, latents):
    time, rows, columns = self.latent_upsampling
    zeros = nn.initializers.zeros
    colour = FrameConv(
      3 * time * rows * columns, dtype=self.dtype, kernel_init=zeros, name="colour"
    )(latents)
    colour = rearrange(
      colour, "b f y x (t r s d) -> b (f t) (y r) (x s) d", t=time, r=rows, s=columns
    )
    # The first latent stands for the first frame alone.
    return colour[:, time - 1 :].astype(jnp.float32)


def raw_colour(
  video: Float[Array, "b f Y X 3"], grid: tuple[int, ...]
) -> Float[Array, "b f H W 3"]:
  """The mean colours of the cells of a grid (H, W) as raw channels of `activate`."""
  rows, columns = video.shape[2] // grid[0], video.shape[3] // grid[1]
  cells = reduce(
    video.astype(jnp.float32), "b f (y r) (x s) c -> b f y x c", "mean", r=rows, s=columns
  )
  return jnp.arctanh(jnp.clip(2 * cells - 1, -COLOUR_LIMIT, COLOUR_LIMIT))


def activate(
  raw: Float[Array, "b f h w k"],
  cameras: Cameras,
  *,
  scene_scale: float,
  initial_depth: float,
  opacity_bias: float = -2.0,
) -> GaussianMap:
  """Gaussians of raw channels that are 0 for a grey, round, `initial_depth` distant one.

  Args:
    raw: depth 1, rgb 3, scale 3, quaternion 4, opacity 1, then the 9 harmonics of degree 1, if any.
    cameras: the source cameras [b f] at any image size.
    scene_scale: metres that are one unit of depth: bounds depth to [0.01, 100] units.
    initial_depth: z-depth in metres at raw depth 0.
    opacity_bias: raw opacity 0 is the opacity sigmoid(opacity_bias).

  Returns:
    Means on the rays through the centres of the cells, at depth exp(raw depth) * initial_depth. The
    footprint is the width of a cell there, detached: a scale error must not move a Gaussian.
  """
  cameras = pinhole.resize(cameras, *raw.shape[2:4])
  depth, rgb, scale, quaternion, opacity, rest = jnp.split(
    raw.astype(jnp.float32), np.cumsum([1, 3, 3, 4, 1]), axis=-1
  )
  low, high = (np.log(bound * scene_scale / initial_depth) for bound in DEPTH_RANGE)
  depth = initial_depth * jnp.exp(jnp.clip(depth[..., 0], low, high))
  focal, _ = pinhole.focal_and_center(cameras.intrinsics)
  focal = jnp.sqrt(jnp.prod(focal, axis=-1))
  colour = harmonics.from_rgb(0.5 * jnp.tanh(rgb) + 0.5)
  rest = DEGREE_1_SCALE * rest.reshape(*rest.shape[:-1], -1, 3)
  return GaussianMap(
    means=pinhole.unproject(depth, cameras),
    quaternions=rotations.normalize(quaternion + _IDENTITY),
    raw_scales=scale + np.float32(np.log(INITIAL_SCALE)),
    footprints=jax.lax.stop_gradient(depth) / focal[..., None, None],
    opacities=jax.nn.sigmoid(opacity[..., 0] + opacity_bias),
    harmonics=jnp.concatenate([colour, rest], axis=-2),
    depth=depth,
  )


_IDENTITY = np.array([1, 0, 0, 0], np.float32).reshape(1, 1, 1, 1, 4)
