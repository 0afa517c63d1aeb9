"""Where files of other programs have room for a line of ASCII about themselves.

Each row adds a line to the contents of a file, or finds one of ours again; what reads the format
reads on. `NAME` is the key of the JSON object that the line holds.
"""

import io
import json
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image
from safetensors import SafetensorError, safe_open

from d4s_jax.formats import checked

NAME = "d4s_jax"
_MOST_HEADER = 2**20
# Bytes of a block of a GIF's comment, and of an attribute of an EXR's header.
_GIF_BLOCK = 255
# Flags of extended WebP.
_WEBP_XMP, _WEBP_ALPHA = 4, 16
# What a file that isn't sound makes a row below raise.
BROKEN = (
  *(ValueError, LookupError, TypeError, OSError, SyntaxError, NotImplementedError, RuntimeError),
  *(struct.error, zlib.error, zipfile.BadZipFile, FFmpegError, SafetensorError),
  Image.DecompressionBombError,
)


def _add_ply(contents: bytes, line: str) -> bytes:
  first, kind, rest = contents.split(b"\n", 2)
  return b"\n".join([first, kind, b"comment " + line.encode("ascii"), rest])


def _add_obj(contents: bytes, line: str) -> bytes:
  return b"# " + line.encode("ascii") + b"\n" + contents


def _add_glb(contents: bytes, line: str) -> bytes:
  (size,) = struct.unpack_from("<I", contents, 12)
  document = json.loads(contents[20 : 20 + size])
  document["asset"]["extras"] = document["asset"].get("extras", {}) | json.loads(line)
  encoded = json.dumps(document).encode()
  encoded += b" " * (-len(encoded) % 4)
  chunks = struct.pack("<I4s", len(encoded), b"JSON") + encoded + contents[20 + size :]
  return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _add_sog(contents: bytes, line: str) -> bytes:
  packed = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(contents)) as old, zipfile.ZipFile(packed, "w") as new:
    for member in old.infolist():
      inside = old.read(member)
      if member.filename == "meta.json":
        description = json.loads(inside)
        description["asset"] |= json.loads(line)
        inside = json.dumps(description).encode()
      new.writestr(member, inside)
  return packed.getvalue()


def _add_npz(contents: bytes, line: str) -> bytes:
  array, packed = io.BytesIO(), io.BytesIO(contents)
  np.save(array, np.array(line), allow_pickle=False)
  with zipfile.ZipFile(packed, "a") as archive:
    archive.writestr(zipfile.ZipInfo("provenance.npy", (1980, 1, 1, 0, 0, 0)), array.getvalue())
  return packed.getvalue()


def _add_png(contents: bytes, line: str) -> bytes:
  body = b"tEXtComment\0" + line.encode("ascii")
  chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
  # After the signature (8 bytes) and the header chunk (25).
  return contents[:33] + chunk + contents[33:]


def _add_jpeg(contents: bytes, line: str) -> bytes:
  # After the start and the segment of JFIF, which has to be the first.
  (size,) = struct.unpack_from(">H", contents, 4)
  segment = b"\xff\xfe" + struct.pack(">H", len(line) + 2) + line.encode("ascii")
  return contents[: 4 + size] + segment + contents[4 + size :]


def _add_gif(contents: bytes, line: str) -> bytes:
  # After the header (13 bytes) and the palette of all frames.
  flags = contents[10]
  start = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 128 else 0)
  text = line.encode("ascii")
  blocks = [text[i : i + _GIF_BLOCK] for i in range(0, len(text), _GIF_BLOCK)]
  said = b"\x21\xfe" + b"".join(bytes([len(x)]) + x for x in blocks) + b"\0"
  return contents[:start] + said + contents[start:]


def _add_webp(contents: bytes, line: str) -> bytes:
  escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
  text = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    'syntax-ns#"><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description>'
    f"{escaped}</dc:description></rdf:Description></rdf:RDF></x:xmpmeta>"
  ).encode("ascii")
  body = contents[12:]
  if body[:4] != b"VP8X":
    with Image.open(io.BytesIO(contents), formats=["WEBP"]) as image:
      flags = _WEBP_ALPHA if image.mode == "RGBA" else 0
      sides = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    body = b"VP8X" + struct.pack("<II", 10, flags) + sides + body
  body = body[:8] + bytes([body[8] | _WEBP_XMP]) + body[9:]
  body += b"XMP " + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
  return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _add_exr(contents: bytes, line: str) -> bytes:
  end = _exr_attributes(contents)[1]
  text = line.encode("ascii")
  added = b"comments\0string\0" + struct.pack("<i", len(text)) + text
  # A table of where the blocks of rows begin, the first of them behind it.
  table = end + 1
  (first,) = struct.unpack_from("<Q", contents, table)
  places = np.frombuffer(contents[table:first], "<u8") + len(added)
  return contents[:end] + added + b"\0" + places.astype("<u8").tobytes() + contents[first:]


def _add_safetensors(contents: bytes, line: str) -> bytes:
  (size,) = struct.unpack_from("<Q", contents)
  header = json.loads(contents[8 : 8 + size])
  header["__metadata__"] = header.get("__metadata__", {}) | {NAME: line}
  encoded = json.dumps(header).encode()
  encoded += b" " * (-len(encoded) % 8)
  return struct.pack("<Q", len(encoded)) + encoded + contents[8 + size :]


