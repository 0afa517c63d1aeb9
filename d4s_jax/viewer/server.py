"""A small HTTP server for this machine alone: one page, and pictures if there is a painter."""

import contextlib
import errno
import http.server
import threading
import urllib.parse

import numpy as np

from d4s_jax.formats import cameras, checked
from d4s_jax.viewer.frames import MODES, Painter

HOST = "127.0.0.1"
_LONGEST = 4000
_MOST_SIDE = 4096


def serve(
  page: bytes, port: int, painter: Painter | None = None
) -> http.server.ThreadingHTTPServer:
  """A server of one page, and of the pictures that it asks for, on this machine alone.

  Raises:
    OSError: the port is taken.
  """
  # One picture at a time: JAX would have two share the cores.
  drawing = threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802, the name is the library's
      # A page elsewhere whose name was made to lead here must not read it (DNS rebinding).
      if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
        self.send_error(403)
        return
      # Nor may it have pictures drawn here, which costs time, or show this page within itself;
      # browsers tell who asks. A person may follow a link.
      if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        linked = self.path == "/" and self.headers.get("Sec-Fetch-Dest") == "document"
        if not linked:
          self.send_error(403)
          return
      place, _, query = self.path.partition("?")
      if self.path == "/":
        self._answer(200, "text/html; charset=utf-8", page)
      elif place == "/frame" and painter is not None:
        self._frame(painter, query)
      else:
        self.send_error(404)

    def _frame(self, painter: Painter, query: str) -> None:
      try:
        asked = _asked(query)
      except ValueError as error:
        self._answer(400, "text/plain; charset=utf-8", str(error).encode())
        return
      with drawing:
        picture, stages = painter.draw(*asked)
      timing = ", ".join(f"{name};dur={value:.2f}" for name, value in stages.items())
      self._answer(200, "image/jpeg", picture, {"Server-Timing": timing})

    def _answer(self, status: int, kind: str, contents: bytes, more: dict[str, str] | None = None):
      self.send_response(status)
      headers = {"Content-Type": kind, "Content-Length": str(len(contents))}
      headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} | (more or {})
      for name, value in headers.items():
        self.send_header(name, value)
      self.end_headers()
      with contextlib.suppress(ConnectionError):  # the reader has gone
        self.wfile.write(contents)

    def log_message(self, format, *args):  # noqa: A002, the name is the library's
      del format, args

  try:
    return http.server.ThreadingHTTPServer((HOST, port), Handler)
  except OSError as error:
    if error.errno != errno.EADDRINUSE:
      raise
    raise OSError(f"Port {port} is taken; name another with --port, or 0 for any.") from error


def _asked(query: str) -> tuple[float, np.ndarray, int, int, str]:
  """Clip time, pose, height, width and mode of a picture.

  Raises:
    ValueError: something is missing or out of range.
  """
  if len(query) > _LONGEST:
    raise ValueError(f"A question of {len(query)} characters; expected at most {_LONGEST}.")
  names = ("time", "turn", "eye", "width", "height", "mode")
  value = checked.parse(urllib.parse.unquote(query).encode(), "frame")
  fields = checked.fields(value, "frame", names)
  pose = np.eye(4)
  pose[:3, :3] = checked.numbers(fields["turn"], "frame: turn", (9,)).reshape(3, 3)
  pose[:3, 3] = checked.numbers(fields["eye"], "frame: eye", (3,))
  return (
    checked.number(fields["time"], "frame: time", 0, 1),
    cameras.rigid(pose, "frame: turn"),
    checked.integer(fields["height"], "frame: height", 1, _MOST_SIDE),
    checked.integer(fields["width"], "frame: width", 1, _MOST_SIDE),
    MODES[checked.integer(fields["mode"], "frame: mode", 0, len(MODES) - 1)],
  )
