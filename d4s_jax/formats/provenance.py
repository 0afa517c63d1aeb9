"""Where a file comes from, written into it where its format has a place for that, and read back.

It is one JSON object: a comment of PLY, MP4, PNG and HTML, `asset.extras` of glTF. .splat and .spz
have no such place. Whoever wants to can change or remove it: it informs, and proves nothing
(`formats.credentials` signs).
"""

import hashlib
import json
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Callable, Mapping

import av
from av.error import FFmpegError
from PIL import Image

from d4s_jax.formats import atomic, checked, scene
from d4s_jax.formats.scene import SceneMetadata

# What IPTC calls media made by a trained model; C2PA and search engines know the name.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_NAME = "d4s_jax"
_MOST_HEADER = 2**20
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
  return json.dumps({_NAME: dict(given)})


def stamp(path: pathlib.Path, given: Facts) -> bool:
  """Writes it into a file that is there; returns whether the format has a place for it.

  Videos are not changed: `formats.video.write_video` takes the text when it writes them.
  """
  add = _STAMPS.get(path.suffix.lower())
  if add is None:
    return False
  contents = add(path.read_bytes(), text(given))
  with atomic.replacing(path) as temporary:
    temporary.write_bytes(contents)
  return True


def read(path: pathlib.Path) -> dict[str, str | int | None] | None:
  """What a file, or the folder of a scene, says of its origin; None if it says nothing of ours."""
  if path.is_dir():
    return facts(scene.read_scene(path)[1])
  find = _FINDERS.get(path.suffix.lower())
  try:
    found = find(path) if find is not None else None
    value = checked.parse(found.encode(), path.name)[_NAME] if found else None
  except (ValueError, KeyError, TypeError, struct.error):
    return None
  if not isinstance(value, dict):
    return None
  return {
    str(key)[:40]: x if isinstance(x, int | None) else str(x)[:300]
    for key, x in list(value.items())[:20]
  }


def _stamp_ply(contents: bytes, line: str) -> bytes:
  first, kind, rest = contents.split(b"\n", 2)
  return b"\n".join([first, kind, b"comment " + line.encode("ascii"), rest])


def _stamp_glb(contents: bytes, line: str) -> bytes:
  (size,) = struct.unpack_from("<I", contents, 12)
  document = json.loads(contents[20 : 20 + size])
  document["asset"]["extras"] = document["asset"].get("extras", {}) | json.loads(line)
  encoded = json.dumps(document).encode()
  encoded += b" " * (-len(encoded) % 4)
  chunks = struct.pack("<I4s", len(encoded), b"JSON") + encoded + contents[20 + size :]
  return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _stamp_png(contents: bytes, line: str) -> bytes:
  body = b"tEXtComment\0" + line.encode("ascii")
  chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
  # After the signature (8 bytes) and the header chunk (25).
  return contents[:33] + chunk + contents[33:]


def _stamp_html(contents: bytes, line: str) -> bytes:
  safe = line.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
  tag = f'<head><meta name="{_NAME}" content="{safe}">'.encode("ascii")
  return contents.replace(b"<head>", tag, 1)


# By suffix: (contents, one line of ASCII) -> contents.
_STAMPS: dict[str, Callable[[bytes, str], bytes]] = {
  ".ply": _stamp_ply,
  ".glb": _stamp_glb,
  ".png": _stamp_png,
  ".html": _stamp_html,
}


def _head(path: pathlib.Path) -> bytes:
  with path.open("rb") as file:
    return file.read(_MOST_HEADER)


def _find_ply(path: pathlib.Path) -> str | None:
  header = _head(path).partition(b"end_header")[0].decode("ascii", "replace")
  return next((x[8:] for x in header.splitlines() if x.startswith(f'comment {{"{_NAME}"')), None)


def _find_glb(path: pathlib.Path) -> str | None:
  head = _head(path)
  if len(head) < 20 or head[:4] != b"glTF":
    return None
  document = checked.parse(head[20 : 20 + struct.unpack_from("<I", head, 12)[0]], path.name)
  asset = document.get("asset") if isinstance(document, dict) else None
  return json.dumps(asset.get("extras")) if isinstance(asset, dict) else None


def _find_png(path: pathlib.Path) -> str | None:
  try:
    with Image.open(path, formats=["PNG"]) as image:
      found = image.info.get("Comment")
  except (OSError, ValueError, SyntaxError):
    return None
  return found if isinstance(found, str) else None


def _find_html(path: pathlib.Path) -> str | None:
  found = re.search(
    rf'<meta name="{_NAME}" content="([^"]*)">', _head(path).decode("utf-8", "replace")
  )
  if not found:
    return None
  return found[1].replace("&lt;", "<").replace("&quot;", '"').replace("&amp;", "&")


def _find_video(path: pathlib.Path) -> str | None:
  try:
    with av.open(os.fspath(path)) as container:
      return container.metadata.get("comment")
  except (FFmpegError, OSError):
    return None


_FINDERS: dict[str, Callable[[pathlib.Path], str | None]] = {
  ".ply": _find_ply,
  ".glb": _find_glb,
  ".png": _find_png,
  ".html": _find_html,
  ".mp4": _find_video,
}
