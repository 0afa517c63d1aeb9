"""Files of datasets: folders with a mark, numbered files, and readers of them by frame."""

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from d4s_jax.data.datasets.assembly import Problems
from d4s_jax.data.datasets.scene import View, same_size
from d4s_jax.formats import checked, images

# Camera files of the longest sequences take a few megabytes.
MOST_TEXT = 64 * 2**20
# Whole numbers of a table's rows are below.
_MOST_COUNTED = 1e9


def folders(root: pathlib.Path, depth: int, problems: list[str]) -> Iterator[pathlib.Path]:
  """A folder and those up to `depth` below it, in order; links are followed.

  Those that may not be entered, such as the lost+found of a disk, and links that go round are noted
  and left out.
  """
  yield root
  if depth:
    for folder in _below(root, problems):
      yield from folders(folder, depth - 1, problems)


def folders_with(
  root: pathlib.Path, mark: str, depth: int, problems: list[str]
) -> Iterator[pathlib.Path]:
  """Those of `folders` that hold `mark` (which may lie deeper).

  Nothing below such a folder is looked at: it may hold a million files.
  """
  if (root / mark).exists():
    yield root
  elif depth:
    for folder in _below(root, problems):
      yield from folders_with(folder, mark, depth - 1, problems)


def _below(root: pathlib.Path, problems: list[str]) -> Iterator[pathlib.Path]:
  try:
    with os.scandir(root) as entries:
      names = sorted(entry.name for entry in entries if entry.is_dir())
  except (PermissionError, NotADirectoryError) as error:
    problems.append(f"{root} is left out: {error.strerror}; expected a folder that may be read.")
    return
  for name in names:
    problem = closed(root / name)
    if problem is None:
      yield root / name
    elif problem not in problems:
      problems.append(problem)


def closed(folder: pathlib.Path) -> str | None:
  """Why a folder isn't looked into, if it isn't: it may not be, or is one that it lies in."""
  if not os.access(folder, os.R_OK | os.X_OK):
    return f"{folder} may not be read; it is left out. See to its permissions (chmod)."
  if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
    return f"{folder} is a link to a folder that it lies in; it is left out. Remove it."
  return None


def numbered(folder: pathlib.Path, pattern: str) -> dict[int, pathlib.Path]:
  """Files of a folder whose whole name matches `pattern`, by the number that is its first group.

  Names that differ in zeros only would be one number: the first in order counts.
  """
  if not folder.is_dir():
    return {}
  found: dict[int, pathlib.Path] = {}
  with os.scandir(folder) as entries:
    names = sorted(entry.name for entry in entries)
  for name in names:
    match = re.fullmatch(pattern, name)
    if match:
      found.setdefault(int(match.group(1)), folder / name)
  return found


def within(root: pathlib.Path, path: pathlib.Path, where: str) -> pathlib.Path:
  """A path that a file of a dataset names, below `root` as that is written, if it stays there.

  Links are followed, as people keep parts of a dataset on several disks; names like `../../x` that
  lead out are not.

  Raises:
    ValueError: it leads out.
  """
  # Absolute: "../x" counts as being below ".".
  plain, top = pathlib.Path(os.path.abspath(path)), os.path.abspath(root)
  if not plain.is_relative_to(top):
    raise ValueError(
      f"{where} names {str(path)!r:.200}, which is outside {root}; it is not followed."
    )
  return root / plain.relative_to(top)


def picture_size(
  paths: Sequence[pathlib.Path], folder: pathlib.Path, problems: Problems
) -> tuple[int, int]:
  """Height and width of the first picture that can be opened.

  Args:
    paths: the pictures.
    folder: where they should be.
    problems: where those that can't be opened are noted.

  Raises:
    ValueError: none can, or there is none.
  """
  for path in paths:
    try:
      with Image.open(path, formats=images.FORMATS) as image:
        return image.height, image.width
    except images.BROKEN as error:
      problems.add(
        "pictures that can't be opened",
        f"{path} cannot be read as an image ({error}). Fetch it again.",
      )
  raise ValueError(
    f"{folder} has {len(paths)} pictures, none of which can be opened. Fetch it again."
  )


def maps(
  view: View,
  files: Mapping[int, pathlib.Path],
  read: Callable[[int, pathlib.Path], np.ndarray],
  what: str,
  problems: Problems,
) -> Callable[[int], np.ndarray] | None:
  """Reads a map for each frame of a view, zeros where its file is missing; None if all are.

  Args:
    view: the frames.
    files: of the maps, by the frame's number.
    read: a map from the frame's index and its file.
    what: they are, for messages, such as "depth".
    problems: where missing ones are noted, unless all are.
  """
  numbers, cameras = view.numbers.tolist(), view.cameras
  if not any(number in files for number in numbers):
    return None
  folder = next(iter(files.values())).parent
  for number in numbers:
    if number not in files:
      problems.add(
        f"frames without {what}",
        f"No {what} of frame {number} in {folder}; it counts as unknown. Fetch it again.",
      )

  def one(index: int) -> np.ndarray:
    path = files.get(numbers[index])
    if path is None:
      return np.zeros((cameras.height, cameras.width), np.float32)
    return same_size(read(index, path), cameras, path, what)

  return one


def table(
  path: pathlib.Path, columns: int, skip: int, problems: Problems, whole: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
  """Line numbers and rows of a text file of numbers; lines that are none are noted and left out.

  Args:
    path: the file.
    columns: that a row must have.
    skip: lines of the header.
    problems: where bad lines are noted.
    whole: columns at the start that count something.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no text, or too large.
  """
  try:
    text = checked.read_bytes(path, MOST_TEXT, "table").decode("utf-8")
  except UnicodeDecodeError:
    raise ValueError(f"{path} is no text; expected a table. Fetch it again.") from None
  for number, line in enumerate(text.splitlines()[skip:], skip + 1):
    words = line.split()
    if not words:
      continue
    try:
      row = np.array([float(word) for word in words])
    except ValueError:
      row = np.empty(0)
    counts = all(x.is_integer() and 0 <= x < _MOST_COUNTED for x in row[:whole].tolist())
    if len(row) != columns or not counts:
      first = f", the first {whole} whole" if whole else ""
      problems.add(
        f"bad lines in {path.name}",
        f"{path}, line {number}: {line.strip()!r:.60}; expected {columns} numbers{first}. The line"
        " is left out; fetch the file again.",
      )
      continue
    yield number, row
