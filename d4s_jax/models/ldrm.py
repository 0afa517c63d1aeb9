"""The latent dynamic reconstruction model: video latents and cameras to moving Gaussians."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from d4s_jax.geometry.plucker import camera_map
from d4s_jax.models import deformation_head, gaussian_head, pruning
from d4s_jax.models.stem import Detail, Stem
from d4s_jax.models.trunk import Trunk
from d4s_jax.types import Cameras, DynamicGaussians

CANONICAL = ("source", "first")


class SourcePoints(NamedTuple):
  """Points of the source video.

  Attributes:
    frames: source frame of each point.
    pixels: its (x, y) on the image plane, in pixels of the source cameras.
  """

  frames: Int[Array, "b n"]
  pixels: Float[Array, "b n 2"]


class Auxiliary(NamedTuple):
  """What losses and plots need beside the scene.

  Attributes:
    depth: z-depth of the whole map, metres.
    kept: index into the flattened map of each Gaussian of the scene.
    displacement: dmu of the source points asked for, metres, at each time; n is 0 without any.
  """

  depth: Float[Array, "b F H W"]
  kept: Int[Array, "b m"]
  displacement: Float[Array, "b q n 3"]


class LDRM(nn.Module):
  """Reconstructs a scene from the latents of a video, in one pass (Diff4Splat, section "LDRM").

  Attributes:
    gaussians: how many of the map are kept (M).
    width: of the tokens.
    depth: number of blocks.
    heads: attention heads.
    strides: frames, rows, columns of video a latent.
    patch: side of a token in latents.
    stem: residual convolutions over the decoded video, whose features tokens and heads see beside
      the latents (`models.stem`); 0, as in the paper, for latents alone.
    pixels_per_cell: side of a cell of the Gaussian map in source pixels.
    encoding: of the cameras, "plucker" or "flat".
    canonical: "source": Gaussians of all frames, each canonical at its own; "first": those of the
      first frame alone.
    degree: of the spherical harmonics, 0 or 1.
    motion_channels: width of the deformation head.
    scene_scale: metres that are one unit of depth and of translation inside the model.
    initial_depth: z-depth in metres before training.
    opacity_bias: opacity before training, as its logit.
    random_share: of the kept Gaussians that a key draws.
    dtype: compute dtype; what becomes a Gaussian is computed in float32.
    remat: what of a block the backward pass computes again, a name in `layers.transformer.REMAT`.
  """

  gaussians: int
  width: int = 1024
  depth: int = 16
  heads: int = 16
  strides: tuple[int, int, int] = (4, 8, 8)
  patch: int = 2
  stem: int = 0
  pixels_per_cell: int = 1
  encoding: str = "plucker"
  canonical: str = "source"
  degree: int = 0
  motion_channels: int = 128
  scene_scale: float = 10.0
  initial_depth: float = 4.0
  opacity_bias: float = -2.0
  random_share: float = 0.25
  dtype: DTypeLike = jnp.float32
  remat: str = "products"

  def setup(self):
    """Builds the trunk and the two heads."""
    time, rows, columns = self.strides
    if rows % self.pixels_per_cell or columns % self.pixels_per_cell:
      raise ValueError(
        f"Cells of {self.pixels_per_cell} pixels don't divide a latent of {rows}x{columns} pixels."
      )
    if self.canonical not in CANONICAL:
      raise ValueError(f"Unknown canonical {self.canonical!r}; expected one of {CANONICAL}.")
    rows, columns = rows // self.pixels_per_cell, columns // self.pixels_per_cell
    latent, token = (time, rows, columns), (time, rows * self.patch, columns * self.patch)
    self.trunk = Trunk(
      width=self.width,
      depth=self.depth,
      heads=self.heads,
      strides=self.strides,
      patch=self.patch,
      taps=deformation_head.TAPS,
      dtype=self.dtype,
      remat=self.remat,
    )
    if self.stem:
      near = self.initial_depth / self.scene_scale
      self.video_stem = Stem(self.stem, self.strides[1:], near, self.dtype, name="stem")
      self.detail = Detail(token, latent[1:], self.dtype)
    self.gaussian = gaussian_head.GaussianHead(token, latent, self.degree, self.dtype)
    self.deformation = deformation_head.DeformationHead(self.motion_channels, token, self.dtype)

  def __call__(
    self,
    latents: Float[Array, "b f h w c"],
    cameras: Cameras,
    times: Float[Array, "b q"],
    *,
    video: Float[Array, "b F H W 3"] | None = None,
    sigma: Float[Array, "b"] | None = None,
    points: SourcePoints | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[DynamicGaussians, Auxiliary]:
    """Reconstructs a batch of scenes.

    Args:
      latents: normalised latents of a video whose 1 + 4k frames span the clip times 0 to 1.
      cameras: of all frames, [b F], for the whole image of the video; the first is the identity.
      times: clip times at which the deformation is wanted, rising.
      video: what the latents decode to, nominally in [0, 1] but not clipped; for a model with a
        `stem`, and none other.
      sigma: noise level in [0, 1] at which a denoiser guessed the latents; None: they are clean.
      points: source points whose displacement at `times` is wanted. With `canonical` "first", only
        points of frame 0 have one; those of other frames get that of their pixel in frame 0.
      key: for training: draws a share of the Gaussians (see `pruning.select`).

    Returns:
      The scene with its deformation at `times`, and what losses need.

    Raises:
      ValueError: sizes that don't fit each other or the budget; the message says which.
    """
    sigma = jnp.zeros(latents.shape[0]) if sigma is None else sigma
    scaled = _in_units(cameras, self.scene_scale)
    if (video is None) == bool(self.stem):
      raise ValueError(
        f"A reconstruction model with a stem of {self.stem} takes"
        f" {'the decoded video beside the latents' if self.stem else 'no video'}."
      )
    seen = None if video is None else self.video_stem(video, scaled)
    tokens, taps = self.trunk(latents, camera_map(scaled, self.encoding), sigma, seen)
    if self.canonical == "first":
      parts = (tokens, taps, latents, seen, video)
      tokens, taps, latents, seen, video = jax.tree.map(lambda x: x[:, :1], parts)
      cameras = cameras[:, :1]
    detail = None if seen is None or video is None else self.detail(tokens, seen, video)

    raw = self.gaussian(tokens, latents, video, detail)
    canonical = gaussian_head.activate(
      raw,
      cameras,
      scene_scale=self.scene_scale,
      initial_depth=self.initial_depth,
      opacity_bias=self.opacity_bias,
    )
    flat = jax.tree.map(lambda x: jax.lax.collapse(x, 1, 4), canonical)
    kept = pruning.select(flat.opacities, self.gaussians, key=key, random_share=self.random_share)
    asked = _cells(points, cameras, raw.shape[1:4]) if points else kept[:, :0]
    deformation = self.deformation(taps, jnp.concatenate([kept, asked], axis=1), times, detail)
    scene = _scene(flat, kept, times, deformation[:, :, : self.gaussians])
    displacement = deformation[:, :, self.gaussians :, :3]
    return scene, Auxiliary(canonical.depth, kept, displacement)


def _scene(flat: gaussian_head.GaussianMap, kept, times, deformation) -> DynamicGaussians:
  """The kept Gaussians of a flattened map."""
  chosen = jax.vmap(lambda gaussians, index: jax.tree.map(lambda x: x[index], gaussians))(
    flat, kept
  )
  return DynamicGaussians(
    means=chosen.means,
    quaternions=chosen.quaternions,
    raw_scales=chosen.raw_scales,
    footprints=chosen.footprints,
    opacities=pruning.switch_off(chosen.opacities),
    harmonics=chosen.harmonics,
    times=times,
    deformation=deformation,
  )


def _cells(points: SourcePoints, cameras: Cameras, grid: tuple[int, ...]) -> Int[Array, "b n"]:
  """Index into the flattened map of the cell that each point falls in."""
  frames, rows, columns = grid
  x, y = points.pixels[..., 0] / cameras.width, points.pixels[..., 1] / cameras.height
  column = jnp.clip(jnp.floor(x * columns).astype(jnp.int32), 0, columns - 1)
  row = jnp.clip(jnp.floor(y * rows).astype(jnp.int32), 0, rows - 1)
  frame = jnp.clip(points.frames, 0, frames - 1)
  return (frame * rows + row) * columns + column


def _in_units(cameras: Cameras, scene_scale: float) -> Cameras:
  """The cameras with translations in units of the scene scale."""
  unit = jnp.ones((4, 4)).at[:3, 3].set(1 / scene_scale)
  pose = cameras.world_from_camera
  return dataclasses.replace(cameras, world_from_camera=pose * jnp.broadcast_to(unit, pose.shape))
