"""What is generated says so: an invisible mark and its provenance, in every video and scene."""

import pathlib

import numpy as np
from jaxtyping import Float

from d4s_jax.formats import provenance, video
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.types import DynamicGaussians
from d4s_jax.watermark import frames, gaussians, keys


def key(wanted: bool) -> str | None:
  """The key to mark with; None where no mark is wanted, for research that it would disturb."""
  return keys.key() if wanted else None


def scene(dynamic: DynamicGaussians, key: str | None) -> DynamicGaussians:
  """A generated scene with its mark, which every export of it has too."""
  return dynamic if key is None else gaussians.mark(dynamic, key)


def pictures(images: Float[np.ndarray, "f h w 3"], key: str | None) -> Float[np.ndarray, "f h w 3"]:
  """Generated pictures, RGB in [0, 1], with their mark."""
  return images if key is None else frames.mark(images, key)


def levels(key: str | None) -> Float[np.ndarray, "t t"] | None:
  """The pattern with which a viewer's page marks the pictures and videos that it saves."""
  return None if key is None else frames.levels(key)


def write_video(
  path: pathlib.Path,
  images: Float[np.ndarray, "f h w 3"],
  fps: float,
  metadata: SceneMetadata,
  key: str | None,
) -> None:
  """Writes a video of generated pictures, with its mark and its provenance.

  Args:
    path: the file.
    images: RGB in [0, 1].
    fps: frames a second.
    metadata: of the scene that is seen, or of the generated video.
    key: of the mark; None for no mark.
  """
  facts = provenance.facts(metadata)
  video.write_video(path, pictures(images, key), fps, provenance.text(facts))
  provenance.stamp(path, facts)
