"""Pictures that the server draws, and the page that shows them."""

import dataclasses
import io
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image

from d4s_jax.formats import page, provenance, scene
from d4s_jax.pipeline.drawing import draw
from d4s_jax.viewer import frames, server
from d4s_jax.watermark import frames as marks
from tests.browser import needs_browser, open_tab
from tests.formats.test_page import SIDE, make
from tests.support import serving


@pytest.fixture(scope="module")
def place():
  """A served scene: its address, the scene."""
  dynamic, metadata = make()
  about = page.describe(dynamic, metadata)
  painter = frames.Painter(dynamic, about, None)
  contents = page.fill(about | {"stream": True}).encode()
  with server.serve(contents, 0, painter) as serving:
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://{server.HOST}:{serving.server_port}/", dynamic, metadata
    serving.shutdown()
    thread.join()


def question(pose, **change):
  asked = {"time": 0.6, "turn": pose[:3, :3].ravel().tolist(), "eye": pose[:3, 3].tolist()}
  asked |= {"width": 2 * SIDE, "height": 2 * SIDE, "mode": 0} | change
  return "frame?" + urllib.parse.quote(json.dumps(asked))


def fetch(address):
  with urllib.request.urlopen(address, timeout=60) as answer:
    return answer.read(), answer.headers


def test_a_picture_is_the_renderers_and_its_stages_are_timed(place, tmp_path):
  address, dynamic, metadata = place
  pose = np.asarray(metadata.cameras.world_from_camera)[4]
  contents, headers = fetch(address + question(pose))
  with Image.open(io.BytesIO(contents)) as image:
    found = np.asarray(image, np.float32)
  from d4s_jax.geometry import cameras as pinhole

  view = pinhole.resize(metadata.cameras[np.array([4])], 2 * SIDE, 2 * SIDE)
  want = 255 * np.clip(
    draw(dynamic, view, np.float32([0.6]), "draw", metadata.cameras).image[0], 0, 1
  )
  assert found.shape == want.shape
  # JPEG's own loss.
  assert np.abs(found - want).mean() < 4
  (tmp_path / "streamed.jpg").write_bytes(contents)
  assert provenance.read(tmp_path / "streamed.jpg") == provenance.facts(metadata)
  stages = dict(part.split(";dur=") for part in headers["Server-Timing"].split(", "))
  assert list(stages) == ["deform", "render", "mark", "copy", "encode"]
  assert all(float(x) > 0 for name, x in stages.items() if name != "mark")


@pytest.mark.parametrize("width, height", [(1, 1), (1, 300), (4096, 1), (97, 61), (3, 4096)])
def test_windows_of_any_shape_get_a_picture_to_stretch(place, width, height):
  address, dynamic, metadata = place
  pose = np.asarray(metadata.cameras.world_from_camera)[4]
  contents, _ = fetch(address + question(pose, width=width, height=height))
  with Image.open(io.BytesIO(contents)) as image:
    assert all(64 <= side <= 1280 and side % 64 == 0 for side in image.size)
    columns, rows = image.size
    found = np.asarray(image, np.float32)
  # Stretched to the window, it is the scene through the scene's lens, and holds the square frame.
  focal = metadata.cameras.intrinsics[0, 1, 1] / SIDE * min(height, width)
  lens = [
    [focal * columns / width, 0, columns / 2],
    [0, focal * rows / height, rows / 2],
    [0, 0, 1],
  ]
  camera = dataclasses.replace(
    metadata.cameras[np.array([4])],
    intrinsics=np.array([lens], np.float32),
    height=rows,
    width=columns,
  )
  want = draw(dynamic, camera, np.float32([0.6]), "", metadata.cameras).image[0]
  # JPEG's own loss, of pictures that are all detail.
  error, mirrored = (np.abs(found - 255 * np.clip(x, 0, 1)).mean() for x in (want, want[::-1]))
  assert error < 8 and error < max(0.5 * mirrored, 0.3)


@pytest.mark.parametrize(("width", "height"), [(192, 192), (200, 130)])
def test_pictures_are_marked_in_the_shape_in_which_they_are_shown(width, height):
  dynamic, metadata = make()
  about = page.describe(dynamic, metadata)
  pose = np.asarray(metadata.cameras.world_from_camera)[0]
  found = []
  for key in ("a key", None):
    painter = frames.Painter(dynamic, about, key)
    picture, stages = painter.draw(0.5, pose, height, width, "colour")
    shown = Image.open(io.BytesIO(picture)).resize((width, height))
    shown = np.asarray(shown, np.float32) / 255
    found.append(marks.detect(shown[None], "a key").log10_false)
    assert stages["mark"] >= 0
  assert found[0] < -6 < -3 < found[1]


def test_the_command_streams_until_it_is_interrupted(tmp_path):
  dynamic, metadata = make()
  scene.write_scene(tmp_path / "scene", dynamic, metadata)
  with serving("view", f"--scene={tmp_path / 'scene'}", "--stream") as address:
    assert b'"stream": true' in fetch(f"{address}/")[0]
    contents, headers = fetch(f"{address}/{question(np.eye(4))}")
  with Image.open(io.BytesIO(contents)) as image:
    assert image.size == (2 * SIDE, 2 * SIDE) and np.asarray(image).mean() > 20
  assert headers["Server-Timing"].startswith("deform;dur=")
  with pytest.raises(urllib.error.URLError):
    fetch(address)


