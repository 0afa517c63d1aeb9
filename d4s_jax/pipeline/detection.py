"""Looking for our marks in files."""

import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageSequence

from d4s_jax.formats import arrays, images, scene, splat_colors, video
from d4s_jax.watermark import frames, gaussians
from d4s_jax.watermark.evidence import Evidence

# Which bear no mark.
_OTHERS = {
  ".obj": "a mesh, which has no Gaussians",
  ".exr": "depth, which has no colours",
}
# Whose mark is not read.
_RECORDING = ".rrd"
_TRACKS, _PICTURES = ".npz", "images_jpeg_bytes"
_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
# Animations among them.
_MOVING = (".gif", ".webp", ".png", ".apng")
# Enough evidence; the rest of a long video is not read.
_MOST_FRAMES = 300


def detect(path: pathlib.Path, key: str) -> Evidence:
  """Looks for the mark that a file of its kind would bear.

  Args:
    path: the folder of a scene, a file of splats, a page, a video, tracks or a picture.
    key: of the mark.

  Raises:
    FileNotFoundError: there is no such file.
    NoGaussians: a file of its kind bears no mark: a mesh, depth.
    ValueError: it can't be read.
  """
  suffix = path.suffix.lower()
  if path.is_dir():
    dynamic, _ = scene.read_scene(path)
    seen = np.asarray(dynamic.opacities) > 0
    return gaussians.detect(gaussians.colors_of(dynamic.harmonics)[seen], key)
  if suffix in splat_colors.READERS:
    return gaussians.detect(splat_colors.read_colors(path), key)
  if suffix in _OTHERS:
    raise splat_colors.NoGaussians(f"{path} is {_OTHERS[suffix]}.")
  if suffix == _RECORDING:
    raise ValueError(
      f"{path} is a recording, which is not read; expected the scene's folder, a file of its"
      f" Gaussians ({' '.join(splat_colors.READERS)}), a video or a picture."
    )
  if suffix == _TRACKS:
    return frames.detect(_tracked(path), key)
  if suffix in _VIDEOS:
    return frames.detect(video.first_frames(path, _MOST_FRAMES), key)
  return frames.detect(_pictures(path), key)


def _tracked(path: pathlib.Path) -> Iterator[Float[np.ndarray, "h w 3"]]:
  """The pictures beside point tracks."""
  archive = arrays.ArrayArchive(path)
  count = archive.spec(_PICTURES, [None]).shape[0]
  for index in range(min(count, _MOST_FRAMES)):
    contents = archive.read(_PICTURES, [index]).tobytes()
    yield images.decode(contents, f"{path}: picture {index}")


def _pictures(path: pathlib.Path) -> Iterator[Float[np.ndarray, "h w 3"]]:
  """The picture of a file, or all of an animation."""
  first = images.read_image(path)
  with Image.open(path, formats=images.FORMATS) as opened:
    if opened.mode.startswith("I"):  # Integers of 16 bits, as `export` writes depth.
      raise splat_colors.NoGaussians(f"{path} is {_OTHERS['.exr']}.")
  yield first
  if path.suffix.lower() not in _MOVING:
    return
  with Image.open(path, formats=images.FORMATS) as opened:
    for number, picture in enumerate(ImageSequence.Iterator(opened)):
      if 0 < number < _MOST_FRAMES:
        yield np.asarray(picture.convert("RGB"), np.float32) / 255
