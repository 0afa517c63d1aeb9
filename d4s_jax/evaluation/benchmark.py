"""Sets of scenes to score: the paper's design from photographs, and held-out embedded scenes.

The paper's is 32 captioned scenes x 5 paths = 160 samples. Its photographs are not public; any
folder of photographs with a NAME.txt beside each makes a set of that design. What is there already
is not made again.
"""

import contextlib
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from d4s_jax.data.source import open_source
from d4s_jax.evaluation.maker import KINDS, Maker
from d4s_jax.evaluation.sample_sets import SOURCE
from d4s_jax.formats import arrays, atomic, checked, images
from d4s_jax.pipeline import progress, shot

PATHS = ("spiral", "forward", "backward", "up", "down")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp")
_MOST_CAPTION = 10_000
# Hashes of a set's photographs.
_NOTE, _LONGEST_NOTE = "photographs.json", 16 * 2**20


def photographs(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
  """The photographs of a folder and their captions, by name.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: there are none, some have no caption, or two have one name.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"No folder {folder}; expected photographs with captions.")
  paths = [x for x in sorted(folder.iterdir()) if x.suffix.lower() in _SUFFIXES]
  found = {x.stem: x for x in paths}
  if not found:
    raise ValueError(f"{folder} has no photographs ({', '.join(_SUFFIXES)}).")
  twice = [x.name for x in paths if found[x.stem] != x]
  if twice:
    raise ValueError(f"Other photographs of {folder} have the names of {twice[:5]}; rename them.")
  without = [name for name, path in found.items() if not path.with_suffix(".txt").is_file()]
  if without:
    raise ValueError(
      f"{len(without)} of {len(found)} photographs have no caption ({', '.join(without[:5])});"
      " expected NAME.txt beside each."
    )
  captions = {name: _caption(path.with_suffix(".txt")) for name, path in found.items()}
  long = [name for name, text in captions.items() if not 0 < len(text.strip()) <= _MOST_CAPTION]
  if long:
    raise ValueError(f"Captions of {long[:5]} are empty or longer than {_MOST_CAPTION} characters.")
  return {name: (path, captions[name].strip()) for name, path in found.items()}


def _caption(path: pathlib.Path) -> str:
  try:
    return path.read_text("utf-8")
  except UnicodeDecodeError:
    raise ValueError(f"{path} is no text; expected a caption in UTF-8.") from None


def of_photographs(folder: pathlib.Path, output: pathlib.Path, maker: Maker) -> int:
  """The paper's design: every photograph along its five paths, in `output`/generated.

  Returns:
    How many scenes the set has.

  Raises:
    ValueError: scenes of other photographs are there.
  """
  found = photographs(folder)
  jobs = [(name, path) for name in found for path in PATHS]
  _check_only(output / "generated", [f"{name}-{path}" for name, path in jobs])
  _check_same(output, {name: path for name, (path, _) in found.items()})
  with _quietly(output) as bar, bar("make scenes", len(jobs)) as counter:
    for name, path in jobs:
      picture = images.read_image(found[name][0])
      steps = shot.camera_path(path, maker.frames)
      image, cameras = shot.photograph(picture, steps, maker.height, maker.width)
      place = output / "generated" / f"{name}-{path}"
      maker.generate(place, image, cameras, steps.times, found[name][1])
      counter.update(1)
  return len(jobs)


def embedded(
  output: pathlib.Path,
  maker: Maker,
  count: int,
  kinds: Sequence[str] = ("generated", "reconstructed"),
) -> int:
  """Held-out embedded scenes in which something moves, with their truth.

  In `output`: a folder for each kind; `still`, the first frame again and again, which every method
  has to beat; `true`, which names the clips.

  Args:
    output: folder.
    maker: makes the scenes.
    count: clips.
    kinds: which of `maker.KINDS` to make.

  Returns:
    The number of clips.

  Raises:
    ValueError: `count` is below 1, or more clips than that are there.
  """
  size = {"frames": maker.frames, "height": maker.height, "width": maker.width}
  options = {"split": "heldout", "kind": "dynamic", "views": 8, **size}
  source = open_source("synthetic", **options)
  if not 1 <= count <= len(source):
    raise ValueError(f"{count} embedded scenes; expected 1 to {len(source)}.")
  names = [f"clip{number:03d}" for number in range(count)]
  for name in (*kinds, "still"):
    _check_only(output / name, names)
  for name in ("true", "still"):
    atomic.make_folder(output / name)
  clips = {name: number for number, name in enumerate(names)}
  described = {"source": "synthetic", "options": options, "clips": clips}
  (output / "true" / SOURCE).write_text(json.dumps(described, indent=1) + "\n")
  with _quietly(output) as bar, bar("make scenes", len(kinds) * count) as counter:
    for number, name in enumerate(names):
      clip = source.read(number)
      first = images.to_bytes(np.asarray(clip.source.images[:1]))
      frames = len(clip.source.times)
      arrays.write_array(output / "still" / f"{name}.npy", np.repeat(first, frames, axis=0))
      for kind in kinds:
        KINDS[kind](maker, output / kind / name, clip)
        counter.update(1)
  return count


def _check_only(folder: pathlib.Path, names: Sequence[str]) -> None:
  """Refuses what a set made before has and this one has not: it would be scored with it."""
  there = [x for x in folder.iterdir() if not x.name.startswith(".")] if folder.is_dir() else []
  others = sorted({x.name if x.is_dir() else x.stem for x in there} - set(names))
  if others:
    raise ValueError(
      f"{folder} holds {len(others)} samples that are not among the {len(names)} of this set"
      f" ({', '.join(others[:5])}); give another folder, or remove them."
    )


def _check_same(output: pathlib.Path, paths: dict[str, pathlib.Path]) -> None:
  """Notes which photographs a set is made of, or refuses others: its scenes are not made again."""
  note = output / _NOTE
  now = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
  before: Any = {}
  if note.is_file():
    before = checked.parse(checked.read_bytes(note, _LONGEST_NOTE, "note"), str(note))
  changed = [name for name in now if before.get(name, now[name]) != now[name]]
  if changed:
    raise ValueError(
      f"{output} was made of other photographs of the names {changed[:5]}; give another folder, or"
      " remove it."
    )
  atomic.make_folder(output)
  note.write_text(json.dumps(now, indent=1) + "\n")


@contextlib.contextmanager
def _quietly(output: pathlib.Path):
  """What the pipeline says goes to a file; yields what makes a progress bar on the screen."""
  output.mkdir(parents=True, exist_ok=True)
  screen = sys.stderr

  def bar(what: str, total: int):
    with contextlib.redirect_stderr(screen):
      return progress.bar(what, total, "scene")

  with (output / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
    yield bar
