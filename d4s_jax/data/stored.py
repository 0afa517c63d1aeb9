"""A source whose clips are kept on disk once read: drawing one takes longer than reading it."""

import dataclasses
import pathlib
import secrets
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np

from d4s_jax.types import Cameras, Clip, Tracks, Views


class Stored:
  """The clips of another source, each read from it once and then from a file.

  Colours are kept in 8 bits and depths in 16, as they come on the first reading too.

  Args:
    source: where clips come from.
    folder: of their files; it belongs to this source with these options alone.
  """

  def __init__(self, source: Any, folder: pathlib.Path):
    self._source, self._folder = source, folder
    folder.mkdir(parents=True, exist_ok=True)

  def __len__(self) -> int:
    return len(self._source)

  def contents(self) -> dict[str, Any]:
    """That of the source, nothing if it has none."""
    return getattr(self._source, "contents", dict)()

  def read(self, index: int) -> Clip:
    """One clip."""
    file = self._folder / f"{index:07d}.npz"
    if not file.exists():
      self._keep(index, file)
    try:
      return _read(file)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
      warnings.warn(f"{file} is damaged ({error}); the clip is made again.", stacklevel=1)
    self._keep(index, file)
    return _read(file)

  def _keep(self, index: int, file: pathlib.Path) -> None:
    temporary = self._folder / f".{index}-{secrets.token_hex(8)}"
    try:
      with temporary.open("wb") as out:
        np.savez(out, **_packed(self._source.read(index)))
      temporary.replace(file)
    finally:
      temporary.unlink(missing_ok=True)


def _read(file: pathlib.Path) -> Clip:
  with np.load(file) as stored:
    return _unpacked(stored)


def _packed(clip: Clip) -> dict[str, Any]:
  arrays: dict[str, Any] = {"text": np.asarray(clip.text)}
  for name, views in (("source", clip.source), ("target", clip.target)):
    arrays |= {
      f"{name}_images": np.round(np.asarray(views.images) * 255).astype(np.uint8),
      f"{name}_depth": np.asarray(views.depth).astype(np.float16),
      f"{name}_poses": np.asarray(views.cameras.world_from_camera),
      f"{name}_intrinsics": np.asarray(views.cameras.intrinsics),
      f"{name}_times": np.asarray(views.times),
    }
  for field in dataclasses.fields(Tracks):
    arrays[f"tracks_{field.name}"] = np.asarray(getattr(clip.tracks, field.name))
  return arrays | {
    "instances": np.asarray(clip.instances).astype(np.uint8),
    "dynamic": np.asarray(clip.dynamic),
    "scale": np.asarray(clip.scale),
  }


def _unpacked(arrays) -> Clip:
  def views(name) -> Views:
    images = arrays[f"{name}_images"].astype(np.float32) / 255
    cameras = Cameras(
      world_from_camera=arrays[f"{name}_poses"],
      intrinsics=arrays[f"{name}_intrinsics"],
      height=images.shape[1],
      width=images.shape[2],
    )
    depth = arrays[f"{name}_depth"].astype(np.float32)
    return Views(images=images, depth=depth, cameras=cameras, times=arrays[f"{name}_times"])

  tracks: Any = {x.name: arrays[f"tracks_{x.name}"] for x in dataclasses.fields(Tracks)}
  return Clip(
    source=views("source"),
    target=views("target"),
    tracks=Tracks(**tracks),
    instances=arrays["instances"].astype(np.int32),
    dynamic=arrays["dynamic"],
    scale=arrays["scale"],
    text=str(arrays["text"]),
  )