def test_the_modes_differ(place):
  address, _, metadata = place
  pose = np.asarray(metadata.cameras.world_from_camera)[0]
  pictures = []
  for mode in range(4):
    with Image.open(io.BytesIO(fetch(address + question(pose, mode=mode))[0])) as image:
      pictures.append(np.asarray(image, np.float32))
  grey = pictures[frames.MODES.index("opacity")]
  assert np.ptp(grey, axis=-1).max() < 8
  for a in range(4):
    for b in range(a):
      assert np.abs(pictures[a] - pictures[b]).mean() > 3


def test_depth_fades_where_the_scene_does(place):
  address, dynamic, metadata = place
  pose = np.asarray(metadata.cameras.world_from_camera)[0]
  asked = question(pose, mode=frames.MODES.index("depth"), width=SIDE, height=SIDE)
  with Image.open(io.BytesIO(fetch(address + asked)[0])) as image:
    light = np.asarray(image.resize((SIDE, SIDE)), np.float32).mean(axis=-1)
  alpha = draw(dynamic, metadata.cameras[np.array([0])], np.float32([0.6]), "").alpha[0]
  thin = (alpha > 0.004) & (alpha < 0.1)
  assert thin.sum() > 100
  assert light[thin].mean() < 0.2 * light[alpha > 0.9].mean()


BAD = {
  "time": ({"time": 2}, "frame: time: 2; expected a finite number from 0 to 1"),
  "mode": ({"mode": 9}, "frame: mode"),
  "size": ({"width": 10**6}, "frame: width"),
  "more": ({"path": "/etc/passwd"}, "unknown 'path'"),
  "scale": ({"turn": [2, 0, 0, 0, 1, 0, 0, 0, 1]}, "not a rotation"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_questions_are_answered_with_what_is_wrong(place, name):
  change, message = BAD[name]
  with pytest.raises(urllib.error.HTTPError, match="400") as error:
    fetch(place[0] + question(np.eye(4), **change))
  assert message in error.value.read().decode()


def test_others_are_kept_out(place):
  for path in ("frame?%7B", "frame?" + "x" * 5000):
    with pytest.raises(urllib.error.HTTPError, match="400"):
      fetch(place[0] + path)
  with pytest.raises(urllib.error.HTTPError, match="404"):
    fetch(place[0] + "../etc/passwd")
  for headers in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
    foreign = urllib.request.Request(place[0] + question(np.eye(4)), headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="403"):
      urllib.request.urlopen(foreign, timeout=10)
  # A page of another port within which this one is shown, and a link to it.
  fetched = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "iframe"}
  with pytest.raises(urllib.error.HTTPError, match="403"):
    urllib.request.urlopen(urllib.request.Request(place[0], headers=fetched), timeout=10)
  fetched = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
  link = urllib.request.Request(place[0], headers=fetched)
  with urllib.request.urlopen(link, timeout=10) as answer:
    assert answer.status == 200


def test_the_stages_are_told_beside_the_papers(place):
  _, dynamic, metadata = place
  about = page.describe(dynamic, metadata)
  painter = frames.Painter(dynamic, about, None)
  lines = [*frames.measure(painter, metadata.cameras, metadata.times, frames=2)]
  assert "512 x 512 pixels on cpu: deform " in lines[0] and "encode" in lines[0]
  assert "the paper reports 6.7 ms" in lines[1]


@needs_browser
def test_the_page_shows_what_the_server_draws(place, tmp_path):
  address, *_ = place
  with open_tab(address, tmp_path) as tab:
    tab.wait("window.first")
    said = tab.run("document.getElementById('about').textContent")
    for stage in ("deform", "render", "encode", "transfer", "show"):
      assert stage in said
    light = """(() => { const c = document.getElementById("canvas");
      const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
      return d.filter((x, i) => i % 4 < 3).reduce((a, b) => a + b, 0) / d.length; })()"""
    assert tab.run(light) > 5
    before = tab.run("probe().frames")
    tab.drag((100, 80), (160, 80))
    tab.wait(f"probe().frames > {before}")


@needs_browser
def test_a_picture_that_is_saved_while_streaming_is_marked_and_says_where_it_comes_from(tmp_path):
  dynamic, metadata = make()
  about = page.describe(dynamic, metadata)
  contents = page.fill(about | {"stream": True}).encode()
  with server.serve(contents, 0, frames.Painter(dynamic, about, "a key")) as serving:
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    with open_tab(f"http://{server.HOST}:{serving.server_port}/", tmp_path) as tab:
      tab.wait("window.first")
      tab.key("KeyP", "p")
      file = tmp_path / "scene.png"
      end = time.monotonic() + 20
      while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    serving.shutdown()
    thread.join()
  shown = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
  assert marks.detect(shown[None], "a key").log10_false < -6
  assert provenance.read(file) == provenance.facts(metadata)
