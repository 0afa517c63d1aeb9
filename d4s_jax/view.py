"""Shows a scene in the browser: plays it, and lets you fly through it.

Examples:
  python -m d4s_jax.view --scene=scenes/first
  python -m d4s_jax.view --scene=scenes/first --stream

Serves one page on this machine alone (127.0.0.1) until Ctrl-C. The page is the same that
`d4s_jax.export --output=scene.html` writes; it needs WebGL2 and nothing of the server afterwards.
With --stream the server draws, with the backend that `render` has here, and the page shows
pictures: for scenes too large for the browser. What each stage takes is printed, and shown.

In the page: drag to go around (F: to look around), right drag or two fingers to shift, wheel or
pinch to go nearer; W A S D Q E fly, arrows turn; space plays; R rides along a path; T and K make a
path of key frames, which "Save path" saves for --trajectory; 1 to 4 show colour, depth, opacity,
motion; P takes a picture, V a video, which are marked invisibly as generated, as the server's
pictures are, unless --nowatermark.
"""

import contextlib
import pathlib
import tempfile

import numpy as np
from absl import flags, logging

from d4s_jax import errors
from d4s_jax.formats import page, scene
from d4s_jax.pipeline import marking
from d4s_jax.viewer import frames, server

_SCENE = flags.DEFINE_string(
  "scene", None, "Folder that generate wrote, or .safetensors of export.", required=True
)
_PORT = flags.DEFINE_integer("port", 8000, "Where to serve; 0 takes any free one.")
_STREAM = flags.DEFINE_boolean("stream", False, "Draw here, not in the browser.")
_WATERMARK = flags.DEFINE_boolean("watermark", True, "Mark pictures and videos invisibly.")


def main(argv: list[str]) -> None:
  """Serves one scene."""
  del argv
  logging.set_verbosity(logging.ERROR)
  with errors.one_line():
    if not 0 <= _PORT.value < 2**16:
      raise ValueError(f"--port is {_PORT.value}; expected 0 to 65535.")
    dynamic, metadata = scene.read_scene(_SCENE.value)
    key = marking.key(_WATERMARK.value)
    if _STREAM.value:
      about = page.describe(dynamic, metadata)
      painter = frames.Painter(dynamic, about, key)
      for line in frames.measure(painter, metadata.cameras, np.asarray(metadata.times)):
        print(line, flush=True)
      contents = page.fill(about | {"stream": True}).encode()
    else:
      painter = None
      with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "scene.html"
        page.write_page(file, dynamic, metadata, marking.levels(key))
        contents = file.read_bytes()
    with server.serve(contents, _PORT.value, painter) as serving:
      address = f"http://{server.HOST}:{serving.server_port}/"
      print(f"Open {address} in a browser; Ctrl-C ends.", flush=True)
      with contextlib.suppress(KeyboardInterrupt):
        serving.serve_forever()


if __name__ == "__main__":
  errors.run(main)
