"""The page in a real browser, by pointer, keys, touch and files; memory; key frames."""

import base64
import io
import json
import time

import av
import numpy as np
import pytest
from PIL import Image

from d4s_jax.formats import page, provenance, trajectories
from d4s_jax.geometry import poses
from d4s_jax.pipeline import shot
from d4s_jax.watermark import frames as marks
from tests.browser import needs_browser, open_tab, resident
from tests.formats.test_page import make

KEY = "a key"
PAINTERS = {"plain": "Plotter", "webgl": "Painter"}

pytestmark = needs_browser
# WebGL2 without a GPU takes its time: what is its own is driven by default, the rest in slow tests.
both = pytest.mark.parametrize("tab", ["plain", "webgl"], indirect=True)


@pytest.fixture(scope="module", params=["plain", pytest.param("webgl", marks=pytest.mark.slow)])
def tab(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("viewer")
  dynamic, metadata = make()
  page.write_page(folder / "scene.html", dynamic, metadata, marks.levels(KEY))
  address = f"{(folder / 'scene.html').as_uri()}#{request.param}"
  size = (900, 600) if request.param == "plain" else (500, 400)
  with open_tab(address, folder, *size) as found:
    found.wait("window.ready && window.first")
    assert found.run("painter.constructor.name") == PAINTERS[request.param]
    found.folder = folder
    yield found


@pytest.fixture(autouse=True)
def home(tab):
  """Every test begins at the first camera, at time 0, as Colour, standing."""
  state = tab.run("probe()")
  for name in ("ride", "fly", "edit"):
    if state[name]:
      tab.run(f"document.getElementById('{name}').click()")
  if state["playing"]:
    tab.run("document.getElementById('play').click()")
  tab.run("document.getElementById('home').click()")
  slide(tab, 0)


def slide(tab, value):
  script = f"""(() => {{ const slider = document.getElementById("time"); slider.value = {value};
    slider.dispatchEvent(new Event("input")); }})()"""
  tab.run(script)


def looked(tab):
  """Where the camera is, once what was pressed has been drawn."""
  tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
  state = tab.run("probe()")
  return np.array(state["eye"]), np.reshape(state["turn"], (3, 3)), state


def test_the_first_frame_comes_soon_and_says_what_it_is(tab):
  # Two seconds on a machine that has nothing else to do: tests/benchmarks/viewer.py prints it.
  assert tab.run("window.first") < 15_000
  said = tab.run("document.getElementById('about').textContent")
  assert "270 Gaussians" in said and "ms a frame" in said


def test_a_drag_goes_around_and_flying_it_looks_around(tab):
  start, _, _ = looked(tab)
  pivot = tab.run("description.pivot")
  tab.drag((100, 80), (160, 80))
  eye, turn, _ = looked(tab)
  assert np.linalg.norm(eye - start) > 0.1
  # It still looks at the same point.
  np.testing.assert_allclose(eye + pivot * turn[:, 2], start + [0, 0, pivot], atol=1e-3)
  tab.run("document.getElementById('home').click()")
  tab.key("KeyF", "f")
  tab.drag((100, 80), (160, 80))
  eye, turn, _ = looked(tab)
  np.testing.assert_allclose(eye, start, atol=1e-6)
  assert abs(turn[0, 2]) > 0.1


def test_a_right_drag_shifts_and_the_wheel_goes_nearer(tab):
  tab.drag((100, 80), (140, 80), button="right")
  eye, turn, _ = looked(tab)
  assert eye[0] < -0.1 and abs(eye[2]) < 1e-6
  np.testing.assert_allclose(turn, np.eye(3), atol=1e-6)
  tab.call("Input.dispatchMouseEvent", type="mouseWheel", x=100, y=80, deltaX=0, deltaY=-120)
  tab.wait("probe().eye[2] > 0.1")


def test_keys_fly_turn_play_and_choose(tab):
  tab.key("KeyW", "w", 0.3)
  assert looked(tab)[0][2] > 0.005
  tab.key("ArrowRight", "ArrowRight", 0.3)
  assert looked(tab)[1][0, 2] > 0.005
  tab.key("Digit4", "4")
  assert looked(tab)[2]["mode"] == 3
  tab.key("Digit1", "1")
  tab.key("Space", " ")
  tab.wait("probe().playing && probe().time > 0.1")
  tab.key("Space", " ")
  assert not looked(tab)[2]["playing"]


def test_without_the_loop_the_clip_stops_at_its_end_and_the_speed_is_that_of_time(tab):
  def plays(speed, start):
    """Seconds of the clip that go by in two of the clock; the clip is made a minute long."""
    tab.run(f"""(() => {{ const x = document.getElementById("speed"); x.value = "{speed}";
      x.dispatchEvent(new Event("change")); }})()""")
    slide(tab, start)
    tab.key("Space", " ")
    passed = tab.run("""new Promise((done) => { let from, first;
      const look = (now) => { from ??= (first = probe().time, now);
        if (now - from < 2000) requestAnimationFrame(look);
        else done((probe().time - first) * description.seconds / ((now - from) / 1000)); };
      requestAnimationFrame(look); })""")
    tab.key("Space", " ")
    return passed

  seconds = tab.run("description.seconds")
  tab.run("description.seconds = 60")
  try:
    # A third: pictures of a slow machine are far apart.
    np.testing.assert_allclose([plays(0.5, 0), plays(2, 0)], [0.5, 2], rtol=0.33)
    tab.key("KeyL", "l")
    slide(tab, 0.99)
    tab.key("Space", " ")
    tab.wait("!probe().playing && probe().time === 1")
    tab.key("KeyL", "l")
    slide(tab, 0.99)
    tab.key("Space", " ")
    tab.wait("probe().playing && probe().time < 0.5")
  finally:
    tab.run(f"description.seconds = {seconds}")
    plays(1, 0)


def test_fingers_go_around_and_pinch(tab):
  start, _, _ = looked(tab)
  tab.touch("touchStart", (100, 80))
  tab.touch("touchMove", (130, 80))
  tab.touch("touchMove", (160, 80))
  tab.touch("touchEnd")
  assert np.linalg.norm(looked(tab)[0] - start) > 0.1
  tab.run("document.getElementById('home').click()")
  tab.touch("touchStart", (140, 80), (180, 80))
  for spread in (30, 45, 60):
    tab.touch("touchMove", (160 - spread, 80), (160 + spread, 80))
  tab.touch("touchEnd")
  assert looked(tab)[0][2] > 0.2


@both
def test_on_a_telephone_everything_is_there_and_large_enough_for_fingers(tab):
  tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
  tab.call(
    "Emulation.setDeviceMetricsOverride",
    **{"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
  )
  try:
    tab.key("KeyK", "k")
    tab.wait("innerWidth === 390 && document.querySelectorAll('#marks button').length === 1")
    boxes = tab.run("""Array.from(document.querySelectorAll("#bar button, #bar select"), (x) => {
      const { left, top, right, bottom } = x.getBoundingClientRect();
      return [left, top, right, bottom]; })""")
    left, top, right, bottom = np.transpose(boxes)
    assert len(boxes) == 15
    assert min(left) >= 0 and max(right) <= 390 and max(bottom) <= 844
    assert min(bottom - top) >= 40
    # Nothing of the frame is under the buttons.
    canvas, bar = tab.run("""["canvas", "bar"].map((id) => {
      const { top, bottom } = document.getElementById(id).getBoundingClientRect();
      return [top, bottom]; })""")
    assert canvas[0] == 0 and canvas[1] == bar[0] and bar[1] == 844
    tab.wait(f"document.getElementById('canvas').height === {round(2 * canvas[1])}")
    tab.key("KeyX", "x")
  finally:
    tab.call("Emulation.clearDeviceMetricsOverride")
    tab.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_a_long_prompt_leaves_the_picture_free_and_can_be_read_on_white(tab):
  title = "document.getElementById('title')"
  before = tab.run(f"{title}.textContent")
  assert "window.failed" in before
  tab.run(f"{title}.textContent = 'A cat looks around. '.repeat(100) + 'A'.repeat(2000)")
  left, right, high, ground = tab.run("""(() => { const about = document.getElementById("about");
    const { left, right, height } = about.getBoundingClientRect();
    return [left, right, height, getComputedStyle(about).backgroundColor]; })()""")
  tab.run(f"{title}.textContent = {json.dumps(before)}")
  assert high < 70 and 0 <= left < right <= tab.run("innerWidth")
  assert float(ground.removeprefix("rgba(0, 0, 0, ").rstrip(")")) > 0.5


def test_a_file_that_is_no_path_is_named_until_another_is_opened(tab):
  def opened(name, text):
    (tab.folder / name).write_text(text)
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    tab.call("DOM.setFileInputFiles", files=[str(tab.folder / name)], nodeId=node)

  wrong = "document.getElementById('wrong').textContent"
  opened("words.json", "no path")
  tab.key("Space", " ")
  tab.wait(f"{wrong}.startsWith('words.json is no path')")
  frames = tab.run("probe().frames")
  tab.wait(f"probe().frames > {frames + 2}")
  assert tab.run(wrong)
  opened("good.json", json.dumps({"frames": [{"world_from_camera": np.eye(4).tolist()}]}))
  tab.wait(f"!{wrong} && probe().keys === 1")
  tab.key("Space", " ")
  slide(tab, 0)
  tab.key("KeyX", "x")
  assert looked(tab)[2]["keys"] == 0


def test_a_window_of_any_shape_shows_the_whole_frame(tab):
  """By width where it is narrower than the frame, by height where it is wider."""
  tab.run("description.view = 1.5")
  try:
    sizes = {"frame": (150, 100), "portrait": (150, 240), "landscape": (260, 100)}
    shown = {
      name: np.reshape(tab.run(f"show(0.5, 0, {width}, {height})"), (height, width, 4))
      for name, (width, height) in sizes.items()
    }
    for name, inside in (("portrait", np.s_[70:170]), ("landscape", np.s_[:, 55:205])):
      error = np.abs(shown[name][inside] - shown["frame"])
      assert np.quantile(error, 0.99) <= 2
    # And more above and below.
    assert shown["portrait"][..., :3].sum() > 1.02 * shown["frame"][..., :3].sum()
  finally:
    tab.run("description.view = 1; fixed = null; dirty = true")


def test_the_ride_is_the_path_of_the_scene(tab):
  _, metadata = make()
  tab.key("KeyR", "r")
  slide(tab, 0.6)
  tab.wait("Math.abs(probe().time - 0.6) < 1e-6")
  time.sleep(0.2)
  eye, turn, _ = looked(tab)
  want = poses.interpolate(metadata.cameras.world_from_camera, metadata.times, np.float32([0.6]))[0]
  np.testing.assert_allclose(eye, want[:3, 3], atol=1e-5)
  np.testing.assert_allclose(turn, want[:3, :3], atol=1e-5)


def test_key_frames_are_saved_and_render_scene_goes_the_same_way(tab, capsys):
  for moment, move in ((0.2, "KeyW"), (0.5, "KeyD"), (0.9, "KeyE")):
    slide(tab, moment)
    tab.key(move, move[-1].lower(), 0.25)
    tab.drag((100, 80), (130, 90))
    tab.key("KeyK", "k")
  assert looked(tab)[2]["keys"] == 3
  assert tab.run("document.querySelectorAll('#marks button').length") == 3
  slide(tab, 0.5)
  tab.key("KeyX", "x")
  tab.key("KeyK", "k")
  assert looked(tab)[2]["keys"] == 3
  tab.run("document.getElementById('store').click()")
  file = tab.folder / "path.json"
  for _ in range(100):
    if file.exists():
      break
    time.sleep(0.05)
  found = trajectories.read_trajectory(file, in_scene=True)
  assert len(found.times) == 5  # With the ends, where it stands still.
  path = shot.camera_path(str(file), 11, in_scene=True)
  assert "WARNING" not in capsys.readouterr().err
  for moment, pose in zip(path.times, path.world_from_camera):
    here = tab.run(f"rideAt({moment})")
    np.testing.assert_allclose(here["eye"], pose[:3, 3], atol=2e-5)
    np.testing.assert_allclose(np.reshape(here["turn"], (3, 3)), pose[:3, :3], atol=2e-5)
  # And back into the page.
  text = json.dumps(file.read_text())
  tab.run(f"readPath({text})")
  assert looked(tab)[2]["keys"] == 5 and looked(tab)[2]["ride"]
  assert "no pose" in tab.run("""(() => { try { readPath('{"frames": [{"world_from_camera":' +
    '[[1],[1],[1],[1]]}]}'); } catch (error) { return error.message; } })()""")


@both
def test_pictures_and_videos_are_saved(tab):
  looked(tab)
  tab.wait("probe().share === 1")
  address = tab.run("document.getElementById('canvas').toDataURL()")
  screen = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
  tab.key("KeyP", "p")
  tab.key("KeyV", "v")
  tab.run("new Promise((done) => setTimeout(done, 3000))")
  tab.key("KeyV", "v")
  for _ in range(100):
    names = {file.name: file.stat().st_size for file in tab.folder.iterdir()}
    if "scene.png" in names and "scene.webm" in names:
      break
    time.sleep(0.05)
  # Both are marked; what is on the screen is not.
  with av.open(tab.folder / "scene.webm") as container:
    shown = [x.to_ndarray(format="rgb24") for x in container.decode(video=0)][-8:]
  for pictures in ([np.asarray(Image.open(tab.folder / "scene.png").convert("RGB"))], shown):
    pictures = [np.asarray(x, np.float32) / 255 for x in pictures]
    assert pictures and marks.detect(pictures, KEY).log10_false < -6
    assert marks.detect(pictures, "another").log10_false > -3
  # And say where they come from, the picture in a sound chunk: Pillow checks its sum.
  _, metadata = make()
  for name in ("scene.png", "scene.webm"):
    assert provenance.read(tab.folder / name) == provenance.facts(metadata)
  # What is no film that the page knows stays as it is.
  for size in (0, 100, 5000):
    assert tab.run(f"tagged(new Blob([new Uint8Array({size})])).then((film) => film.size)") == size
  saved = np.asarray(Image.open(tab.folder / "scene.png").convert("RGB"), np.float64)
  change = np.sqrt(np.mean((saved - screen) ** 2))
  assert 0.5 < change < 1.4


@both
def test_a_slow_machine_draws_what_moves_smaller_and_what_rests_whole(tab):
  width = "document.getElementById('canvas').width"
  whole = tab.wait(f"probe().share === 1 && {width}")
  slow = "Object.defineProperty(painter, 'took', { get: () => 1000, set() {}, configurable: true })"
  tab.run(slow)
  tab.key("Space", " ")
  tab.wait("probe().share === 0.5")
  assert abs(tab.run(width) - whole / 2) <= 1
  tab.wait("document.getElementById('about').textContent.includes('at 50% of the size')")
  tab.key("Space", " ")
  tab.wait("probe().share === 1")
  assert tab.run(width) == whole
  tab.run("delete painter.took; painter.took = 1")


def grown(tab, seconds: float) -> float:
  """Bytes by which memory grows while the scene plays and the camera turns."""
  tab.key("Space", " ")
  before = tab.memory()
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    tab.drag((100, 80), (130, 80))
    tab.drag((130, 80), (100, 80))
  after = tab.memory()
  tab.key("Space", " ")
  return after - before


@both
def test_memory_stays_flat(tab):
  grown(tab, 1)
  assert grown(tab, 3) < 300_000


@pytest.mark.parametrize("tab", ["webgl"], indirect=True)
def test_a_lost_context_is_told_and_drawn_anew_when_it_is_back(tab):
  def picture():
    found = np.array(tab.run("show(0.5, 0, 120, 80)"))
    tab.run("fixed = null; dirty = true")
    return found

  before, frames = picture(), tab.run("probe().frames")
  wrong = "document.getElementById('wrong').textContent"
  tab.run("window.taken = painter.gl.getExtension('WEBGL_lose_context'); taken.loseContext()")
  tab.wait(f"{wrong}.startsWith('The browser took the graphics away')")
  tab.run("taken.restoreContext()")
  tab.wait(f"!{wrong} && probe().frames > {frames}")
  assert before.std() > 20
  np.testing.assert_array_equal(picture(), before)


@pytest.mark.parametrize("tab", ["webgl"], indirect=True)
def test_a_window_that_changes_its_size_leaves_no_textures(tab):
  """They lie in another process, which the script's memory says nothing of."""

  def resize(times):
    try:
      for width in [400, 402] * (times // 2):
        tab.run(f"fixed = true; painter.draw(0, path[0], {width}, 400, 0); painter.gl.finish()")
    finally:
      tab.run("fixed = null; dirty = true")
    return resident(tab.folder)["gpu-process"]

  before = resize(20)
  # A texture of one size is 1.3 MB.
  assert resize(60) - before < 20e6


@pytest.mark.slow
def test_memory_stays_flat_over_minutes(tab):
  grown(tab, 5)
  assert grown(tab, 180) < 500_000
