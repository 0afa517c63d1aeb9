"""Where a run is kept: a folder, or an object store with a folder of this host beside it."""

import os
import pathlib
from typing import Any, TypeAlias

from etils import epath

# A folder, or what has its methods on an object store.
Place: TypeAlias = Any

_GCS = "gs://"
# What a run writes on its host and should find again on another one.
_LOGS = ("metrics.jsonl",)


def place(address: str | os.PathLike) -> Place:
  """The place of an address: a folder, or "gs://BUCKET/NAME" in Google Cloud Storage.

  Raises:
    ValueError: another kind of address, or the package that it needs is missing.
  """
  text = os.fspath(address)
  if "://" not in text:
    return pathlib.Path(text)
  if not text.startswith(_GCS):
    raise ValueError(f"{text} can't keep a run; expected a folder or {_GCS}BUCKET/NAME.")
  found: Place = epath.Path(text)
  try:
    found.exists()
  except ImportError as error:
    raise ValueError(f"{text} needs the package gcsfs: pip install 'd4s_jax[gcs]'.") from error
  return found


def is_local(where: Place) -> bool:
  """Whether it is a folder of a file system."""
  return isinstance(where, pathlib.Path)


def on_host(where: Place) -> pathlib.Path:
  """The folder in which this host writes what can't be written piece by piece to `where`.

  Of gs://BUCKET/NAME it is runs/.gs/BUCKET/NAME, so that no other run has it; logs of an earlier
  host are brought there.
  """
  if is_local(where):
    return where
  folder = pathlib.Path("runs", ".gs", os.fspath(where).removeprefix(_GCS))
  folder.mkdir(parents=True, exist_ok=True)
  for name in _LOGS:
    if (where / name).exists():
      (folder / name).write_bytes((where / name).read_bytes())
    else:  # of another run of that name, which is gone
      (folder / name).unlink(missing_ok=True)
  return folder


def publish(folder: pathlib.Path, where: Place) -> None:
  """Copies what lies in the folder on this host to `where`, unless that is the same."""
  if is_local(where):
    return
  for file in sorted(x for x in folder.rglob("*") if x.is_file()):
    target = where / file.relative_to(folder).as_posix()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(file.read_bytes())


def move(source: Place, target: Place) -> None:
  """Moves a folder to a place that isn't there yet; on an object store file by file."""
  target.parent.mkdir(parents=True, exist_ok=True)
  if is_local(source):
    source.rename(target)
    return
  _copy(source, target)
  source.rmtree()


def _copy(source: Place, target: Place) -> None:
  for item in source.iterdir():
    if item.is_dir():
      _copy(item, target / item.name)
    else:
      (target / item.name).write_bytes(item.read_bytes())
