"""The server with a model behind it, and the command."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile

import httpx
import numpy as np
import pytest
from PIL import Image

from d4s_jax import errors
from d4s_jax.formats import images
from d4s_jax.formats.scene import read_scene
from d4s_jax.geometry import trajectories
from d4s_jax.models.system import System
from d4s_jax.pipeline import detection, progress
from d4s_jax.serving import workshop
from d4s_jax.training import inference
from d4s_jax.watermark import keys
from tests.formats.test_page import BROWSER, needs_browser
from tests.serving.test_serve import ended, events, order, running
from tests.support import random_params, run_command, serving, small_config, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A small run of random parameters."""
  folder = tmp_path_factory.mktemp("workshop") / "run"
  config = small_config()
  write_run(folder, config, random_params(System.build(config.model.to_dict())))
  return folder


@pytest.fixture(scope="module")
def trained(run):
  return inference.open_checkpoint(str(run), progress.timed)


@pytest.fixture(scope="module")
def offered(trained):
  return workshop.offer(trained, keys.PUBLIC)


@pytest.fixture(scope="module")
def address(offered):
  """Serves it."""
  with running(offered) as found:
    yield found


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
  path = tmp_path_factory.mktemp("picture") / "photo.png"
  images.write_image(path, np.random.default_rng(0).random((40, 30, 3), dtype=np.float32))
  return path.read_bytes()


def test_a_photograph_becomes_a_scene(address, picture, tmp_path):
  poses = np.tile(np.eye(4), (3, 1, 1))
  poses[:, 0, 3] = [0, 0.1, 0.3]
  path = {"version": 1, "height": 1, "width": 1}
  path["frames"] = [{"world_from_camera": pose.tolist()} for pose in poses]
  answer = order(address, picture, prompt="a cat", seed="3", trajectory=json.dumps(path))
  told = events(address, answer.json()["id"])
  sampled = [x["done"] for _, x in told if x["what"].startswith("sample") and x["total"]]
  assert sampled == [0, 1, 2, 3]
  status = ended(address, answer.json()["id"])
  assert status["state"] == "done"
  made = {name: httpx.get(address + url).content for name, url in status["files"].items()}
  assert set(made) == {
    *("scene.safetensors", "scene.json", "video.mp4", "depth.mp4", "preview.png"),
    *("scene.zip", "viewer.html"),
  }
  (tmp_path / "scene.zip").write_bytes(made["scene.zip"])
  shutil.unpack_archive(tmp_path / "scene.zip", tmp_path)
  _, metadata = read_scene(tmp_path / "scene")
  assert (metadata.prompt, metadata.seed) == ("a cat", 3)
  way = np.asarray(metadata.cameras.world_from_camera)[:, 0, 3]
  np.testing.assert_allclose(way[::2], [0, 0.1, 0.3], atol=1e-6)
  (tmp_path / "video.mp4").write_bytes(made["video.mp4"])
  assert detection.detect(tmp_path / "video.mp4", keys.PUBLIC).log10_false < -6
  assert b"<canvas" in made["viewer.html"]


def test_what_looks_wrong_with_a_camera_file_is_answered(address, picture):
  path = {"version": 1, "height": 1, "width": 1}
  path["frames"] = [{"world_from_camera": np.eye(4).tolist()}] * 3
  answer = order(address, picture, trajectory=json.dumps(path), prompt="a cat").json()
  assert answer["warnings"] == ["WARNING: trajectory: the camera stands still."]
  assert ended(address, answer["id"])["warnings"] == answer["warnings"]
  assert order(address, picture, prompt="a cat").json()["warnings"] == []
  (warning,) = order(address, picture, prompt="a cat " * 20).json()["warnings"]
  assert "its end is not read" in warning


def test_the_command_serves_until_it_is_interrupted(run, picture):
  with serving("serve", f"--checkpoint={run}") as address:
    assert "run, step 7" in httpx.get(f"{address}/about").text
    status = ended(address, order(address, picture).json()["id"])
    assert status["state"] == "done"
    assert b"<canvas" in httpx.get(address + status["files"]["viewer.html"]).content
  with pytest.raises(httpx.ConnectError):
    httpx.get(address)


