"""The nouns that cross package borders, all of them pytrees, and the glossary of dimensions.

Shape letters: `b` batch, `f` frames, `h w` pixels, `c` channels, `n` tokens or Gaussians,
`l` text tokens, `d` width, `v` views, `t` times, `k` spherical-harmonic coefficients. `*b` stands
for any number of leading axes.

Conventions (pinned by tests/geometry): OpenCV camera axes (x right, y down, z forward); poses are
`world_from_camera`; intrinsics are in pixels with pixel centres at +0.5; metres; quaternions are
`wxyz`, unit, Hamilton product; depth is z-depth; images are channel-last float in [0, 1]; time runs
from 0 to 1 over a clip.

The fields hold NumPy arrays in data workers and JAX arrays elsewhere.
"""

import dataclasses
import typing
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

# Bound of the learnt log-scale around a Gaussian's footprint: a Gaussian is between 1/20 and 55
# cells of its map wide.
LOG_SCALE_RANGE = (-3.0, 4.0)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def _pytree(*static: str):
  """Class decorator: a frozen dataclass registered as a pytree; `static` fields are metadata."""

  def register(cls):
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    data = [name for name in names if name not in static]
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=list(static))

  return register


@_pytree("height", "width", "model")
class Cameras:
  """Cameras that share an image size and a camera model.

  Attributes:
    world_from_camera: rigid 4x4 poses, OpenCV axes, metres.
    intrinsics: 3x3 matrices in pixels of a `height` x `width` image; the focal lengths of an
      orthographic camera are in pixels per metre.
    height: image height in pixels.
    width: image width in pixels.
    model: "pinhole" or "orthographic" (parallel rays along z).
  """

  world_from_camera: Float[Array, "*b 4 4"]
  intrinsics: Float[Array, "*b 3 3"]
  height: int
  width: int
  model: str = "pinhole"

  def __getitem__(self, index) -> "Cameras":
    """Selects along the leading axes."""
    return dataclasses.replace(
      self,
      world_from_camera=self.world_from_camera[index],
      intrinsics=self.intrinsics[index],
    )


@_pytree()
class Views:
  """Posed and timed images.

  Attributes:
    images: RGB in [0, 1].
    depth: z-depth in metres; 0 where it is unknown.
    cameras: one camera for each image.
    times: clip time of each image in [0, 1].
  """

  images: Float[Array, "*b v h w 3"]
  depth: Float[Array, "*b v h w"]
  cameras: Cameras
  times: Float[Array, "*b v"]


@_pytree()
class Tracks:
  """3D point tracks over the source frames of a clip.

  Attributes:
    points: world positions in metres; 0 where `valid` is False.
    visible: the point is seen, unoccluded, in that source frame.
    valid: the position is known at that frame.
  """

  points: Float[Array, "*b n f 3"]
  visible: Bool[Array, "*b n f"]
  valid: Bool[Array, "*b n f"]


@_pytree()
class Clip:
  """One training record, as a data source reads it and the loader batches it.

  Attributes:
    source: the input video, 1 + 4k frames; its first camera is the world origin.
    target: views at other places and times of the same scene, for supervision.
    tracks: point tracks over the source frames; n may be 0.
    instances: instance of each source pixel, 0 the static background.
    dynamic: whether anything moves.
    scale: metres in a unit of the clip's lengths; 0 if that isn't known. 1 unless the loader
      normalises scenes.
    text: the caption (str) as a source reads it; token ids, Int["*b l"], after the loader; with a
      text cache, their embeddings after that (`models.backbone.Embedded`).
  """

  source: Views
  target: Views
  tracks: Tracks
  instances: Int[Array, "*b f h w"]
  dynamic: Bool[Array, "*b"]
  scale: Float[Array, "*b"]
  text: Any


@_pytree()
class Gaussians:
  """3D Gaussians ready to be drawn; an unused slot has zero opacity.

  Attributes:
    means: centres in world axes, metres.
    quaternions: orientation, `wxyz`, unit.
    scales: standard deviations along the own axes, metres, positive.
    opacities: in [0, 1].
    harmonics: spherical-harmonic colour, k = (degree + 1)^2;
      rgb = max(0, 0.5 + sum_k Y_k(direction) harmonics_k), as in 3DGS.
  """

  means: Float[Array, "*b n 3"]
  quaternions: Float[Array, "*b n 4"]
  scales: Float[Array, "*b n 3"]
  opacities: Float[Array, "*b n"]
  harmonics: Float[Array, "*b n k 3"]


@_pytree()
class DynamicGaussians:
  """Canonical Gaussians and their deformation at a list of times (supplement, equation 2).

  mu_t = mu_0 + dmu, q_t = q_0 (x) dq, raw scale + ds before its activation; the scale is
  footprint * exp(clip(raw scale, LOG_SCALE_RANGE)). Opacity and colour do not deform.

  Attributes:
    means: canonical centres in world axes, metres.
    quaternions: canonical orientation, `wxyz`, unit.
    raw_scales: canonical scale before its activation.
    footprints: width, at the Gaussian's depth, of the cell of the source image that it was
      predicted for, metres.
    opacities: in [0, 1]; 0 in unused slots.
    harmonics: colour, as in `Gaussians`.
    times: the clip times, rising, at which the deformation is known.
    deformation: dmu (3, metres), dq (4, unit, wxyz) and ds (3) at each of `times`.
  """

  means: Float[Array, "*b n 3"]
  quaternions: Float[Array, "*b n 4"]
  raw_scales: Float[Array, "*b n 3"]
  footprints: Float[Array, "*b n"]
  opacities: Float[Array, "*b n"]
  harmonics: Float[Array, "*b n k 3"]
  times: Float[Array, "*b t"]
  deformation: Float[Array, "*b t n 10"]


@_pytree()
class Rendering:
  """What a renderer returns for each camera.

  Attributes:
    image: RGB over the background.
    depth: expected z-depth in metres, normalised by alpha; 0 where alpha is 0.
    alpha: accumulated opacity in [0, 1].
    overflow: Gaussian-tile intersections that did not fit the static capacity and were dropped.
  """

  image: Float[Array, "*b h w 3"]
  depth: Float[Array, "*b h w"]
  alpha: Float[Array, "*b h w"]
  overflow: Int[Array, "*b"]
