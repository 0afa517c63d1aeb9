"""A folder of shards: ArrayRecord files, and a manifest that says what is in them.

manifest.jsonl has one JSON object a line, one for each clip that curation decided about; those that
were kept say in which shard and row they are. Nothing but the manifest is read to choose clips.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from d4s_jax.data.identity import digest
from d4s_jax.data.record import CorruptRecord, Record, decode
from d4s_jax.data.splits import of_split
from d4s_jax.formats import atomic
from d4s_jax.formats.checked import fields, integer, parse, text, within

MANIFEST = "manifest.jsonl"
# Bytes of a line of a manifest.
MOST_LINE = 1_000_000
# Files open at once, of which there are limits.
_OPEN = 64


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the manifest says of one record.

  Attributes:
    shard: name of the file in the folder.
    row: of the record in it.
    name: of the clip.
    group: clips of one group show the same place and are held out together.
    split: "train", "heldout", or "" to decide by the group.
    frames: of the longest view.
    height: of the pictures.
    width: of the pictures.
    posed: whether cameras are known.
    metric: whether lengths are metres.
    dynamic: whether something moves.
  """

  shard: str
  row: int
  name: str
  group: str
  split: str
  frames: int
  height: int
  width: int
  posed: bool
  metric: bool
  dynamic: bool


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> None:
  """Writes a shard, which appears whole or not at all.

  Raises:
    OSError: it can't be written, the disk being full for example.
  """
  with atomic.replacing(path) as temporary:
    # One record a group: any of them is read without its neighbours. What it holds is compressed.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
      for record in records:
        writer.write(record)
      writer.close()
    except RuntimeError as error:
      raise OSError(f"{path} can't be written ({error}); is the disk full?") from error


def read_manifest(folder: str | os.PathLike) -> list[Entry]:
  """The records of a folder, in the order of their names.

  Raises:
    FileNotFoundError: there is no manifest.
    ValueError: a line of it is none, or two clips have one name.
  """
  path = pathlib.Path(folder) / MANIFEST
  if not path.is_file():
    raise FileNotFoundError(
      f"No {MANIFEST} in {folder}; expected a folder of shards that d4s_jax.curate wrote."
    )
  entries: dict[str, Entry] = {}
  for where, told in read_lines(path):
    if not told.get("record"):
      continue
    entry = _entry(pathlib.Path(folder), told["record"], where)
    if entry.name in entries:
      raise ValueError(f"{where}: a second clip {entry.name!r}; expected names to be unique.")
    entries[entry.name] = entry
  return [entries[name] for name in sorted(entries)]


def read_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """The lines of a manifest, each with its place for messages.

  Raises:
    ValueError: one is too long or no JSON object; no more of it than is allowed is read.
  """
  with path.open("rb") as file:
    for number in itertools.count(1):
      text = file.readline(MOST_LINE + 1)
      if not text:
        return
      where = f"{path}, line {number}"
      if len(text) > MOST_LINE:
        raise ValueError(f"{where}: longer than the {MOST_LINE} bytes that are expected at most.")
      told = parse(text, where)
      if not isinstance(told, dict):
        raise ValueError(f"{where}: {text[:40]!r}; expected a JSON object.")
      yield where, told


def _entry(folder: pathlib.Path, told: Any, where: str) -> Entry:
  names = [field.name for field in dataclasses.fields(Entry)]
  told = fields(told, where, names)
  within(folder, text(told["shard"], where, 200))
  for name in ("name", "group", "split"):
    text(told[name], f"{where}, {name}", 2000)
  for name, most in (("row", 2**31), ("frames", 2**31), ("height", 2**20), ("width", 2**20)):
    integer(told[name], f"{where}, {name}", 0, most)
  for name in ("posed", "metric", "dynamic"):
    if not isinstance(told[name], bool):
      raise ValueError(f"{where}, {name}: {told[name]!r}; expected true or false.")
  return Entry(**told)


def to_json(entry: Entry) -> dict[str, Any]:
  """The entry as a line of the manifest has it, under "record"."""
  return dataclasses.asdict(entry)


def split(entries: Sequence[Entry], wanted: str) -> list[Entry]:
  """The entries of a split, "train" or "heldout"; see `splits.of_split`."""
  names = set(of_split({x.name: (x.split, x.group) for x in entries}, wanted))
  return [x for x in entries if x.name in names]


class Shards:
  """Records of a folder by entry; files are opened when they are needed, by each process."""

  def __init__(self, folder: str | os.PathLike):
    self._folder = pathlib.Path(folder)
    self._readers: dict[str, Any] = {}

  def __getstate__(self):
    return {"_folder": self._folder, "_readers": {}}

  def read(self, entry: Entry) -> Record:
    """One record.

    Raises:
      CorruptRecord: it isn't there, or its bytes changed; the message names file and row.
    """
    where = f"{self._folder / entry.shard}, record {entry.row}"
    try:
      record = decode(self._bytes(entry))
    except (CorruptRecord, RuntimeError, IndexError, OSError) as error:
      # Some errors have no message.
      told = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise CorruptRecord(f"{where}: {told[:300]}") from error
    found = (record.name, record.height, record.width)
    if found != (entry.name, entry.height, entry.width):
      raise CorruptRecord(f"{where} is {found}; the manifest has {entry}.")
    return record

  def contents(self, names: Iterable[str]) -> dict[str, str]:
    """What tells the manifest and some of the shards from others, without reading the latter."""
    sizes = []
    for name in sorted(set(names)):
      path = within(self._folder, name)
      sizes.append((name, path.stat().st_size if path.is_file() else None))
    with (self._folder / MANIFEST).open("rb") as file:
      manifest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return {"hash of manifest": manifest, "hash of sizes": digest(sizes)}

  def _bytes(self, entry: Entry) -> bytes:
    reader = self._readers.get(entry.shard)
    if reader is None:
      path = within(self._folder, entry.shard)
      if not path.is_file():
        raise FileNotFoundError(f"There is no such file; copy {entry.shard} again.")
      reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
      if len(self._readers) >= _OPEN:
        self._readers.pop(next(iter(self._readers)), None)
      self._readers[entry.shard] = reader
    return reader.read([entry.row])[0]


def line(told: dict[str, Any]) -> bytes:
  """One line of a manifest."""
  text = json.dumps(told, ensure_ascii=False, sort_keys=True, allow_nan=False)
  # What of a file's name is no text becomes JSON's own escapes.
  return text.encode("utf-8", "backslashreplace") + b"\n"
