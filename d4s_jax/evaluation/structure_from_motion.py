"""Camera paths of videos, found by structure from motion (COLMAP through `pycolmap`).

`pip install -e '.[evaluation]'` brings it. SIFT features, all pairs, incremental mapping, known and
fixed intrinsics. A video in which not every frame is placed has no path: reports give the share of
those that have one, since leaving failures out flatters.
"""

import importlib
import pathlib
import tempfile
from typing import Any

import numpy as np
from jaxtyping import Float

from d4s_jax.evaluation.metric import foreign
from d4s_jax.formats import images
from d4s_jax.types import Cameras

PROTOCOL = "pycolmap incremental mapping, SIFT, all pairs, known intrinsics, all frames placed"
_LEAST_FRAMES = 3


def find_path(
  video: Float[np.ndarray, "f h w 3"], cameras: Cameras
) -> Float[np.ndarray, "f 4 4"] | None:
  """Poses `world_from_camera` of all frames in a frame and unit of their own; None if it fails.

  Args:
    video: RGB in [0, 1].
    cameras: of the frames; their intrinsics, which have to be the same for all, are used, their
      poses are not.

  Raises:
    ValueError: too few frames, intrinsics that change, or pycolmap fails.
    ImportError: pycolmap isn't installed.
  """
  if len(video) < _LEAST_FRAMES:
    raise ValueError(f"A video of {len(video)} frames; expected at least {_LEAST_FRAMES}.")
  intrinsics = np.asarray(cameras.intrinsics, np.float64)
  if np.abs(intrinsics - intrinsics[:1]).max() > 1e-3:
    raise ValueError("The focal length changes along the path; expected one lens for all frames.")
  lens = intrinsics[0]
  colmap: Any = importlib.import_module("pycolmap")
  colmap.logging.minloglevel = colmap.logging.Level.FATAL.value
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for number, frame in enumerate(video):
      images.write_image(folder / "frames" / f"{number:06}.png", frame)
    reader = colmap.ImageReaderOptions()
    reader.camera_model = "PINHOLE"
    reader.camera_params = ",".join(str(x) for x in lens[[0, 1, 0, 1], [0, 1, 2, 2]])
    database = folder / "database.db"
    # One thread each: their order would show in the last digits.
    extraction, matching = colmap.FeatureExtractionOptions(), colmap.FeatureMatchingOptions()
    options = colmap.IncrementalPipelineOptions()
    extraction.num_threads = matching.num_threads = options.num_threads = 1
    extraction.use_gpu = matching.use_gpu = False
    options.ba_refine_focal_length = options.ba_refine_extra_params = False
    options.min_model_size = _LEAST_FRAMES
    options.random_seed = 0
    with foreign("pycolmap"):
      colmap.set_random_seed(0)
      colmap.extract_features(
        database,
        folder / "frames",
        camera_mode=colmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
      )
      colmap.match_exhaustive(database, matching_options=matching)
      models = colmap.incremental_mapping(database, folder / "frames", folder / "sparse", options)
    whole = [model for model in models.values() if model.num_reg_images() == len(video)]
    if not whole:
      return None
    poses = np.tile(np.eye(4), (len(video), 1, 1))
    for image in whole[0].images.values():
      poses[int(image.name[:6]), :3] = image.cam_from_world().inverse().matrix()
  return poses
