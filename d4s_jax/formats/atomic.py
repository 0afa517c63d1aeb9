"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import time
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


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder and those above it; raises NotADirectoryError if one of them is a file."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):
    raise NotADirectoryError(
      f"{path} is a file, or lies below one; expected a folder, name another one."
    ) from None


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
  except OSError as error:
    # A write that fails knows no name, and disks are many.
    if error.errno and error.filename is None:
      error.filename = str(path)
    raise
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

  Missing parent folders are made. If the block raises, or the disk is full, nothing is left. What a
  process that was killed left of this folder is removed.

  Raises:
    FileExistsError: there is something at `folder` already.
  """
  check_new_folder(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  _clear(folder)
  temporary = sibling(folder)
  try:
    temporary.mkdir()
    with _locked(temporary):
      yield temporary
    for path in temporary.rglob("*"):
      if path.is_file():
        flush(path)
    # Another process may have made it meanwhile.
    check_new_folder(folder)
    os.replace(temporary, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


# Seconds that a process has between making its temporary folder and locking it.
_YOUNG = 60.0


def _clear(folder: pathlib.Path) -> None:
  """Removes temporary folders for `folder` that no process has locked any more."""
  name = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}{re.escape(folder.suffix)}")
  for path in folder.parent.iterdir():
    left = name.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    # Another process may remove it too, or own it; on some disks nothing can be locked.
    with contextlib.suppress(OSError):
      if left and time.time() - path.stat().st_mtime > _YOUNG:
        with _locked(path):
          shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a folder, which ends with its process; OSError if another one has it."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  finally:
    os.close(descriptor)


def flush(path: pathlib.Path) -> None:
  """Waits until a file is on the disk: a rename must not overtake its contents."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
