"""A scene as files of other programs: the table of formats, and how one of them is written.

A file holds the whole clip, or one moment of it; then numbered files hold many.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from d4s_jax.formats import (
  atomic,
  depth,
  images,
  mesh,
  page,
  provenance,
  scene_file,
  splats,
  trajectories,
)
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.formats.video import SUFFIXES as VIDEOS
from d4s_jax.pipeline import clips, marking, meshing, progress, shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.types import DynamicGaussians, Rendering

_MOST_FRAMES = 10_000


@dataclasses.dataclass(frozen=True)
class Format:
  """One row of the table.

  Attributes:
    name: for --format.
    suffixes: of the file's name; any of them chooses the format ...
    lost: what of a scene the file doesn't hold.
    write: (path, what `moments` yields), or, of a whole clip, (path, scene, metadata, times).
    moments: (scene, metadata, times) to what is written at each of the times; None if one file
      holds the whole clip.
    timed: whether a file of the whole clip has times that may be asked for.
    named: ... unless its format has to be named, since others have the same suffix.
    marked: whether `write` adds the mark of frames, or, to a page, what adds it to the pictures and
      videos that are saved there; with the key given as `key`.
  """

  name: str
  suffixes: tuple[str, ...]
  lost: str
  write: Callable[..., None]
  moments: Callable[..., Iterable[Any]] | None = None
  timed: bool = False
  named: tuple[str, ...] = ()
  marked: bool = False


def _views(dynamic: DynamicGaussians, metadata: SceneMetadata, times: np.ndarray):
  """What the camera of the path sees at each time."""
  cameras = shot.along(shot.enlarged(metadata.cameras), metadata.times, times)
  shot.check_pixels(len(times), cameras.height, cameras.width)
  drawn = draw(dynamic, cameras, times, "draw", metadata.cameras)
  for index in range(len(times)):
    yield Rendering(**{name: np.asarray(x)[index] for name, x in vars(drawn).items()})


def _gaussians(dynamic: DynamicGaussians, metadata: SceneMetadata, times: np.ndarray):
  del metadata
  return clips.moments(dynamic, times)


def _mesh(path, surface: mesh.Mesh) -> None:
  mesh.WRITERS[path.suffix.lower()](path, surface)


def _depth(path, view: Rendering) -> None:
  depth.WRITERS[path.suffix.lower()](path, np.asarray(view.depth))


def _image(path, view: Rendering, *, key: str | None) -> None:
  images.write_image(path, marking.pictures(np.asarray(view.image)[None], key)[0])


def _page(
  path,
  dynamic: DynamicGaussians,
  metadata: SceneMetadata,
  times: np.ndarray,
  *,
  key: str | None,
) -> None:
  del times
  page.write_page(path, dynamic, metadata, marking.levels(key))


def _scene(path, dynamic: DynamicGaussians, metadata: SceneMetadata, times: np.ndarray) -> None:
  del times
  scene_file.write(path, dynamic, metadata)


def _cameras(writer: trajectories.Writer):
  """A writer of the path that the scene was made for, at its own times."""

  def write(path, dynamic: DynamicGaussians, metadata: SceneMetadata, times: np.ndarray) -> None:
    del dynamic, times
    own: Any = dataclasses.replace(
      metadata.cameras,
      world_from_camera=np.asarray(metadata.cameras.world_from_camera),
      intrinsics=np.asarray(metadata.cameras.intrinsics),
    )
    writer.write(path, own, np.asarray(metadata.times), clips.FPS)

  return write


_MOTION = "motion (one moment a file), cameras"
_ROUNDED = "motion (one moment a file), cameras, digits (d4s_jax/formats/README.md has how many)"
_SURFACE = (
  "motion (no vertex follows from file to file), what is transparent, thin or unseen from the path"
)
FORMATS = {
  row.name: row
  for row in (
    Format("html", (".html",), "digits of the motion (0.02% of the distance)", _page,
      marked=True),
    Format("scene", (".safetensors",), "nothing", _scene),
    Format("ply", (".ply",), _MOTION, splats.write_ply, _gaussians),
    Format("compressed-ply", (".compressed.ply",), _ROUNDED, splats.WRITERS[".compressed.ply"],
      _gaussians),
    Format("splat", (".splat",), _ROUNDED + ", view-dependent colour", splats.write_splat,
      _gaussians),
    Format("spz", (".spz",), _ROUNDED, splats.write_spz, _gaussians),
    Format("sog", (".sog",), _ROUNDED, splats.WRITERS[".sog"], _gaussians),
    Format("glb", (".glb",), _MOTION, splats.write_glb, _gaussians),
    Format("mesh", (".obj",), _SURFACE, _mesh, meshing.meshes,
      named=(".ply", ".glb")),
    Format("depth", (".exr",), "all but the depth of the path's views; .png: below 1 mm", _depth,
      _views, named=(".png",)),
    Format("image", (".jpg",), "all but the colours of the path's views", _image, _views,
      named=(".png", ".webp"), marked=True),
    Format("video", (*VIDEOS,), "all but the colours of the path's views", clips.write_film,
      timed=True, marked=True),
    Format("tracks", (".npz",), "all but the views along the path and the centres of opaque"
      " Gaussians in them; lenses but the first", clips.write_tracks, timed=True, marked=True),
    Format("rerun", (".rrd",), "view-dependent colour; colour and opacity below 1/255",
      clips.write_recording, timed=True),
    *(Format(name, (), f"the scene; {writer.lost}", _cameras(writer), named=(writer.suffix,))
      for name, writer in trajectories.WRITERS.items()),
  )
}  # fmt: skip


def _suffix(path: pathlib.Path, known: Iterable[str]) -> str | None:
  """The longest of the known suffixes that the name ends in."""
  name = path.name.lower()
  return max((suffix for suffix in known if name.endswith(suffix)), key=len, default=None)


def find(output: pathlib.Path, name: str | None = None) -> Format:
  """The format of a file, by its name alone where that tells.

  Raises:
    ValueError: nothing has the suffix, or several formats do, or the format has another.
  """
  if name is not None:
    row = FORMATS[name]
    every = (*row.suffixes, *row.named)
    if _suffix(output, every) is None:
      raise ValueError(
        f"The output is to be {output} with --format={name}; expected a name that ends in"
        f" {' or '.join(every)}."
      )
    return row
  rows = {suffix: row for row in FORMATS.values() for suffix in row.suffixes}
  if (suffix := _suffix(output, rows)) is not None:
    return rows[suffix]
  several = [row.name for row in FORMATS.values() if _suffix(output, row.named)]
  if several:
    raise ValueError(f"{output} can be of several formats; add --format={'|'.join(several)}.")
  raise ValueError(f"The output is to be {output}; expected a name that ends in {', '.join(rows)}.")


@dataclasses.dataclass(frozen=True)
class Export:
  """What is to be written, checked before the long work.

  Attributes:
    output: the file; of a sequence, the folder and the beginning of the files' names.
    time: clip time in [0, 1] of a format that holds one moment; None for the first.
    frames: numbered files instead of one, or frames of a whole clip; None for one file, or for the
      scene's own times.
    format: a name in FORMATS; None for what the suffix says.
    watermark: whether pictures and videos get the mark of frames.

  Raises:
    ValueError: no format has the suffix, or the numbers don't fit it or each other, or no mark is
      to be left out of what gets none.
    OSError: nothing can be written there.
  """

  output: pathlib.Path
  time: float | None = None
  frames: int | None = None
  format: str | None = None
  watermark: bool = True

  def __post_init__(self):
    """Checks the combination and the place."""
    whole = self._row.moments is None
    if whole and self.time is not None or self.frames is not None and whole and not self._row.timed:
      options = "--time" if self._row.timed else "--time and --frames"
      raise ValueError(f"{self._row.name} holds the whole clip; leave {options} out.")
    if not self.watermark and not self._row.marked:
      raise ValueError(
        f"{self._row.name} gets no mark from export (Gaussians keep what mark the scene has); leave"
        " --nowatermark out."
      )
    if self.time is not None and not 0 <= self.time <= 1:
      raise ValueError(f"--time is {self.time}; expected a clip time from 0 to 1.")
    if self.time is not None and self.frames is not None:
      raise ValueError("--time chooses one moment and --frames all of them; give one of the two.")
    if self.frames is not None and not 1 <= self.frames <= _MOST_FRAMES:
      raise ValueError(f"--frames is {self.frames}; expected 1 to {_MOST_FRAMES}.")
    if self.frames is not None and not whole:
      atomic.check_new_folder(self.output.parent)
      return
    if self.output.is_dir():
      raise IsADirectoryError(f"{self.output} is a folder; expected the name of a file.")
    atomic.check_place(self.output)

  @property
  def _row(self) -> Format:
    return find(self.output, self.format)

  def write(self, dynamic: DynamicGaussians, metadata: SceneMetadata) -> str:
    """Writes it; returns what was written and what it lacks, for the user."""
    row, count = self._row, self.frames
    more = "; --time chooses another, --frames many" if self.time is None else ""
    times = np.array([self.time or 0.0]) if count is None else np.linspace(0, 1, count)
    if row.moments is None:
      own = np.asarray(dynamic.times)
      self._write(self.output, dynamic, metadata, own if count is None else times)
      provenance.stamp(self.output, provenance.facts(metadata))
    elif count is None:
      (moment,) = row.moments(dynamic, metadata, times)
      self._write(self.output, moment)
      provenance.stamp(self.output, provenance.facts(metadata))
    else:
      self._sequence(row, row.moments(dynamic, metadata, times), provenance.facts(metadata))
      return f"{self.output.parent}   {count} files\nNot in them: {row.lost}."
    size = self.output.stat().st_size / 1e6
    when = "" if row.moments is None else f"\nIn it: the moment {times[0]:g} of 0 to 1{more}."
    return f"{self.output}   {size:.1f} MB{when}\nNot in it: {row.lost}."

  def _write(self, *contents: Any) -> None:
    key = {"key": marking.key(self.watermark)} if self._row.marked else {}
    self._row.write(*contents, **key)

  def _sequence(self, row: Format, moments: Iterable[Any], facts: provenance.Facts) -> None:
    suffix = self.output.name[-len(_suffix(self.output, (*row.suffixes, *row.named)) or "") :]
    stem = self.output.name.removesuffix(suffix)
    with atomic.new_folder(self.output.parent) as folder:
      with progress.bar("export", self.frames or 0) as bar:
        for number, moment in enumerate(moments, 1):
          path = folder / f"{stem}_{number:04}{suffix}"
          self._write(path, moment)
          provenance.stamp(path, facts)
          bar.update()
