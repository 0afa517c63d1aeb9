"""What a clip costs: processor time and bytes of curation and of loading, for arithmetic on paper.

  python tests/benchmarks/curation.py --film=bunny.mp4 [--clips=6]

Times are of this process, all of its threads, so that other work on the machine counts little:
finding shots (a frame of the film), reading and encoding (a kept frame), measuring and writing (a
clip), what the driver alone does (a clip: shard and manifest, of random bytes as large as the
records; and hashes held against those of many clips), and drawing training clips of 49 + 8 pictures
of 512 x 512 from the records (a picture), without and with depth. Depth is made up of the pictures'
blurred brightness.
"""

import dataclasses
import io
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image, ImageFilter

from d4s_jax.curation import units, work
from d4s_jax.curation.duplicates import HASHES, Seen
from d4s_jax.curation.guard import Guard
from d4s_jax.curation.ledger import Ledger
from d4s_jax.curation.settings import Settings
from d4s_jax.data import record as records
from d4s_jax.data.recorded import Recorded
from d4s_jax.data.sampling import Augmentation

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.data.records import write_folder  # noqa: E402

_FILM = flags.DEFINE_string("film", None, "A video file.", required=True)
_CLIPS = flags.DEFINE_integer("clips", 6, "Clips that are measured, from all over the film.")

# Megabytes of a record of 97 frames without and with depth, how many are written, and against how
# many clips one is held.
_RECORDS, _WRITTEN, _COMPARED = (18, 53), 8, (10**5, 10**6)


def timed(function, *arguments):
  start = time.process_time()
  result = function(*arguments)
  return result, time.process_time() - start


def main(argv):
  del argv
  film, settings = pathlib.Path(_FILM.value).absolute(), Settings()
  unit = units.Unit(units.VIDEOS, str(film.parent), film.name)
  (spans, _), seconds = timed(
    units.spans, unit, settings.frames, settings.shortest, lambda share: None
  )
  frames = sum(len(span.stamps) for span in spans)
  print(f"shots: {1e3 * seconds / frames:.2f} ms a frame of {frames} in {len(spans)} clips")
  whole = [span for span in spans if len(span.stamps) == settings.frames]
  if not whole:
    raise ValueError(f"{film} has no clip of {settings.frames} frames; expected a longer film.")
  chosen = [whole[i] for i in np.linspace(0, len(whole) - 1, _CLIPS.value).round().astype(int)]
  kept, reading, judging = [], [], []
  with tempfile.TemporaryDirectory() as name:
    guard = Guard(pathlib.Path(name), 600)
    for span in chosen:
      row, seconds = timed(work.read, span, settings, guard)
      reading.append(seconds / settings.frames)
      decision, seconds = timed(work.assess, row, settings, guard)
      judging.append(seconds)
      kept.append(records.decode(row["record"]))
    size = sum(len(x) for one in kept for x in one.images) / sum(len(x.images) for x in kept)
    print(f"reading and encoding: {1e3 * statistics.median(reading):.1f} ms a frame")
    print(f"measuring and writing: {statistics.median(judging):.2f} s a clip of {settings.frames}")
    print(f"record: {size / 1e3:.0f} KB a picture of {kept[0].width} x {kept[0].height}")
    driver(pathlib.Path(name), settings, decision["told"])
    loading(pathlib.Path(name), kept)


def driver(folder, settings, told):
  """What the driver does of a clip, but for taking its record out of Ray's store."""
  rng = np.random.default_rng(0)
  for size in _RECORDS:
    ledger = Ledger(folder / f"driver of {size}", {**settings.to_json(), "shard": _WRITTEN})
    some = [(_kept(told, number, rng), rng.bytes(size * 10**6)) for number in range(_WRITTEN)]
    seconds = sum(timed(ledger.add, *one)[1] for one in some)
    print(f"driver: {1e3 * seconds / _WRITTEN:.0f} ms a clip of {size} MB, of {_WRITTEN}")
  for count in _COMPARED:
    seen = Seen()
    for number, found in enumerate(rng.integers(2**63, size=(count, HASHES)).tolist()):
      seen.add(str(number), found)
    took = [timed(seen.like, x)[1] for x in rng.integers(2**63, size=(20, HASHES)).tolist()]
    print(f"driver: {1e3 * statistics.mean(took):.1f} ms to hold a clip against {count}")


def _kept(told, number, rng):
  """A decision for a clip that is like no other."""
  hashes = [f"{x:016x}" for x in rng.integers(2**63, size=HASHES).tolist()]
  place = {**(told.get("record") or {})}
  return {**told, "clip": str(number), "kept": True, "hashes": hashes, "record": place}


def loading(folder, kept):
  """Training clips of the records, without and with depth."""
  deep = [dataclasses.replace(one, depth=[depth(x) for x in one.images]) for one in kept[:2]]
  size = sum(len(x) for one in deep for x in one.depth) / sum(len(x.images) for x in deep)
  print(f"depth: {size / 1e3:.0f} KB a picture more")
  for what, some in (("pictures", kept), ("pictures with depth", deep)):
    place = folder / what
    write_folder(place, some)
    shape = {"frames": 49, "height": 512, "width": 512, "views": 8}
    source = Recorded(str(place), posed=False, augment=Augmentation(), **shape)
    took = [timed(source.draw, i % len(source), np.random.default_rng(i))[1] for i in range(8)]
    print(f"{what}: {1e3 * statistics.median(took) / 57:.1f} ms each of 49 + 8")


def depth(jpeg):
  """A depth map of the size of a picture, 2 to 10 m, as a record has it."""
  grey = Image.open(io.BytesIO(jpeg)).convert("L").filter(ImageFilter.GaussianBlur(4))
  return records.to_depth_png(2 + 8 * np.asarray(grey, np.float32) / 255)


if __name__ == "__main__":
  app.run(main)
