"""The page draws what the renderer draws, in a real browser."""

import io
import json
import re
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from d4s_jax.formats import page, provenance
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry import trajectories
from d4s_jax.geometry.cameras import intrinsics_from_fov
from d4s_jax.pipeline.drawing import draw
from d4s_jax.types import Cameras, DynamicGaussians
from d4s_jax.viewer import frames
from tests.benchmarks.export import scene
from tests.browser import BROWSER, FLAGS, needs_browser

SIDE, COUNT, FRAMES = 96, 300, 5
LARGE, STREAMED = 3 * SIDE, 128
COLOUR, DEPTH, OPACITY, MOTION = range(4)


def make(degree=1):
  """A cloud of Gaussians that move, turn and grow, and a path past it."""
  numbers = np.random.default_rng(0)
  means = numbers.uniform((-1, -1, 1.5), (1, 1, 5), (COUNT, 3))
  turns = numbers.normal(size=(COUNT, 4))
  deformation = np.zeros((FRAMES, COUNT, 10))
  way, clock = numbers.normal(0, 0.3, (COUNT, 3)), np.linspace(0, 1, FRAMES)
  deformation[..., :3] = clock[:, None, None] * way
  spin = numbers.normal(0, 0.3, (COUNT, 4)) + (1, 0, 0, 0)
  deformation[..., 3:7] = np.where(clock[:, None, None] > 0.4, spin, (1, 0, 0, 0))
  deformation[..., 3:7] /= np.linalg.norm(deformation[..., 3:7], axis=-1, keepdims=True)
  deformation[..., 7:] = 0.5 * clock[:, None, None] * numbers.normal(size=(COUNT, 3))
  dynamic = DynamicGaussians(
    means=means.astype("f4"),
    quaternions=(turns / np.linalg.norm(turns, axis=1, keepdims=True)).astype("f4"),
    raw_scales=numbers.normal(0, 0.5, (COUNT, 3)).astype("f4"),
    footprints=numbers.uniform(0.03, 0.1, COUNT).astype("f4"),
    opacities=np.where(np.arange(COUNT) % 10, numbers.uniform(0.05, 1, COUNT), 0).astype("f4"),
    harmonics=numbers.normal(0, 0.6, (COUNT, (degree + 1) ** 2, 3)).astype("f4"),
    times=clock.astype("f4"),
    deformation=deformation.astype("f4"),
  )
  poses = trajectories.trajectory("spiral", FRAMES, distance=0.5, pivot=3.0)
  lens = np.asarray(intrinsics_from_fov(60.0, SIDE, SIDE), "f4")
  cameras = Cameras(
    world_from_camera=poses.astype("f4"),
    intrinsics=np.tile(lens, (FRAMES, 1, 1)),
    height=SIDE,
    width=SIDE,
  )
  prompt = "</script><script>window.failed = 'escaped'</script>"
  return dynamic, SceneMetadata(
    cameras=cameras, times=clock.astype("f4"), prompt=prompt, package_version="0"
  )


