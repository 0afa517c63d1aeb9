"""RealEstate10K: camera paths of videos of houses; the videos are not part of it.

A text file for each clip: world-to-camera matrices of OpenCV axes and intrinsics divided by the
picture's size (formats/cameras.py). Lengths have a factor of their own in each clip. Frames are
made by the user, as `ID/TIMESTAMP.png` beside the text files or in a folder of the same splits;
that some are missing is usual, since videos disappear. The chunks of pixelSplat, which have both,
are read too (chunks.py).
"""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from d4s_jax.data.datasets import chunks, files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble
from d4s_jax.data.datasets.scene import Dataset, Scene, View, invert
from d4s_jax.formats import checked
from d4s_jax.formats.trajectories.text import frame_lines, realestate_row

_SPLITS = {"train": "train", "test": "heldout"}


class RealEstate10K(Dataset):
  """`train|test/ID.txt`, `train|test/ID/TIMESTAMP.png`; or chunks, `train|test/index.json`."""

  def _find(self) -> Iterable[str]:
    bases = list(files.folders(self.root, 1, self.problems))
    stated: dict[str, pathlib.Path] = {}
    # Cameras and the folder of frames, or the chunk that has both.
    self._files: dict[str, tuple[pathlib.Path, pathlib.Path]] = {}
    self._chunks: dict[str, pathlib.Path] = {}
    unfetched: dict[str, pathlib.Path] = {}
    for base in bases:
      for split in _SPLITS:
        for path in sorted((base / split).glob("*.txt")):
          stated.setdefault(f"{split}/{path.stem}", path)
        try:
          indexed = chunks.index(base / split)
        except (OSError, ValueError) as error:
          self.problems.append(f"{error} Its chunks are left out.")
          continue
        for key, path in indexed.items():
          if path.is_file():
            self._chunks.setdefault(f"{split}/{key}", path)
          else:
            unfetched[f"{split}/{key}"] = path
    for name in self._chunks.keys() & unfetched.keys():
      del unfetched[name]
    if unfetched:
      name, path = min(unfetched.items())
      self.problems.append(
        f"{len(unfetched)} clips, such as {name}, are in chunks that are not there, such as {path};"
        " fetch these."
      )
    if not stated and not self._chunks and not unfetched:
      reason = f" {self.problems[0]}" if self.problems else ""
      raise ValueError(
        f"{self.root} holds no train/ID.txt, test/ID.txt, train/index.json or test/index.json;"
        f" expected the camera files of RealEstate10K, or the chunks of pixelSplat.{reason}"
      )
    for name, path in stated.items():
      frames = next((base / name for base in bases if (base / name).is_dir()), None)
      if frames is not None:
        self._files[name] = path, frames
    lacking = sorted(stated.keys() - self._files.keys() - self._chunks.keys())
    if lacking:
      self.problems.append(
        f"{len(lacking)} of {len(stated)} camera files, such as {stated[lacking[0]]}, have no"
        " folder of frames beside them; fetch the videos (some are gone) and cut them at the"
        " timestamps."
      )
    if not self._files and not self._chunks:
      raise ValueError(f"{self.root} holds no frames. {self.problems[0]}")
    return {**self._files, **self._chunks}

  def official(self, name: str) -> str | None:
    """By the folder."""
    return _SPLITS[name.partition("/")[0]]

  def open(self, name: str) -> Scene:
    """A clip; of its files, if a chunk has it too."""
    problems = Problems()
    if name in self._files:
      view = _of_files(*self._files[name], problems)
    else:
      view = _of_chunk(self._chunks[name], name.partition("/")[2], problems)
    return Scene(
      name=name,
      views=(view,),
      metric=False,
      dynamic=False,
      timed=True,
      problems=problems.all(),
    )


def _of_files(path: pathlib.Path, folder: pathlib.Path, problems: Problems) -> View:
  pictures = files.numbered(folder, r"(\d+)\.(?:png|jpg|jpeg)")
  size = files.picture_size(list(pictures.values()), folder, problems)
  text = checked.read_bytes(path, files.MOST_TEXT, "cameras")
  rows = [(f"{path}, line {line}", words) for line, words in frame_lines(text, str(path))[1]]
  shots = [
    dataclasses.replace(x, image=pictures.get(x.number, folder / f"{x.number}.png"))
    for x in _shots(rows, size, path, problems)
  ]
  return assemble("video", shots, *size, problems)


def _of_chunk(path: pathlib.Path, key: str, problems: Problems) -> View:
  lines, size, pixels = chunks.read(path, key)
  rows = [(f"{path}, {key}, frame {number}", words) for number, words in enumerate(lines)]
  return assemble("video", _shots(rows, size, path, problems), *size, problems, pixels)


def _shots(
  rows: Iterable[tuple[str, list[str]]],
  size: tuple[int, int],
  path: pathlib.Path,
  problems: Problems,
) -> list[Shot]:
  """Frames of lines, each with where it stands; bad ones are noted and left out."""
  shots, latest = [], -np.inf
  for where, words in rows:
    try:
      row = realestate_row(words, where)
    except ValueError as error:
      problems.add(f"bad lines in {path.name}", f"{error} The frame is left out.")
      continue
    if row.timestamp < latest:
      problems.add(
        f"late lines in {path.name}",
        f"{where}: time {row.timestamp:.0f} after {latest:.0f}; the lines are sorted here. Is the"
        " file as it was published?",
      )
    latest = max(latest, row.timestamp)
    shots.append(
      Shot(
        number=int(row.timestamp),
        time=row.timestamp / 1e6,
        world_from_camera=invert(row.camera_from_world),
        intrinsics=np.array([[size[1]], [size[0]], [1]]) * row.intrinsics,
        image=None,
        where=where,
      )
    )
  return shots
