"""What the viewer takes in headless Chromium, which draws without a GPU, with 50,000 Gaussians.

python tests/benchmarks/viewer.py [--minutes 3]

First pictures count from the navigation to the page until a picture has been drawn, of the exported
file and of the page that `d4s_jax.view` serves. Rates are of pictures drawn while the clip plays:
by the page's own loops, which it takes where WebGL2 is drawn without a GPU, and by that WebGL2.
--minutes plays for so long by either and prints memory every half minute. The last lines are of
--stream: each stage of pictures that the server draws along the path, beside the paper's.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from d4s_jax.formats import page  # noqa: E402
from d4s_jax.viewer import frames, server  # noqa: E402
from d4s_jax.watermark import frames as marks  # noqa: E402
from d4s_jax.watermark import keys  # noqa: E402
from tests.benchmarks.export import scene  # noqa: E402
from tests.browser import open_tab, resident  # noqa: E402

MEGABYTE = 1e6
OPENINGS = 5
PLAY = "document.getElementById('play').click()"


@contextlib.contextmanager
def served(contents, painter=None):
  """The address of a page."""
  with server.serve(contents, 0, painter) as serving:
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    try:
      yield f"http://{server.HOST}:{serving.server_port}/"
    finally:
      serving.shutdown()
      thread.join()


def first_pictures(tab, address):
  """Seconds from navigation to the first picture, of some openings."""
  found = []
  for _ in range(OPENINGS):
    tab.call("Page.navigate", url="about:blank")
    tab.wait("location.href === 'about:blank'")
    tab.call("Page.navigate", url=address)
    found.append(tab.wait("window.first", 120) / 1000)
  return found


def rate(tab, seconds=10.0):
  """Pictures a second while the clip plays, and how large they are."""
  tab.run(PLAY)
  time.sleep(3)
  before, start = tab.run("probe().frames"), time.monotonic()
  time.sleep(seconds)
  found, passed = tab.run("probe()"), time.monotonic() - start
  size = tab.run("""(({ width, clientWidth, clientHeight }) =>
    [width, clientWidth, clientHeight])(document.getElementById("canvas"))""")
  tab.run(PLAY)
  shown = (found["frames"] - before) / passed
  return f"{shown:.1f} a second, {size[0]} columns of a picture of {size[1]} x {size[2]}"


def play(tab, minutes, folder):
  """Prints memory while the clip plays and the camera turns."""
  tab.run(PLAY)
  start = shown = time.monotonic()
  while True:
    now = time.monotonic()
    if now >= shown:
      kinds = resident(folder)
      parts = f"script {tab.memory() / MEGABYTE:.1f} MB, page's process"
      shares = (kinds.get("renderer", 0), kinds.get("gpu-process", 0), sum(kinds.values()))
      parts += " {:.0f}, GPU's {:.0f}, all {:.0f}".format(*(x / MEGABYTE for x in shares))
      print(f"after {now - start:4.0f} s: {parts}", flush=True)
      shown += 30
    if now - start > 60 * minutes:
      break
    tab.drag((100, 80), (130, 80))
    tab.drag((130, 80), (100, 80))
  tab.run(PLAY)


def stream(dynamic, metadata, folder):
  """Prints the stages of pictures that the server draws."""
  about = page.describe(dynamic, metadata)
  painter = frames.Painter(dynamic, about, keys.PUBLIC)
  for line in frames.measure(painter, metadata.cameras, np.asarray(metadata.times)):
    print(f"streamed, {line}")
  contents = page.fill(about | {"stream": True}).encode()
  with served(contents, painter) as address, open_tab(address, folder) as tab:
    tab.wait("window.first", 120)
    tab.run(PLAY)
    time.sleep(5)
    found = [tab.run("probe().took") for _ in range(20) if time.sleep(0.3) is None]
    print(f"in the browser: {np.median(found):.0f} ms from question to picture; the last one:")
    print(f"  {tab.run('probe().stages')}")


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--gaussians", type=int, default=50_000)
  parser.add_argument("--frames", type=int, default=49)
  parser.add_argument("--minutes", type=float, default=0)
  options = parser.parse_args()
  dynamic, metadata = scene(options.gaussians, options.frames)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    file = folder / "scene.html"
    page.write_page(file, dynamic, metadata, marks.levels(keys.PUBLIC))
    print(f"page of {options.gaussians} Gaussians x {options.frames}:", end=" ")
    print(f"{file.stat().st_size / MEGABYTE:.1f} MB")
    tall = open_tab("about:blank", folder, height=639)
    with tall as tab, served(file.read_bytes()) as address:
      for kind, place in (("from disk", file.as_uri()), ("served", address)):
        taken = first_pictures(tab, place)
        shown = f"{np.median(taken):.2f} s, {min(taken):.2f} to {max(taken):.2f}"
        print(f"first picture, {kind}: {shown} of {OPENINGS}", flush=True)
      print(f"plays by the page's own loops: {rate(tab)}", flush=True)
      if options.minutes:
        play(tab, options.minutes, folder)
      tab.call("Page.navigate", url="about:blank")
      tab.call("Page.navigate", url=f"{address}#webgl")
      tab.wait("window.first", 120)
      print(f"plays by WebGL2 without a GPU: {rate(tab)}", flush=True)
      if options.minutes:
        play(tab, options.minutes, folder)
    stream(dynamic, metadata, folder)


if __name__ == "__main__":
  main()
