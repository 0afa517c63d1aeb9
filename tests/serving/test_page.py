"""The page in a real browser: a photograph, a path drawn, a scene; what goes wrong is said."""

import httpx
import numpy as np
import pytest

from d4s_jax.formats import trajectories
from tests.browser import needs_browser, open_tab
from tests.serving.test_serve import picture, served  # noqa: F401, a fixture

pytestmark = needs_browser

SAID = "document.getElementById('said').textContent"


@pytest.fixture(scope="module")
def address():
  with served() as found:
    yield found


@pytest.fixture
def tab(address, tmp_path, picture):  # noqa: F811
  (tmp_path / "photo.png").write_bytes(picture)
  with open_tab(f"{address}/", tmp_path, 1100, 900) as found:
    found.wait("document.querySelectorAll('#path option').length > 1")
    choose(found, tmp_path / "photo.png")
    yield found


def choose(tab, file):
  """Gives the page a photograph."""
  root = tab.call("DOM.getDocument")["root"]["nodeId"]
  node = tab.call("DOM.querySelector", nodeId=root, selector="#image")["nodeId"]
  tab.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)


def click(tab, name):
  tab.run(f"document.getElementById('{name}').click()")


def test_a_photograph_and_a_drawn_path_become_a_scene(tab, address, tmp_path):
  tab.wait("document.querySelector('#drop img').naturalWidth === 8")
  left, top, side = tab.run("""(() => { const box =
    document.getElementById("plan").getBoundingClientRect(); return [box.left, box.top, box.width];
  })()""")
  # From the camera's dot, a quarter of the plan's 2 m to the right and half of them ahead.
  tab.drag((left + 0.5 * side, top + 0.85 * side), (left + 0.75 * side, top + 0.35 * side))
  assert tab.run("document.getElementById('path').value") == ""
  tab.run("document.getElementById('prompt').value = 'a cat'")
  click(tab, "go")
  viewer = tab.wait("document.getElementById('viewer').href")
  assert not tab.run("document.getElementById('result').hidden")
  assert httpx.get(viewer).text == "<p>viewer"
  order = httpx.get(viewer.replace("viewer.html", "order.json")).json()
  assert order["prompt"] == "a cat" and order["seed"] == 0 and order["fov"] is None
  (tmp_path / "path.json").write_text(order["trajectory"])
  path = trajectories.read_trajectory(tmp_path / "path.json").world_from_camera
  np.testing.assert_allclose(path[0], np.eye(4), atol=1e-6)
  np.testing.assert_allclose(path[-1, :3, 3], [0.5, 0, 1.0], atol=0.02)
  # It looks at the middle, 2 m ahead.
  gaze = np.array([0, 0, 2]) - path[-1, :3, 3]
  np.testing.assert_allclose(path[-1, :3, 2], gaze / np.linalg.norm(gaze), atol=1e-5)


def test_a_path_by_name_is_drawn_from_above_and_as_the_camera_sees_it(tab):
  """In the server's plan: ahead from the camera's dot, and up in the corner."""

  def green(x, y):
    script = f"Array.from(document.getElementById('plan').getContext('2d').getImageData({x}, {y},"
    red, more, blue, opacity = tab.run(f"{script} 1, 1).data)")
    return opacity == 255 and more > 150 and red < 60 and blue < 150

  above, corner = (240, 300), (414, 390)
  tab.wait("document.getElementById('path').value === 'spiral'")
  assert green(*above) and green(*corner) and not green(300, 300)
  assert tab.run("document.getElementById('rise').disabled")
  tab.run("""(() => { const path = document.getElementById("path"); path.value = "";
    path.dispatchEvent(new Event("change")); })()""")
  assert not green(*above) and not green(*corner)
  assert not tab.run("document.getElementById('rise').disabled")


def test_a_job_is_cancelled_and_a_failure_is_said(tab):
  tab.run("document.getElementById('prompt').value = 'slow'")
  click(tab, "go")
  tab.wait(f"{SAID}.includes(' of 3')")
  click(tab, "stop")
  tab.wait(f"{SAID} === 'cancelled'")
  tab.run("document.getElementById('prompt').value = 'bad'")
  click(tab, "go")
  tab.wait(f"{SAID} === 'bad weather in the result/scene'")
  assert not tab.run("document.getElementById('go').disabled")


def test_a_photograph_can_be_dropped(tab, picture):  # noqa: F811
  tab.run(f"""(() => {{ const files = new DataTransfer();
    const bytes = new Uint8Array({list(picture)});
    files.items.add(new File([bytes], "dropped.png", {{ type: "image/png" }}));
    document.getElementById("drop").dispatchEvent(
      new DragEvent("drop", {{ dataTransfer: files, bubbles: true, cancelable: true }})); }})()""")
  tab.wait("photo.name === 'dropped.png'")
  tab.run("document.getElementById('prompt').value = 'a cat'")
  click(tab, "go")
  assert tab.wait("document.getElementById('viewer').href")


def test_what_is_no_picture_is_named_and_refused(tab, tmp_path):
  (tmp_path / "words.png").write_text("no picture")
  choose(tab, tmp_path / "words.png")
  tab.wait("document.getElementById('drop').textContent.includes('words.png, which can')")
  click(tab, "go")
  tab.wait(f"{SAID} === 'the photograph is no picture'")


def test_a_job_that_the_server_forgot_is_given_up(tab):
  tab.run("busy(true); watch('A'.repeat(16))")
  tab.wait(f'{SAID}.startsWith("The server doesn\'t know this job")')
  assert not tab.run("document.getElementById('go').disabled")
