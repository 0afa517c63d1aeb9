"""The ledger: cut off at any byte, it goes on to the same result; nothing is lost or twice."""

import hashlib
import json
import pathlib
import tracemalloc

import numpy as np
import pytest

from d4s_jax.curation.ledger import Ledger, decisions
from d4s_jax.data import record as records
from d4s_jax.data import shards
from d4s_jax.data.shards import MANIFEST, Shards, read_manifest
from tests.data.records import entry, plain_record
from tests.support import full_disk

SETTINGS = {"shard": 3}
CLIPS = 20


def decision(number):
  record = plain_record(f"videos/{number % 4}.mp4/{number}")
  told = {"clip": record.name, "unit": f"videos/{number % 4}.mp4", "kept": number % 5 != 0}
  told |= {"hashes": [f"{hash_of(number):016x}"], "figures": {"flow": number / 10}}
  if told["kept"]:
    told["record"] = {**entry(record, "", 0).__dict__}
    return told, records.encode(record)
  return {**told, "reason": "flow 0 is below 1"}, b""


def hash_of(number):
  # Clip 7 shows what clip 3 does.
  number = 3 if number == 7 else number
  return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8])


def work(folder, stop=CLIPS, commit=True):
  """Decides about clips as a run does, up to some number of them; then it ends, or is killed."""
  ledger = Ledger(folder, SETTINGS)
  for number in range(4):
    ledger.add_unit(f"videos/{number}.mp4", CLIPS // 4, [], "")
  done = 0
  for number in range(CLIPS):
    told, record = decision(number)
    if told["clip"] in ledger.clips:
      continue
    if done == stop:
      return ledger
    ledger.add(told, record)
    done += 1
  if commit:
    ledger.commit()
  return ledger


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def check(folder, expected):
  names = [told["clip"] for told in decisions(folder) if "clip" in told]
  assert sorted(names) == sorted({decision(number)[0]["clip"] for number in range(CLIPS)})
  assert contents(folder) == expected


@pytest.fixture
def undisturbed(tmp_path):
  work(tmp_path / "whole")
  return contents(tmp_path / "whole")


def test_what_is_written_can_be_read(tmp_path, undisturbed):
  folder = tmp_path / "whole"
  entries = read_manifest(folder)
  kept = [told for told in decisions(folder) if told.get("kept")]
  assert len(entries) == len(kept) == 15 and len(undisturbed) == 2 + 5
  shards = Shards(folder)
  for one in entries:
    assert shards.read(one).name == one.name
  duplicate = [told for told in decisions(folder) if "duplicate" in told.get("reason", "")]
  assert [told["clip"] for told in duplicate] == ["videos/3.mp4/7"]
  assert duplicate[0]["reason"].startswith("duplicate of videos/3.mp4/3, 0.0 bits apart")


@pytest.mark.parametrize("stop", range(0, CLIPS, 3))
def test_a_kill_between_clips_changes_nothing(tmp_path, undisturbed, stop):
  folder = tmp_path / "killed"
  work(folder, stop)
  work(folder, 2)
  work(folder)
  check(folder, undisturbed)
  ledger = Ledger(folder, SETTINGS)
  assert all(ledger.done(f"videos/{number}.mp4") for number in range(4))


def test_a_kill_in_the_middle_of_writing_changes_nothing(tmp_path, undisturbed):
  """The manifest cut at random bytes, a shard that no line names, half a temporary file."""
  rng = np.random.default_rng(0)
  for attempt in range(12):
    folder = tmp_path / f"cut{attempt}"
    work(folder, int(rng.integers(CLIPS)))
    path = folder / MANIFEST
    text = path.read_bytes()
    path.write_bytes(text[: rng.integers(len(text) + 1)])
    (folder / "shard-000099.array_record").write_bytes(b"half")
    (folder / ".shard-000001.array_record.abcd").write_bytes(b"half")
    work(folder)
    check(folder, undisturbed)


@pytest.mark.parametrize("damage", [b"?", b"[]", b'{"clip": 3}', b'{"commit": "x"}'])
def test_damage_before_what_was_committed_is_told_and_nothing_is_touched(tmp_path, damage):
  """It is no end that a kill left: what follows must not be thrown away."""
  folder = tmp_path / "damaged"
  work(folder)
  path = folder / MANIFEST
  lines = path.read_bytes().splitlines()
  path.write_bytes(b"\n".join([*lines[:7], damage, *lines[8:], b""]))
  before = contents(folder)
  with pytest.raises(ValueError, match=f"{MANIFEST}, line 8 is damaged.*Copy the file again"):
    Ledger(folder, SETTINGS)
  assert contents(folder) == before


def test_a_line_without_end_is_not_read_whole_when_a_run_goes_on(tmp_path, undisturbed):
  """What a broken disk left after the last commit, 64 MB without an end, is cut off."""
  folder = tmp_path / "a"
  work(folder)
  with (folder / MANIFEST).open("ab") as file:
    for _ in range(64):
      file.write(b"x" * 1_000_000)
  tracemalloc.start()
  try:
    Ledger(folder, SETTINGS)
    most = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert most < 16e6
  check(folder, undisturbed)


def test_the_remedy_for_damage_works(tmp_path, undisturbed):
  folder = tmp_path / "damaged"
  work(folder)
  path = folder / MANIFEST
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
  work(folder)
  check(folder, undisturbed)


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
  work(tmp_path / "a")
  monkeypatch.setattr(shards, "MOST_LINE", 300)
  (tmp_path / "a" / MANIFEST).write_bytes(b"x" * 100_000)
  reads = []
  real = pathlib.Path.open

  def opened(self, *how):
    file = real(self, *how)
    if self.name == MANIFEST:
      file = Watched(file, reads)
    return file

  monkeypatch.setattr(pathlib.Path, "open", opened)
  for read in (read_manifest, lambda folder: list(decisions(folder))):
    with pytest.raises(ValueError, match="line 1: longer than the 300 bytes"):
      read(tmp_path / "a")
  assert max(reads) == 301


class Watched:
  """A file that notes how much of it is read at once."""

  def __init__(self, file, reads):
    self._file, self._reads = file, reads

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._file.close()

  def readline(self, most=-1):
    text = self._file.readline(most)
    self._reads.append(len(text))
    return text

  def __iter__(self):
    return iter(self.readline, b"")


def test_a_full_disk_is_told_and_gone_on_from(tmp_path, undisturbed):
  folder = tmp_path / "full"
  Ledger(folder, SETTINGS)
  with pytest.raises(OSError, match="full|make room|large"):
    with full_disk(3000):
      work(folder)
  work(folder)
  check(folder, undisturbed)


def test_what_a_bad_disk_kept_from_being_decided_is_tried_again(tmp_path):
  """A unit that could not be split, and a clip that could not be read: lost for one run alone."""
  settings = {"shard": 3}
  ledger = Ledger(tmp_path / "a", settings)
  told = {"kept": False, "quarantined": True, "again": True, "reason": "EIO"}
  ledger.add_unit("videos/a.mp4", 1, [], "")
  ledger.add({"clip": "videos/a.mp4/0-9", "unit": "videos/a.mp4", **told}, b"")
  ledger.add_unit("videos/b.mp4", 0, [], "EIO", again=True)
  ledger.commit()
  assert len([x for x in decisions(tmp_path / "a") if x.get("again")]) == 2
  ledger = Ledger(tmp_path / "a", settings)
  assert not ledger.clips and not any(ledger.done(f"videos/{x}.mp4") for x in "ab")
  good = {"kept": False, "reason": "flow 0 is below 1", "figures": {}, "hashes": []}
  ledger.add({"clip": "videos/a.mp4/0-9", "unit": "videos/a.mp4", **good}, b"")
  ledger.add_unit("videos/b.mp4", 0, [], "")
  ledger.commit()
  ledger = Ledger(tmp_path / "a", settings)
  assert all(ledger.done(f"videos/{x}.mp4") for x in "ab")
  last = {x.get("clip") or x["unit"]: x for x in decisions(tmp_path / "a")}
  assert len(last) == 3 and not any(x.get("again") for x in last.values())


def test_other_settings_and_foreign_folders_are_refused(tmp_path):
  work(tmp_path / "a", 5)
  with pytest.raises(ValueError, match=r"begun with other settings \(shard: saved 3, now 4\)"):
    Ledger(tmp_path / "a", {**SETTINGS, "shard": 4})
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "thesis.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="holds other things"):
    Ledger(tmp_path / "b", SETTINGS)
  work(tmp_path / "a")
  next((tmp_path / "a").glob("shard-*")).unlink()
  with pytest.raises(ValueError, match="lacks shard-"):
    Ledger(tmp_path / "a", SETTINGS)


def test_lines_are_json_with_reasons_and_figures(tmp_path):
  work(tmp_path / "a")
  for text in (tmp_path / "a" / MANIFEST).read_text().splitlines():
    told = json.loads(text)
    if "clip" in told:
      assert told["kept"] or told["reason"]
      assert "figures" in told
