"""Camera maps: what tells a network, at each pixel, where its camera is and looks.

`plucker` is the ray as (moment, direction), moment first: (o x d, d), with d of unit length in
world axes and o in metres. The moment is the same for every point o of the ray. `flat` is the
twelve numbers of [R | t], repeated over all pixels: the baseline of the paper's ablation of the
camera encoding (Diff4Splat, supplement, table 3).
"""

import einops
from jaxtyping import Float

from d4s_jax.geometry import EitherArray, namespace
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.types import Cameras

# Channels of each encoding.
CHANNELS = {"plucker": 6, "flat": 12}


def camera_map(cameras: Cameras, encoding: str = "plucker") -> Float[EitherArray, "*b h w c"]:
  """The camera map of each camera, with CHANNELS[encoding] channels.

  Raises:
    ValueError: the encoding is unknown.
  """
  if encoding == "plucker":
    return plucker(cameras)
  if encoding == "flat":
    return flat(cameras)
  raise ValueError(f"Unknown camera encoding {encoding!r}; expected one of {sorted(CHANNELS)}.")


def plucker(cameras: Cameras) -> Float[EitherArray, "*b h w 6"]:
  """Ray moment and unit direction of all pixel centres, (o x d, d)."""
  origins, directions = pinhole.rays(cameras)
  xp = namespace(origins, directions)
  return xp.concatenate([xp.cross(origins, directions), directions], axis=-1)


def flat(cameras: Cameras) -> Float[EitherArray, "*b h w 12"]:
  """The rows of the 3x4 matrix [R | t] of `world_from_camera`, the same at every pixel."""
  return einops.repeat(
    cameras.world_from_camera[..., :3, :],
    "... row column -> ... h w (row column)",
    h=cameras.height,
    w=cameras.width,
  )