@pytest.mark.parametrize("key", [keys.PUBLIC, None])
def test_the_viewer_marks_what_is_saved_in_it_if_the_rest_is_marked(
  key, trained, monkeypatch, tmp_path
):
  said = []

  def make(self, order, folder):
    folder.mkdir()
    for name in workshop._SCENE:
      (folder / name).touch()

  class Export:
    def __init__(self, output, watermark=True):
      said.append((output.name, watermark))

    def write(self, *_):
      pass

  monkeypatch.setattr(workshop, "_warm", lambda *_: None)
  monkeypatch.setattr(workshop.orders.Workshop, "make", make)
  monkeypatch.setattr(workshop.scene, "read_scene", lambda _: ())
  monkeypatch.setattr(workshop.exports, "Export", Export)
  anything = object.__new__(workshop.orders.Order)
  workshop.offer(trained, key).make(anything, tmp_path)
  assert said == [("viewer.html", key is not None)]


@pytest.mark.parametrize(
  "trajectory, message",
  [
    ("orbit:degres=40", "Trajectory 'orbit' has no 'degres'; expected degrees, radius."),
    ("orbit:degrees=1e9", "with degrees=1e+09; expected -3600 to 3600, not 0"),
    ("orbit:degrees", "'degrees'; expected orbit:degrees=NUMBER,radius=NUMBER"),
    ("orbti:degrees=40", "Unknown trajectory 'orbti:degrees=40'; expected one of spiral,"),
    ("0,0,0,0,0,0,0,1", "line 1: numbers with ',' between them; expected spaces"),
  ],
)
def test_a_path_with_a_mistake_is_refused_at_once(address, picture, trajectory, message):
  answer = order(address, picture, trajectory=trajectory)
  assert answer.status_code == 422
  assert message in answer.json()["detail"]


def test_a_field_of_view_is_refused_as_generate_does(address, picture):
  answer = order(address, picture, fov="1e-9")
  assert answer.status_code == 422
  assert answer.json()["detail"].startswith("Field of view 1e-09 degrees; expected 1 to 179.")


