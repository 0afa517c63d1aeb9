"""A whole scene in one safetensors file: canonical Gaussians, deformation, and all the rest.

The arrays are those of a scene folder; its scene.json is the text "scene" in the file's metadata.
"""

import json
import os

import numpy as np
from safetensors.numpy import save

from d4s_jax.formats.scene import ARRAY_NAMES, SceneMetadata, encode_metadata
from d4s_jax.formats.visible import write_bytes
from d4s_jax.types import DynamicGaussians


def write(path: str | os.PathLike, dynamic: DynamicGaussians, metadata: SceneMetadata) -> None:
  """Writes the file; float32, nothing is lost."""
  arrays = {name: np.asarray(getattr(dynamic, name), np.float32) for name in ARRAY_NAMES}
  contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  text = json.dumps(encode_metadata(metadata))
  write_bytes(path, save(contiguous, metadata={"scene": text, "format": "d4s_jax scene"}))
