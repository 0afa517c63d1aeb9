"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


def sibling(path: pathlib.Path) -> pathlib.Path:
  """An unused hidden name in the same folder (so a rename stays on one disk), same suffix."""
  return path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")


def check_place(path: pathlib.Path) -> None:
  """Raises OSError if nothing can be written at `path`: below a file, in a locked folder, ..."""
  above = next(parent for parent in path.absolute().parents if parent.exists())
  if not above.is_dir():
    raise NotADirectoryError(f"{above} is a file, so {path} can't be written; name another place.")
  if not os.access(above, os.W_OK | os.X_OK):
    raise PermissionError(f"{above} may not be written to, so {path} can't be; name another place.")
  if path.resolve() == pathlib.Path.cwd():
    raise FileExistsError(f"{path} is the folder you are in; name a new one.")
  # Some names are too long with what is added to them, and some folders take no files.
  probe = above / sibling(path).name
  try:
    probe.touch(exist_ok=False)
    probe.unlink()
  except OSError as error:
    raise OSError(
      error.errno, f"{error.strerror}; expected a place, and a shorter name, for a file", str(path)
    ) from error


def check_room(path: pathlib.Path, nbytes: int) -> None:
  """Raises OSError if the disk that `path` will lie on has less room than so many bytes."""
  above = next(parent for parent in path.absolute().parents if parent.exists())
  free = shutil.disk_usage(above).free
  if free < nbytes:
    raise OSError(errno.ENOSPC, f"needs {nbytes} bytes, and its disk has {free}", str(path))


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write, which takes the place of `path` when the block succeeds.

  Missing parent folders are made. If the block raises, or the disk is full, `path` is as before and
  the temporary file is gone.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = sibling(path)
  try:
    yield temporary
    flush(temporary)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def check_new_folder(folder: pathlib.Path) -> None:
  """Raises OSError unless `new_folder` can make a folder here."""
  check_place(folder)
  if folder.is_symlink() or folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(f"{folder} exists; expected a new name or an empty folder.")


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary folder to fill, which is renamed to `folder` when the block succeeds.

  Missing parent folders are made. If the block raises, or the disk is full, nothing is left.

  Raises:
    FileExistsError: there is something at `folder` already.
  """
  check_new_folder(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  temporary = sibling(folder)
  try:
    temporary.mkdir()
    yield temporary
    for path in temporary.rglob("*"):
      if path.is_file():
        flush(path)
    os.replace(temporary, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def flush(path: pathlib.Path) -> None:
  """Waits until a file is on the disk: a rename must not overtake its contents."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
