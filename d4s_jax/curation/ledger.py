"""The results on disk: shards and the manifest, which a kill at any moment leaves usable.

Decisions are kept back until there are enough clips for a shard. Then the shard is written, whole
or not at all, and after it the lines of the manifest, of which the last says that they are
complete. What a kill left behind is undone at the next start: lines without such an end, and shards
that no line names. So each clip is decided about exactly once, and, as clips come in a fixed order,
shards and manifest are those of an undisturbed run, byte for byte.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from d4s_jax.curation.duplicates import Seen
from d4s_jax.data.identity import differences
from d4s_jax.data.shards import MANIFEST, MOST_LINE, line, read_lines, write_shard
from d4s_jax.formats import atomic, checked

_SETTINGS = "settings.json"
# Decisions that are kept back at most, also if no clip is kept, and bytes of a shard.
_DECISIONS, _BYTES = 2000, 1 << 30
# Thumbnails that are shown of clips rejected for one figure, and of those kept.
THUMBNAILS = 12


class Ledger:
  """What was decided, and where it goes on.

  Attributes:
    clips: names of the clips that were decided about.
    units: clips of each unit that was split.
  """

  def __init__(self, folder: pathlib.Path, settings: dict[str, Any]):
    """Opens a folder, in which a run may have been begun.

    Raises:
      ValueError: it was begun with other settings, or its manifest is damaged.
      OSError: it holds other things, or can't be written.
    """
    self._folder = folder
    self._per_shard = settings["shard"]
    self.clips: set[str] = set()
    self.units: dict[str, int] = {}
    self._of_unit: dict[str, int] = {}
    self._seen, self._shown = Seen(), {}
    self._shards = 0
    self._lines: list[dict[str, Any]] = []
    self._records: list[bytes] = []
    self._begin(settings)
    kept = self._recover()
    for path in folder.glob("shard-*.array_record"):
      if path.name not in kept:
        path.unlink()
    for path in folder.glob(".*"):
      if path.name.startswith((".shard-", ".report", f".{_SETTINGS}")):
        path.unlink()

  def _begin(self, settings: dict[str, Any]) -> None:
    path = self._folder / _SETTINGS
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if path.is_file():
      saved: Any = checked.parse(path.read_bytes(), str(path))
      if others := differences(saved, json.loads(text)):
        raise ValueError(
          f"{self._folder} was begun with other settings ({'; '.join(others)}); give those, or"
          " another --output."
        )
      return
    if self._folder.exists() and any(self._folder.iterdir()):
      raise FileExistsError(f"{self._folder} holds other things; expected a new or empty folder.")
    with atomic.replacing(path) as temporary:
      temporary.write_text(text)

  def _recover(self) -> set[str]:
    """Reads what was committed, cuts off what was not; returns the names of all shards.

    Raises:
      ValueError: a line is damaged that a kill can't have left, as others were committed after it.
    """
    path = self._folder / MANIFEST
    path.touch()
    shards: set[str] = set()
    end, pending, bad = 0, [], 0
    with path.open("r+b") as file:
      for number in itertools.count(1):
        text = file.readline(MOST_LINE + 1)
        if not text:
          break
        told = _told(text)
        if told is None:
          bad = bad or number
        elif "commit" not in told:
          pending.append((number, told))
        elif bad:
          raise _damaged(path, bad)
        else:
          for place, one in pending:
            try:
              self._note(one)
              shards |= {one["record"]["shard"]} if one.get("record") else set()
            except (KeyError, TypeError, ValueError, OverflowError) as error:
              raise _damaged(path, place) from error
          self._shards = told["commit"]
          end, pending = file.tell(), []
      file.truncate(end)
    atomic.flush(path)
    missing = [name for name in sorted(shards) if not (self._folder / name).is_file()]
    if missing:
      raise ValueError(
        f"{self._folder} lacks {', '.join(missing[:3])}, which {MANIFEST} names; copy the whole"
        " folder, or begin a new one."
      )
    return shards

  def _note(self, told: dict[str, Any]) -> None:
    if told.get("again"):  # not decided yet: the next start tries it again
      return
    if "clip" not in told:
      self.units[told["unit"]] = told["clips"]
      return
    self.clips.add(told["clip"])
    self._of_unit[told["unit"]] = self._of_unit.get(told["unit"], 0) + 1
    if told["kept"]:
      self._seen.add(told["clip"], [int(x, 16) for x in told["hashes"]])
    if told.get("thumbnail"):
      key = _figure(told)
      self._shown[key] = self._shown.get(key, 0) + 1

  def done(self, unit: str) -> bool:
    """Whether all clips of a unit are decided about."""
    return unit in self.units and self._of_unit.get(unit, 0) >= self.units[unit]

  def add_unit(
    self, unit: str, clips: int, problems: list[str], failed: str, again: bool = False
  ) -> None:
    """Notes into how many clips a unit was split, once, or why it wasn't, perhaps only now."""
    if unit in self.units:
      return
    told = {"unit": unit, "clips": clips, "problems": problems}
    if failed:
      told |= {"quarantined": True, "reason": failed} | ({"again": True} if again else {})
    self._take(told)

  def add(self, told: dict[str, Any], record: bytes) -> None:
    """Takes a decision; the last word is about duplicates. Writes a shard when it is full."""
    if told["clip"] in self.clips:
      raise AssertionError(f"{told['clip']} twice")
    if told["kept"]:
      like = self._seen.like([int(x, 16) for x in told["hashes"]])
      if like:
        del told["record"]
        told |= {"kept": False, "reason": f"duplicate of {like[0]}, {like[1]:.1f} bits apart"}
    if told["kept"]:
      told["record"] |= {"shard": self._name(), "row": len(self._records)}
      self._records.append(record)
    if self._shown.get(_figure(told), 0) >= THUMBNAILS:
      told.pop("thumbnail", None)
    self._take(told)
    size = sum(len(one) for one in self._records)
    if len(self._records) >= self._per_shard or size > _BYTES or len(self._lines) >= _DECISIONS:
      self.commit()

  def _take(self, told: dict[str, Any]) -> None:
    self._lines.append(told)
    self._note(told)

  def _name(self) -> str:
    return f"shard-{self._shards:06d}.array_record"

  def commit(self) -> None:
    """Writes what was kept back.

    Raises:
      OSError: it can't be written, the disk being full for example; nothing is lost but what the
        next start does again.
    """
    if not self._lines:
      return
    if self._records:
      write_shard(self._folder / self._name(), self._records)
    end = {"commit": self._shards + 1}
    text = b"".join(line(told) for told in [*self._lines, end])
    path = self._folder / MANIFEST
    try:
      with path.open("ab") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise OSError(
        error.errno,
        f"{error.strerror} while writing; make room, and give the same command again",
        str(path),
      ) from error
    self._shards += 1
    self._lines, self._records = [], []


def decisions(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The last lines of a manifest about each unit and clip."""
  waiting: dict[str, dict[str, Any]] = {}
  for _, told in read_lines(folder / MANIFEST):
    if "commit" in told:
      continue
    name = told.get("clip") or told["unit"]
    waiting.pop(name, None)
    if told.get("again"):
      waiting[name] = told
    else:
      yield told
  yield from waiting.values()


def _told(text: bytes) -> dict[str, Any] | None:
  """A line of the manifest; None if it is damaged, or not whole."""
  try:
    told = json.loads(text) if text.endswith(b"\n") else None
  except ValueError:
    return None
  good = isinstance(told, dict) and isinstance(told.get("commit", 0), int)
  return told if good else None


def _damaged(path: pathlib.Path, number: int) -> ValueError:
  return ValueError(
    f"{path}, line {number} is damaged, and others follow that were complete. Copy the file again;"
    f" or `sed -i '{number},$d'` it, and the same command decides about what followed once more."
  )


def _figure(told: dict[str, Any]) -> str:
  return "kept" if told["kept"] else told["reason"].split()[0]