def test_paths_come_with_where_they_lead(address):
  paths = httpx.get(f"{address}/about").json()["trajectories"]
  assert list(paths) == list(trajectories.TRAJECTORIES)
  np.testing.assert_allclose(paths["up"][-1], [0, -0.5, 0], atol=1e-6)
  np.testing.assert_allclose(paths["orbit"][len(paths["orbit"]) // 2], [0, 0, 4], atol=1e-6)


def test_the_same_order_makes_the_same_scene(address, picture):
  made = []
  for seed in ("5", "5", "6"):
    status = ended(address, order(address, picture, seed=seed).json()["id"])
    made.append(httpx.get(address + status["files"]["scene.safetensors"]).content)
  assert made[0] == made[1] != made[2]


REFUSED = {
  "trajectory": ({"trajectory": "sprial"}, "the trajectory"),
  "a file of the server": ({"trajectory": "/etc/passwd"}, "the trajectory"),
  "no JSON": ({"trajectory": "{"}, "the trajectory: not valid JSON"),
}


@pytest.mark.parametrize("fields, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_made_is_refused_at_once(fields, message, address, picture):
  answer = order(address, picture, **fields)
  assert answer.status_code == 422
  assert message.removeprefix("the ") in answer.json()["detail"]


def test_pictures_of_too_many_pixels_are_refused(address, tmp_path):
  header = b"P5 8000 4000 255\n"
  (tmp_path / "large.pgm").write_bytes(header + bytes(8000 * 4000))
  large = subprocess.run(
    [sys.executable, "-c", _COMPRESS, tmp_path / "large.pgm", tmp_path / "large.png"], check=True
  )
  del large
  contents = (tmp_path / "large.png").read_bytes()
  assert len(contents) < 1_000_000
  answer = order(address, contents)
  assert answer.status_code == 422
  assert "8000 x 4000 pixels; expected at most 24000000" in answer.json()["detail"]


_COMPRESS = "import sys; from PIL import Image; Image.open(sys.argv[1]).save(sys.argv[2])"


PIECES = (b"", b"", b"\0", b"\xff\xff\xff\xff", b"-1", b"NaN", b"1e308", b"1e-320", b"null", b"[]")


def damaged(contents, rng):
  """With a few bytes, or numbers of a text, lost, changed or put in; sometimes it ends early."""
  for _ in range(rng.integers(1, 4)):
    numbers = [match.span() for match in re.finditer(rb"[-.e\d]+", contents)]
    start = rng.integers(len(contents) + 1)
    end = start + rng.integers(4)
    if numbers and rng.random() < 0.5:
      start, end = numbers[rng.integers(len(numbers))]
    piece = rng.bytes(3) if rng.random() < 0.5 else PIECES[rng.integers(len(PIECES))]
    contents = contents[:start] + piece + contents[end:]
  return contents[: rng.integers(len(contents) + 1)] if rng.random() < 0.1 else contents


def uploads():
  """Photographs of all kinds, and camera files of all programs."""
  pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
  photos = {}
  for kind in images.FORMATS:
    pixels.save(contents := io.BytesIO(), kind)
    photos[kind] = contents.getvalue()
  path = [np.eye(4) + 0.1 * i * np.eye(4)[:, :1] @ np.eye(4)[3:] for i in range(4)]
  lens = {"fl_x": 500, "fl_y": 500, "cx": 320, "cy": 240, "w": 640, "h": 480}
  ours = [{"world_from_camera": x.tolist(), "fov": 60, "time": i} for i, x in enumerate(path)]
  theirs = [{"file_path": f"{i}.png", "transform_matrix": x.tolist()} for i, x in enumerate(path)]
  rows = [" ".join(str(number) for number in x[:3].ravel()) for x in path]
  cameras = {
    "ours": json.dumps({"version": 1, "height": 3, "width": 4, "frames": ours}),
    "nerfstudio": json.dumps({**lens, "frames": theirs}),
    "KITTI": "\n".join(rows),
    "TUM": "\n".join(f"{i} {x[0, 3]} 0 0 0 0 0 1" for i, x in enumerate(path)),
    "RealEstate10K": "\n".join(f"{i} 0.9 1.2 0.5 0.5 0 0 {row}" for i, row in enumerate(rows)),
  }
  return photos, {name: text.encode() for name, text in cameras.items()}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of TIFF
@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_uploads_are_refused_with_a_reason_or_make_an_order(count, offered):
  """Over HTTP, by what reads strangers' files; nothing is made of them."""
  taken = []

  def take(*given):
    taken.append(offered.take(*given))
    return taken[-1]

  def make(order, folder):
    """Nothing."""

  rng, (photos, cameras) = np.random.default_rng(count), uploads()
  refused = 0
  with (
    running(dataclasses.replace(offered, take=take, make=make, waiting=10_000)) as address,
    httpx.Client(base_url=address) as client,
  ):

    def send(photo, trajectory=b"spiral"):
      files = {"image": photo, "trajectory": (None, trajectory)}
      answer = client.post("/jobs", files=files)
      assert answer.status_code in (202, 422), (answer.text, photo, trajectory)
      if answer.status_code == 422:
        told = answer.json()["detail"]
        assert told and "\n" not in told and tempfile.gettempdir() not in told
      return answer.status_code == 422

    for contents in photos.values():
      assert not send(contents)
      refused += sum(send(damaged(contents, rng)) for _ in range(count))
    for contents in cameras.values():
      assert not send(photos["PNG"], contents)
      refused += sum(send(photos["PNG"], damaged(contents, rng)) for _ in range(count))
    assert client.get("/about").status_code == 200
  assert refused > count and len(taken) > len(photos) + len(cameras)
  for one in taken:
    for array in (one.image, one.times, one.cameras.intrinsics):
      assert np.isfinite(array).all()
    assert np.isfinite(one.cameras.world_from_camera).all()


@needs_browser
def test_the_page_speaks_with_its_server(address, tmp_path):
  command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
  command += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path}", f"{address}/"]
  page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
  assert "run, step 7: 5 frames of 16 x 16 pixels, 3 steps." in page
  assert '<option value="orbit">' in page


TOKENS = {
  "none": ("", "is not set"),
  "short": ("abc", "is too short"),
  "no ASCII": (20 * "\u00e9", "holds more than letters"),
}


@pytest.mark.parametrize("token, message", TOKENS.values(), ids=TOKENS)
def test_other_addresses_need_a_token(token, message, monkeypatch, capsys):
  monkeypatch.setenv("D4S_JAX_TOKEN", token)
  if not token:
    monkeypatch.delenv("D4S_JAX_TOKEN")
  with pytest.raises(SystemExit) as stop:
    run_command("serve", "--host=0.0.0.0")
  assert stop.value.code == errors.REFUSED
  assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(monkeypatch, capsys, address):
  monkeypatch.setattr(workshop, "offer", lambda *_, **__: pytest.fail("long work for nothing"))
  with pytest.raises(SystemExit):
    run_command("serve", f"--port={address.rpartition(':')[2]}")
  assert "is taken" in capsys.readouterr().err
