"""What writers of splats share: Gaussians that can be seen, in the units that files have."""

import os
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from d4s_jax.formats import atomic
from d4s_jax.geometry import harmonics, rotations
from d4s_jax.types import DynamicGaussians, Gaussians

# Opacities are stored as logits where a format wants them: 0 and 1 would be infinite.
_OPAQUE = 1 - 1e-6


class Visible(NamedTuple):
  """The fields of `Gaussians` of which there is something to see, in NumPy."""

  means: np.ndarray
  quaternions: np.ndarray
  scales: np.ndarray
  opacities: np.ndarray
  harmonics: np.ndarray


def visible(gaussians: Gaussians) -> Visible:
  """Those with an opacity, as float32 arrays of NumPy, quaternions of length 1."""
  arrays, seen = finite(gaussians)
  if not seen.all():
    arrays = {name: x[seen] for name, x in arrays.items()}
  arrays["quaternions"] = np.asarray(rotations.normalize(arrays["quaternions"]))
  return Visible(**arrays)


def finite(
  scene: Gaussians | DynamicGaussians,
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "n"]]:
  """The fields as float32 arrays of NumPy, and which of the Gaussians can be seen.

  Raises:
    ValueError: a value is NaN or infinite, or nothing can be seen.
  """
  arrays = {name: np.asarray(x, np.float32) for name, x in vars(scene).items()}
  wrong = sorted(name for name, x in arrays.items() if not np.isfinite(x).all())
  if wrong:
    raise ValueError(f"{', '.join(wrong)} of the Gaussians hold NaN or infinite values.")
  seen = arrays["opacities"] > 0
  if not seen.any():
    raise ValueError("All Gaussians have opacity 0; there is nothing to export.")
  return arrays, seen


def rgb(g: Visible) -> Float[np.ndarray, "n 3"]:
  """Colours of degree 0 alone."""
  return np.clip(0.5 + harmonics.C0 * g.harmonics[:, 0], 0, 1)


def linear(rgb):
  """Linear light of sRGB in [0, 1] (IEC 61966-2-1)."""
  return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def logit(x):
  """The logarithm of x / (1 - x), float32; x in [0, 1] is cut at 1 - 1e-6."""
  x = np.minimum(x.astype(np.float64), _OPAQUE)
  return np.log(x / (1 - x)).astype(np.float32)


def byte(x) -> np.ndarray:
  """The nearest of the whole numbers 0 to 255."""
  return np.clip(np.round(x), 0, 255).astype("u1")


def write_bytes(path: str | os.PathLike, *contents: bytes | memoryview) -> None:
  """Writes a file whole or not at all; its parts one after another."""
  with atomic.replacing(pathlib.Path(path)) as temporary, temporary.open("wb") as file:
    for part in contents:
      file.write(part)


def morton(means: Float[np.ndarray, "n 3"]) -> np.ndarray:
  """The order of points along a curve that keeps neighbours together (Morton's)."""
  low, high = means.min(axis=0), means.max(axis=0)
  cell = ((means - low) / np.maximum(high - low, 1e-12) * 1023).astype(np.uint32)
  # Two zeros between each two of ten bits.
  for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
    cell = (cell | (cell << np.uint32(shift))) & np.uint32(mask)
  code = cell[:, 0] | (cell[:, 1] << np.uint32(1)) | (cell[:, 2] << np.uint32(2))
  return np.argsort(code, kind="stable")