def _add_html(contents: bytes, line: str) -> bytes:
  safe = line.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
  tag = f'<head><meta name="{NAME}" content="{safe}">'.encode("ascii")
  return contents.replace(b"<head>", tag, 1)


def _exr_attributes(contents: bytes) -> tuple[dict[bytes, bytes], int]:
  """The attributes of an EXR's header, and where they end."""
  found, at = {}, 8
  while contents[at] != 0:
    name, _, rest = contents[at:_MOST_HEADER].partition(b"\0")
    kind = rest.partition(b"\0")[0]
    start = at + len(name) + len(kind) + 2
    (size,) = struct.unpack_from("<i", contents, start)
    if not 0 <= size <= len(contents):
      raise ValueError(f"an attribute of {size} bytes")
    found[name] = contents[start + 4 : start + 4 + size]
    at = start + 4 + size
  return found, at


def _head(path: pathlib.Path) -> bytes:
  with path.open("rb") as file:
    return file.read(_MOST_HEADER)


def _lines(path: pathlib.Path, mark: str) -> str | None:
  """The line of a text's head that begins with a mark and our object."""
  header = _head(path).partition(b"end_header")[0].decode("ascii", "replace")
  start = f'{mark} {{"{NAME}"'
  return next((x[len(mark) + 1 :] for x in header.splitlines() if x.startswith(start)), None)


def _find_glb(path: pathlib.Path) -> str | None:
  head = _head(path)
  if len(head) < 20 or head[:4] != b"glTF":
    return None
  document = checked.parse(head[20 : 20 + struct.unpack_from("<I", head, 12)[0]], path.name)
  asset = document.get("asset") if isinstance(document, dict) else None
  return json.dumps(asset.get("extras")) if isinstance(asset, dict) else None


def _find_sog(path: pathlib.Path) -> str | None:
  with zipfile.ZipFile(path) as archive, archive.open("meta.json") as file:
    asset = checked.parse(file.read(_MOST_HEADER), path.name)["asset"]
  return json.dumps({NAME: asset[NAME]})


def _find_npz(path: pathlib.Path) -> str | None:
  with zipfile.ZipFile(path) as archive, archive.open("provenance.npy") as file:
    array = np.load(io.BytesIO(file.read(_MOST_HEADER)), allow_pickle=False)
  return str(array)


def _find_picture(*keys: str) -> Callable[[pathlib.Path], str | None]:
  def find(path: pathlib.Path) -> str | None:
    with Image.open(path, formats=["PNG", "JPEG", "GIF"]) as image:
      found = next((image.info[key] for key in keys if key in image.info), None)
    return found.decode("ascii", "replace") if isinstance(found, bytes) else found

  return find


def _find_webp(path: pathlib.Path) -> str | None:
  with Image.open(path, formats=["WEBP"]) as image:
    text = image.info.get("xmp", b"").decode("ascii", "replace")
  found = re.search(r"<dc:description>([^<]*)</dc:description>", text)
  if not found:
    return None
  return found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _find_exr(path: pathlib.Path) -> str | None:
  found = _exr_attributes(_head(path))[0].get(b"comments")
  return None if found is None else found.decode("ascii", "replace")


def _find_safetensors(path: pathlib.Path) -> str | None:
  with safe_open(path, "numpy") as file:
    return (file.metadata() or {}).get(NAME)


def _find_html(path: pathlib.Path) -> str | None:
  found = re.search(
    rf'<meta name="{NAME}" content="([^"]*)">', _head(path).decode("utf-8", "replace")
  )
  if not found:
    return None
  return found[1].replace("&lt;", "<").replace("&quot;", '"').replace("&amp;", "&")


def _find_video(path: pathlib.Path) -> str | None:
  with av.open(os.fspath(path)) as container:
    # Matroska's names are in capitals.
    return container.metadata.get("comment") or container.metadata.get("COMMENT")


# By suffix: (contents, one line of ASCII) -> contents.
ADD: dict[str, Callable[[bytes, str], bytes]] = {
  ".ply": _add_ply,
  ".obj": _add_obj,
  ".glb": _add_glb,
  ".sog": _add_sog,
  ".npz": _add_npz,
  ".png": _add_png,
  ".jpg": _add_jpeg,
  ".gif": _add_gif,
  ".webp": _add_webp,
  ".exr": _add_exr,
  ".safetensors": _add_safetensors,
  ".html": _add_html,
}
# By suffix: file -> the line, or None if there is none of ours; raises one of BROKEN.
FIND: dict[str, Callable[[pathlib.Path], str | None]] = {
  ".ply": lambda path: _lines(path, "comment"),
  ".obj": lambda path: _lines(path, "#"),
  ".glb": _find_glb,
  ".sog": _find_sog,
  ".npz": _find_npz,
  ".png": _find_picture("Comment"),
  ".jpg": _find_picture("comment"),
  ".gif": _find_picture("comment"),
  ".webp": _find_webp,
  ".exr": _find_exr,
  ".safetensors": _find_safetensors,
  ".html": _find_html,
  ".mp4": _find_video,
  ".webm": _find_video,
}