def pictures(folder, html, shots, painter):
  """What the page draws at (time, camera, mode, side), as a browser sees it, of 0 to 255."""
  calls = ", ".join(
    f"show({time}, {camera}, {side}, {side}, {mode})" for time, camera, mode, side in shots
  )
  probe = f"""<script>(async () => {{
    while (!window.ready && !window.failed) await new Promise((done) => setTimeout(done, 20));
    const element = document.createElement("pre");
    element.id = "result";
    element.textContent = JSON.stringify(window.failed ? {{ failed: window.failed }} : [{calls}]);
    document.body.replaceChildren(element);
  }})()</script></body>"""
  file = folder / "probe.html"
  file.write_text(html.replace("</body>", probe))
  command = [
    *(BROWSER, *FLAGS),
    *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--dump-dom"),
  ]
  done = subprocess.run(
    [*command, f"{file.as_uri()}#{painter}"],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
  assert found, done.stderr[-2000:]
  result = json.loads(found.group(1))
  assert isinstance(result, list), result
  sides = [side for *_, side in shots]
  return [np.array(x, float).reshape(n, n, 4)[..., :3] for x, n in zip(result, sides)]


@pytest.fixture(scope="module", params=["webgl", "plain"])
def shown(request, tmp_path_factory):
  """Pictures of one browser's run, by WebGL2 and by the page's own loops."""
  folder = tmp_path_factory.mktemp("page")
  dynamic, metadata = make()
  page.write_page(folder / "scene.html", dynamic, metadata)
  shots = [(0.0, 0, COLOUR), (0.6, 4, COLOUR), (1.0, 2, COLOUR), (0.6, 4, COLOUR, LARGE)]
  shots += [(0.6, 4, OPACITY), (0.0, 0, DEPTH, STREAMED), (0.0, 0, MOTION), (1.0, 0, MOTION)]
  sized = [(*shot, SIDE)[:4] for shot in shots]
  html = (folder / "scene.html").read_text()
  return dynamic, metadata, dict(zip(shots, pictures(folder, html, sized, request.param)))


def ours(dynamic, metadata, time, camera):
  rendering = draw(dynamic, metadata.cameras[np.array([camera])], np.float32([time]), "draw")
  return jax.tree.map(lambda x: np.asarray(x)[0], rendering)


@needs_browser
@pytest.mark.parametrize("time, camera", [(0.0, 0), (0.6, 4), (1.0, 2)])
def test_the_page_draws_what_the_renderer_draws(shown, time, camera):
  dynamic, metadata, found = shown
  want = 255 * np.clip(ours(dynamic, metadata, time, camera).image, 0, 1)
  assert want.mean() > 30
  error = np.abs(found[time, camera, COLOUR] - want)
  # Half floats, rounded deformation, and 16 bits of depth to sort by.
  assert error.mean() < 1.0
  assert np.quantile(error, 0.999) < 8


@needs_browser
def test_a_larger_picture_is_the_renderers_too(shown):
  dynamic, metadata, found = shown
  camera = pinhole.resize(metadata.cameras[np.array([4])], LARGE, LARGE)
  drawn = draw(dynamic, camera, np.float32([0.6]), "", metadata.cameras)
  error = np.abs(found[0.6, 4, COLOUR, LARGE] - 255 * np.clip(drawn.image[0], 0, 1))
  assert error.mean() < 1.0
  # And it is not what pixels of that size would see.
  sharp = draw(dynamic, camera, np.float32([0.6]), "").image[0]
  other = np.abs(found[0.6, 4, COLOUR, LARGE] - 255 * np.clip(sharp, 0, 1))
  assert other.mean() > 2 * error.mean()


@needs_browser
def test_the_slider_moves_the_scene(shown):
  *_, found = shown
  assert np.abs(found[0.0, 0, MOTION] - found[1.0, 0, MOTION]).mean() > 5
  # Nothing has moved yet: grey, as far as there is something.
  still = found[0.0, 0, MOTION]
  assert np.ptp(still, axis=-1).max() <= 1


@needs_browser
def test_opacity_is_shown(shown):
  dynamic, metadata, found = shown
  alpha = 255 * ours(dynamic, metadata, 0.6, 4).alpha
  np.testing.assert_allclose(found[0.6, 4, OPACITY][..., 0], alpha, atol=4)


@needs_browser
def test_depth_has_the_colours_of_streamed_pictures(shown):
  dynamic, metadata, found = shown
  painter = frames.Painter(dynamic, page.describe(dynamic, metadata), None)
  pose = np.asarray(metadata.cameras.world_from_camera)[0]
  contents, _ = painter.draw(0.0, pose, STREAMED, STREAMED, "depth")
  with Image.open(io.BytesIO(contents)) as image:
    want = np.asarray(image, np.float64)
  assert want.shape == (STREAMED, STREAMED, 3)
  # JPEG's own loss.
  error = np.abs(found[0.0, 0, DEPTH, STREAMED] - want)
  assert want.mean() > 30 and error.mean() < 4


def test_a_page_is_small_closed_and_the_same_every_time(tmp_path):
  dynamic, metadata = make(degree=0)
  for name in ("a.html", "b.html"):
    page.write_page(tmp_path / name, dynamic, metadata)
  text = (tmp_path / "a.html").read_text()
  assert text == (tmp_path / "b.html").read_text()
  assert "default-src 'none'" in text
  # Nothing is fetched, and the prompt ends no element; the kind of source is named by an address.
  assert not re.search(r"https?://|src=|import ", text.replace(provenance.SOURCE_TYPE, ""))
  assert "<script>window.failed" not in text


def test_what_can_not_be_shown_is_refused(tmp_path):
  dynamic, metadata = make()
  for change, message in (
    ({"harmonics": np.zeros((COUNT, 9, 3), "f4")}, "9 harmonics a Gaussian; a page shows 1 or 4"),
    ({"opacities": np.zeros(COUNT, "f4")}, "All Gaussians have opacity 0"),
    (
      {"deformation": np.full((FRAMES, COUNT, 10), np.nan, "f4")},
      "deformation of the Gaussians hold NaN",
    ),
  ):
    broken = DynamicGaussians(**(vars(dynamic) | change))
    with pytest.raises(ValueError, match=message):
      page.write_page(tmp_path / "scene.html", broken, metadata)
  assert not list(tmp_path.iterdir())


def test_fifty_thousand_gaussians_at_49_times_take_less_than_15_megabytes(tmp_path):
  dynamic, metadata = scene(50_000, 49)
  page.write_page(tmp_path / "scene.html", dynamic, metadata)
  assert (tmp_path / "scene.html").stat().st_size < 15e6


def test_a_prompt_can_not_multiply_the_page():
  written = page.fill({"title": "/*ARRAYS*/" * 100}, "QUJD" * 1000)
  assert written.count("QUJD" * 1000) == 1 and written.count("/*ARRAYS*/") == 100
