"""Where a file comes from, written into it where its format has a place for that, and read back.

It is one JSON object, in the places that `formats.comments` knows. Whoever wants to can change or
remove it: it informs, and proves nothing (`formats.credentials` signs).
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping

from d4s_jax.formats import atomic, checked, comments, scene
from d4s_jax.formats.scene import SceneMetadata

# What IPTC calls media made by a trained model; C2PA and search engines know the name.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
Facts = Mapping[str, str | int | None]


def facts(metadata: SceneMetadata) -> dict[str, str | int | None]:
  """What is written: the prompt only as its hash, since files travel farther than scenes."""
  return {
    "generator": f"d4s_jax {metadata.package_version}",
    "digital_source_type": SOURCE_TYPE,
    "model": metadata.checkpoint,
    "checkpoint_hash": metadata.checkpoint_hash,
    "config_hash": metadata.config_hash,
    "prompt_hash": hashlib.sha256(metadata.prompt.encode("utf-8", "replace")).hexdigest(),
    "seed": metadata.seed,
    "date": metadata.date,
  }


def text(given: Facts) -> str:
  """One line of ASCII."""
  return json.dumps({comments.NAME: dict(given)})


def stamp(path: pathlib.Path, given: Facts) -> bool:
  """Writes it into a file that is there; returns whether the format has a place for it.

  MP4 is not changed: `formats.video.write_video` takes the text when it writes one, as
  `formats.recording.write` does.
  """
  add = comments.ADD.get(path.suffix.lower())
  if add is None:
    return False
  if read(path) == dict(given):
    return True
  contents = add(path.read_bytes(), text(given))
  with atomic.replacing(path) as temporary:
    temporary.write_bytes(contents)
  return True


def read(path: pathlib.Path) -> dict[str, str | int | None] | None:
  """What a file, or the folder of a scene, says of its origin; None if it says nothing of ours."""
  if path.is_dir():
    return facts(scene.read_scene(path)[1])
  find = comments.FIND.get(path.suffix.lower())
  try:
    found = find(path) if find is not None else None
    value = checked.parse(found.encode(), path.name)[comments.NAME] if found else None
  except comments.BROKEN:
    return None
  if not isinstance(value, dict):
    return None
  return {
    str(key)[:40]: x if isinstance(x, int | None) else str(x)[:300]
    for key, x in list(value.items())[:20]
  }
