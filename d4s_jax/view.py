"""Shows a scene in the browser: plays it, and lets you fly through it.

Example:
  python -m d4s_jax.view --scene=scenes/first

Serves one page on this machine alone (127.0.0.1) until Ctrl-C. The page is the same that
`d4s_jax.export --output=scene.html` writes; it needs WebGL2 and nothing of the server afterwards.
"""

import contextlib
import errno
import http.server
import pathlib
import tempfile

from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import page, scene

_SCENE = flags.DEFINE_string("scene", None, "Folder that generate wrote.", required=True)
_PORT = flags.DEFINE_integer("port", 8000, "Where to serve; 0 takes any free one.")
_HOST = "127.0.0.1"


def main(argv: list[str]) -> None:
  """Serves one scene."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    if not 0 <= _PORT.value < 2**16:
      raise ValueError(f"--port is {_PORT.value}; expected 0 to 65535.")
    dynamic, metadata = scene.read_scene(_SCENE.value)
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / "scene.html"
      page.write_page(file, dynamic, metadata)
      contents = file.read_bytes()
    with serve(contents, _PORT.value) as server:
      print(f"Open http://{_HOST}:{server.server_port}/ in a browser; Ctrl-C ends.", flush=True)
      with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def serve(contents: bytes, port: int) -> http.server.ThreadingHTTPServer:
  """A server of one page, on this machine alone.

  Raises:
    OSError: the port is taken.
  """

  class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802, the name is the library's
      # A page elsewhere whose name was made to lead here must not read it (DNS rebinding).
      if self.headers.get("Host", "").partition(":")[0] not in (_HOST, "localhost"):
        self.send_error(403)
        return
      if self.path != "/":
        self.send_error(404)
        return
      self.send_response(200)
      self.send_header("Content-Type", "text/html; charset=utf-8")
      self.send_header("Content-Length", str(len(contents)))
      self.end_headers()
      with contextlib.suppress(ConnectionError):  # the reader has gone
        self.wfile.write(contents)

    def log_message(self, format, *args):  # noqa: A002, the name is the library's
      del format, args

  try:
    return http.server.ThreadingHTTPServer((_HOST, port), Page)
  except OSError as error:
    if error.errno != errno.EADDRINUSE:
      raise
    raise OSError(f"Port {port} is taken; name another with --port, or 0 for any.") from error


if __name__ == "__main__":
  errors.run(main)
