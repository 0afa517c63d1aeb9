"""RealEstate10K: camera paths of videos of houses; the videos are not part of it.

A text file for each clip: world-to-camera matrices of OpenCV axes and intrinsics divided by the
picture's size (formats/cameras.py). Lengths have a factor of their own in each clip. Frames are
made by the user, as `ID/TIMESTAMP.png` beside the text files or in a folder of the same splits;
that some are missing is usual, since videos disappear. The chunks of pixelSplat, which have both,
are read too (chunks.py).
"""

import pathlib
from collections.abc import Iterable

import numpy as np

from d4s_jax.data.datasets import chunks, files
from d4s_jax.data.datasets.assembly import Problems, Shot, assemble
from d4s_jax.data.datasets.scene import Dataset, Scene, invert
from d4s_jax.formats import checked
from d4s_jax.formats.trajectories.text import frame_lines, realestate_row

_SPLITS = {"train": "train", "test": "heldout"}


class RealEstate10K(Dataset):
  """`train|test/ID.txt` and `train|test/ID/TIMESTAMP.png`, both at most one folder down."""

  def _find(self) -> Iterable[str]:
    bases = [self.root, *sorted(path for path in self.root.iterdir() if path.is_dir())]
    stated: dict[str, pathlib.Path] = {}
    # Cameras, and the folder of frames; None for a chunk that has both.
    self._places: dict[str, tuple[pathlib.Path, pathlib.Path | None]] = {}
    unfetched: dict[str, pathlib.Path] = {}
    for base in bases:
      for split in _SPLITS:
        for path in sorted((base / split).glob("*.txt")):
          stated.setdefault(f"{split}/{path.stem}", path)
        for key, path in chunks.index(base / split).items():
          if path.is_file():
            self._places.setdefault(f"{split}/{key}", (path, None))
          else:
            unfetched[f"{split}/{key}"] = path
    for name in self._places.keys() & unfetched.keys():
      del unfetched[name]
    if unfetched:
      name, path = min(unfetched.items())
      self.problems.append(
        f"{len(unfetched)} clips, such as {name}, are in chunks that are not there, such as {path};"
        " fetch these."
      )
    if not stated and not self._places and not unfetched:
      raise ValueError(
        f"{self.root} holds no train/ID.txt, test/ID.txt, train/index.json or test/index.json;"
        " expected the camera files of RealEstate10K, or the chunks of pixelSplat."
      )
    for name, path in stated.items():
      frames = next((base / name for base in bases if (base / name).is_dir()), None)
      if frames is not None:
        self._places[name] = path, frames
    lacking = sorted(stated.keys() - self._places.keys())
    if lacking:
      self.problems.append(
        f"{len(lacking)} of {len(stated)} camera files, such as {stated[lacking[0]]}, have no"
        " folder of frames beside them; fetch the videos (some are gone) and cut them at the"
        " timestamps."
      )
    if not self._places:
      raise ValueError(f"{self.root} holds no frames. {self.problems[0]}")
    return self._places

  def official(self, name: str) -> str | None:
    """By the folder."""
    return _SPLITS[name.partition("/")[0]]

  def open(self, name: str) -> Scene:
    """A clip."""
    path, folder = self._places[name]
    problems = Problems()
    pictures, pixels = {}, None
    if folder is None:
      key = name.partition("/")[2]
      words, (height, width), pixels = chunks.read(path, key)
      rows = [(f"{path}, {key}, frame {number}", row) for number, row in enumerate(words)]
    else:
      pictures = files.numbered(folder, r"(\d+)\.(?:png|jpg|jpeg)")
      height, width = files.picture_size(list(pictures.values()), folder, problems)
      text = checked.read_bytes(path, files.MOST_TEXT, "cameras")
      rows = [(f"{path}, line {line}", row) for line, row in frame_lines(text, str(path))]
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
      number = int(row.timestamp)
      shots.append(
        Shot(
          number=number,
          time=row.timestamp / 1e6,
          world_from_camera=invert(row.camera_from_world),
          intrinsics=np.array([[width], [height], [1]]) * row.intrinsics,
          image=folder and pictures.get(number, folder / f"{number}.png"),
          where=where,
        )
      )
    view = assemble("video", shots, height, width, problems, pixels)
    return Scene(
      name=name,
      views=(view,),
      metric=False,
      dynamic=False,
      timed=True,
      problems=problems.all(),
    )
