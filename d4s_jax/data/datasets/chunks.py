"""Clips of RealEstate10K in the chunks of pixelSplat: files of `torch.save`, and an index of them.

A chunk is a list of clips: `key`, `timestamps` [f], `cameras` [f 18], which are the columns of the
published text files but for the first, and `images`, the bytes of a JPEG for each frame.

A clip that is opened reads the chunk's structure and its own tensors, of the others nothing.
"""

import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from d4s_jax.data.datasets import files
from d4s_jax.formats import checked, images
from d4s_jax.formats.torch_tensors import Unread, open_tensors


def index(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The chunk of each clip of a folder, by its index.json; none if it has no index.

  Raises:
    ValueError: the index is damaged, or names what isn't in the folder.
  """
  path = folder / "index.json"
  if not path.is_file():
    return {}
  told = checked.parse(checked.read_bytes(path, files.MOST_TEXT, "an index"), str(path))
  if not isinstance(told, dict):
    raise ValueError(f"{path}: expected an object of clips and their chunks. Fetch it again.")
  where = f"{path}: a chunk"
  return {
    key: files.within(folder, folder / checked.text(name, where, 200), where)
    for key, name in told.items()
  }


def read(
  path: pathlib.Path, key: str
) -> tuple[list[list[str]], tuple[int, int], Callable[[int], np.ndarray]]:
  """A clip of a chunk: words of each frame's line, height and width, pictures by timestamp.

  Raises:
    FileNotFoundError: there is no such chunk.
    ValueError: it is damaged, or lacks the clip.
  """
  where = f"{path}, clip {key}"
  with open_tensors(path) as (clips, numbers_of):
    if not isinstance(clips, list):
      raise ValueError(f"{path} is no list of clips; expected a chunk of pixelSplat.")
    told = next((x for x in clips if isinstance(x, dict) and x.get("key") == key), {})
    parts: Any = [told.get(x) for x in ("timestamps", "cameras", "images")]
    count = len(parts[2]) if isinstance(parts[2], list) else 0
    shapes = [getattr(x, "shape", None) for x in parts[:2]]
    if not count or shapes != [(count,), (count, 18)] or not all(map(_bytes, parts[2])):
      raise ValueError(
        f"{where}: no such clip of timestamps, cameras and pictures; fetch it again."
      )
    stamps, cameras = map(numbers_of, parts[:2])
    jpegs = [numbers_of(x).tobytes() for x in parts[2]]
  if stamps.dtype.kind not in "iu" or len(set(stamps.tolist())) != count:
    raise ValueError(f"{where}: timestamps that aren't whole, or come twice; fetch it again.")
  numbers = stamps.tolist()
  stored = dict(zip(numbers, jpegs))

  def open_picture(number: int) -> Image.Image:
    return Image.open(io.BytesIO(stored[number]), formats=("JPEG",))

  def pixels(number: int) -> np.ndarray:
    try:
      with open_picture(number) as image:
        if image.size != size:
          raise ValueError(f"{image.size} pixels for {size}")
        return np.asarray(image.convert("RGB"))
    except images.BROKEN as error:
      raise ValueError(f"{where}: no picture at {number} ({error}); fetch it again.") from error

  try:
    size = open_picture(numbers[0]).size
    if size[0] * size[1] > images.MAX_PIXELS:
      raise ValueError(f"{size[0]} x {size[1]} pixels")
  except images.BROKEN as error:
    raise ValueError(f"{where}: its first picture can't be opened ({error}).") from error
  words = [[str(x), *map(str, row.tolist())] for x, row in zip(numbers, cameras)]
  return words, (size[1], size[0]), pixels


def _bytes(value: Any) -> bool:
  return isinstance(value, Unread) and value.dtype == np.uint8 and len(value.shape) == 1
