"""A scene as files of other programs: the whole clip, one moment, or many numbered ones."""

import dataclasses
import pathlib

import jax
import numpy as np

from d4s_jax.formats import atomic, page, provenance, splats
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.geometry.deformation import at
from d4s_jax.pipeline import progress
from d4s_jax.types import DynamicGaussians, Gaussians

_PAGE = ".html"
_MOST_FRAMES = 10_000


@dataclasses.dataclass(frozen=True)
class Export:
  """What is to be written, checked before the long work.

  Attributes:
    output: the file; of a sequence, the folder and the beginning of the files' names.
    time: clip time in [0, 1] of a format that knows no motion; None for the first.
    frames: numbered files instead of one; None for one.

  Raises:
    ValueError: no format has the suffix, or the numbers don't fit it or each other.
    OSError: nothing can be written there.
  """

  output: pathlib.Path
  time: float | None = None
  frames: int | None = None

  def __post_init__(self):
    """Checks the combination and the place."""
    if self._suffix not in (_PAGE, *splats.WRITERS):
      *others, last = _PAGE, *splats.WRITERS
      raise ValueError(
        f"The output is to be {self.output}; expected a name that ends in {', '.join(others)} or"
        f" {last}."
      )
    if self._suffix == _PAGE and not (self.time is None and self.frames is None):
      raise ValueError("A page holds the whole clip; leave --time and --frames out.")
    if self.time is not None and not 0 <= self.time <= 1:
      raise ValueError(f"--time is {self.time}; expected a clip time from 0 to 1.")
    if self.frames is None:
      if self.output.is_dir():
        raise IsADirectoryError(f"{self.output} is a folder; expected the name of a file.")
      atomic.check_place(self.output)
      return
    if self.time is not None:
      raise ValueError("--time chooses one moment and --frames all of them; give one of the two.")
    if not 1 <= self.frames <= _MOST_FRAMES:
      raise ValueError(f"--frames is {self.frames}; expected 1 to {_MOST_FRAMES}.")
    atomic.check_new_folder(self.output.parent)

  @property
  def _suffix(self) -> str:
    return self.output.suffix.lower()

  def write(self, dynamic: DynamicGaussians, metadata: SceneMetadata) -> str:
    """Writes it; returns what was written, for the user."""
    if self.frames is not None:
      return self._sequence(dynamic, metadata, self.frames)
    if self._suffix == _PAGE:
      page.write_page(self.output, dynamic, metadata)
    else:
      splats.WRITERS[self._suffix](self.output, moment(dynamic, self.time or 0.0))
    provenance.stamp(self.output, provenance.facts(metadata))
    return f"{self.output}   {self.output.stat().st_size / 1e6:.1f} MB"

  def _sequence(self, dynamic: DynamicGaussians, metadata: SceneMetadata, frames: int) -> str:
    write, place = splats.WRITERS[self._suffix], self.output.parent
    with atomic.new_folder(place) as folder, progress.bar("export", frames) as bar:
      for number, time in enumerate(np.linspace(0, 1, frames), 1):
        name = f"{self.output.stem}_{number:04}{self.output.suffix}"
        write(folder / name, moment(dynamic, time))
        provenance.stamp(folder / name, provenance.facts(metadata))
        bar.update()
    return f"{place}   {frames} files"


def moment(dynamic: DynamicGaussians, time: float) -> Gaussians:
  """The Gaussians [n] of one scene at one clip time, in NumPy."""
  return jax.tree.map(lambda x: np.asarray(x)[0], at(dynamic, np.array([time], np.float32)))
