"""What is scored: scenes and videos in folders, and what is known to be true beside them.

A sample NAME of a folder is a scene folder NAME/ or a video NAME.mp4 (or .mkv .webm .mov .avi .gif
.npy). Beside a video may lie NAME.txt, its prompt, and NAME.json, the cameras that were asked for
(`formats.cameras`); a scene knows both itself. A reference folder holds videos of the same names,
or a source.json: {"source": NAME, "options": {...}, "clips": {SAMPLE: NUMBER}}, which names clips
of `data.source` with their depth, tracks and other views.

Nothing is left out in silence: what is no sample is listed, and what can't be read is an error of
that sample.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from d4s_jax.data.source import open_source
from d4s_jax.evaluation.samples import Sample, Scene, SourceClip, Video
from d4s_jax.formats import checked, scene

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".npy")
SOURCE = "source.json"
# Files that may lie beside samples.
_BESIDE = (".txt", ".json", ".md")
_LONGEST_JSON = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class SampleSet:
  """The samples of one folder.

  Attributes:
    name: of the set.
    samples: by name, in alphabetical order.
    ignored: names of what lies there and is no sample, as videos beside a source.json.
  """

  name: str
  samples: dict[str, Sample]
  ignored: tuple[str, ...] = ()


def open_set(folder: pathlib.Path, name: str = "") -> SampleSet:
  """The samples of a folder.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it has no samples, or two of one name.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"No folder {folder}; expected scenes or videos in it.")
  entries = [x for x in sorted(folder.iterdir()) if not x.name.startswith(".")]
  place = folder / SOURCE
  samples = _clips(place) if place.is_file() else _files(folder, entries)
  taken = {sample.path for sample in samples.values()}
  ignored = [x.name for x in entries if x not in taken and x.suffix not in _BESIDE]
  return SampleSet(name or folder.resolve().name, samples, tuple(ignored))


def _files(folder: pathlib.Path, entries: Sequence[pathlib.Path]) -> dict[str, Sample]:
  samples: dict[str, Sample] = {}
  for entry in entries:
    kind = _kind(entry)
    if kind is None:
      continue
    key = entry.name if kind is Scene else entry.stem
    if key in samples:
      raise ValueError(f"{folder} has two samples named {key!r}; expected one of each name.")
    samples[key] = kind(key, entry)
  if not samples:
    raise ValueError(
      f"{folder} has no samples; expected scene folders or videos ({', '.join(VIDEOS)})."
    )
  return samples


def _kind(entry: pathlib.Path) -> type[Sample] | None:
  if entry.is_dir():
    return Scene if (entry / scene.DESCRIPTION).is_file() else None
  return Video if entry.suffix.lower() in VIDEOS else None


def _clips(path: pathlib.Path) -> dict[str, Sample]:
  value = checked.parse(checked.read_bytes(path, _LONGEST_JSON, "source"), str(path))
  found = checked.fields(value, str(path), ("source", "options", "clips"))
  if not isinstance(found["options"], dict) or not isinstance(found["clips"], dict):
    raise ValueError(f"{path}: options and clips; expected objects.")
  try:
    source = open_source(checked.text(found["source"], f"{path}: source", 1000), **found["options"])
  except TypeError as error:
    raise ValueError(f"{path}: options that the source doesn't know ({error}).") from error
  if not found["clips"]:
    raise ValueError(f"{path} has no clips; expected at least one.")
  return {
    name: SourceClip(
      name,
      path,
      source,
      checked.integer(number, f"{path}: clips[{name!r:.60}]", 0, len(source) - 1),
    )
    for name, number in sorted(found["clips"].items())
  }
