"""Plug-ins: files, entry points, endpoints; and what they get wrong."""

import dataclasses
import errno
import http.server
import json
import os
import re
import socket
import threading
import zipfile

import numpy as np
import pytest

from d4s_jax import captioning
from d4s_jax.curation import estimates, guard, plugins
from d4s_jax.curation.recording import cameras_of
from d4s_jax.curation.scale import Refused
from d4s_jax.curation.settings import Settings, parse
from d4s_jax.curation.units import Span, Unit
from d4s_jax.data import record as records
from d4s_jax.formats import arrays
from d4s_jax.formats.images import write_image
from tests.curation.rows import assess, estimators, row, tracked
from tests.data.records import FRAMES, scene_record


# Entry points, as a user writes them.
def captioner():
  return lambda clips: [f"{len(clip.images)} frames" for clip in clips]


def broken():
  def estimate(clips):
    if any(clip.frames[0] == 3 for clip in clips):
      raise RuntimeError("no\nmemory")
    return [""] * len(clips)

  return estimate


NAME = __name__


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, "entry_points", sys.modules[NAME])


def bare():
  """A clip whose dataset has no depth."""
  return row(dataclasses.replace(scene_record(0), depth=None))


def test_an_entry_point_is_asked_in_batches():
  rows = [row(scene_record(0)), row(scene_record(1))]
  made = estimators(Settings(plugins={"captions": "entry_points:captioner"}))(rows)
  assert [records.decode(one["record"]).caption for one in made] == [f"{FRAMES} frames"] * 2


def failing(number, times):
  """A captioner whose disk fails on a.mp4 so many times."""
  asked = []

  def estimate(clips):
    if any(clip.unit.endswith("a.mp4") for clip in clips):
      asked.append(1)
      if len(asked) <= times:
        raise ValueError("weights can't be read") from OSError(number, os.strerror(number))
    return ["a cat"] * len(clips)

  return estimate


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_a_plug_in_is_waited_for(monkeypatch, number):
  """And when it stays away, its clip is listed and tried again; the others have theirs."""
  monkeypatch.setattr(guard, "PAUSES", (0, 0, 0))
  settings = Settings(plugins={"captions": "a:b"})
  for times, again in ((4, False), (100, True)):
    ask = failing(number, times)
    monkeypatch.setattr(plugins, "open_estimator", lambda kind, name, ask=ask: ask)
    made = estimators(settings)([row(scene_record(0)), row(scene_record(1), "b.mp4")])
    assert bool(made[0].get("again")) == bool(made[0]["failed"]) == again
    assert not made[1]["failed"] and not made[1].get("again")
  told = assess(made[0], settings)["told"]
  assert told["again"] and told["reason"].endswith("(the same command tries it again)")


def test_a_disk_that_is_full_ends_the_run(monkeypatch):
  ask = failing(errno.ENOSPC, 100)
  monkeypatch.setattr(plugins, "open_estimator", lambda kind, name: ask)
  with pytest.raises(ValueError, match="weights can't be read"):
    estimators(Settings(plugins={"captions": "a:b"}))([row(scene_record(0))])


def test_files_on_a_disk_that_fails_need_not_be_computed_again(tmp_path, monkeypatch):
  def fail(*arguments, **more):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(guard, "PAUSES", ())
  (tmp_path / "videos").mkdir()
  np.savez(tmp_path / "videos" / "a.mp4.npz", relative=np.ones(3))
  monkeypatch.setattr(zipfile, "ZipFile", fail)
  (made,) = estimators(Settings(plugins={"depth": f"files:{tmp_path}"}))([bare()])
  assert made["again"] and "a.mp4.npz cannot be read" in made["failed"]
  assert "see to its disk" in made["failed"] and "compute it again" not in made["failed"]


def test_an_estimator_that_fails_spoils_its_clip_alone():
  other = row(scene_record(1))
  other["span"] = Span(Unit("videos", "/films", "b.mp4"), 0, FRAMES - 1)
  settings = Settings(plugins={"captions": "entry_points:broken"})
  made = estimators(settings)([row(scene_record(0)), other])
  assert made[0]["failed"] == "captions: no memory"
  assert "expected a text" in made[1]["failed"]
  told = assess(made[0], settings)["told"]
  assert told["quarantined"] and not told["kept"] and told["reason"] == "captions: no memory"


def test_a_clip_that_cannot_be_judged_is_quarantined():
  settings = Settings()
  one = row(scene_record(0))
  for damaged in (b"no record", records.encode(thin(scene_record(0)))):
    told = assess({**one, "record": damaged}, settings)["told"]
    assert told["quarantined"] and not told["kept"] and "it can't be judged" in told["reason"]
  assert not assess(one, settings)["told"].get("quarantined")


def thin(record):
  """The same clip, a pixel high."""
  images = [records.to_jpeg(np.zeros((1, record.width, 3), np.uint8)) for _ in record.images]
  return dataclasses.replace(record, images=images, height=1, depth=None, instances=None)


def test_estimated_cameras_leave_nothing_of_the_datasets_own():
  record = scene_record(0)
  assert record.depth is not None
  poses = np.tile(np.eye(4), (len(record.view), 1, 1))
  arrays = {"world_from_camera": poses, "intrinsics": np.asarray(record.intrinsics)}
  made = records.decode(
    estimates._with("cameras", record, arrays, estimates.excerpt(row(record)))["record"]
  )
  assert made.depth is None and made.tracks is None and not made.metric


def test_relative_poses_become_metric_by_precomputed_depth_and_tracks(tmp_path):
  """As RealEstate10K: poses in some unit, no points; a tracker and a metric depth network."""
  unit = 0.3
  truth = scene_record(3)
  pixels, visible, depth = tracked(truth)
  padded = [np.concatenate([x[:3], x]) for x in (depth, pixels, visible)]
  (tmp_path / "videos").mkdir()
  np.savez(tmp_path / "videos" / "a.mp4.npz", depth=padded[0], pixels=padded[1], visible=padded[2])
  poses = np.array(truth.world_from_camera)
  poses[:, :3, 3] /= unit
  relative = dataclasses.replace(
    truth, world_from_camera=poses, metric=False, depth=None, tracks=None
  )
  settings = Settings(
    plugins={"depth": f"files:{tmp_path}", "tracks": f"files:{tmp_path}"},
    limits={x: ":" for x in ("parallax", "flow", "turn", "track_jerk", "reprojection")},
  )
  (made,) = estimators(settings)([row(relative)])
  assert not made["failed"]
  done = assess(made, settings)
  figures = done["told"]["figures"]
  assert abs(figures["scale"] / unit - 1) < 0.02 and figures["scale_variation"] < 0.05
  assert done["told"]["kept"] and done["told"]["record"]["metric"]
  back = records.decode(done["record"])
  np.testing.assert_allclose(
    back.world_from_camera[:, :3, 3], truth.world_from_camera[:, :3, 3], rtol=0.03, atol=0.01
  )
  assert back.tracks is not None and np.asarray(back.tracks.valid).mean() > 0.3
  # Without anything to anchor to there is no scale, and no depth that contradicts the poses.
  alone = Settings(plugins={"depth": f"files:{tmp_path}"}, limits=settings.limits)
  (made,) = estimators(alone)([row(relative)])
  done = assess(made, alone)
  assert (
    "scale" not in done["told"]["figures"] and "no scale by depth maps" in done["told"]["notes"][0]
  )
  assert not done["told"]["record"]["metric"] and records.decode(done["record"]).depth is None


def test_triangulation_leaves_out_what_it_cannot_know():
  from d4s_jax.curation import anchors

  truth = scene_record(3)
  pixels, visible, _ = tracked(truth)
  cameras = cameras_of(truth, slice(None))
  visible[:, 0] = False
  pixels[:, 1] += np.random.default_rng(0).normal(0, 20, pixels[:, 1].shape)
  visible[:, 1] = True
  points, seen = anchors.triangulate(pixels, visible, cameras)
  assert 50 < len(points) == len(seen) < pixels.shape[1] - 1
  with pytest.raises(Refused):
    still = np.repeat(pixels[:1], len(pixels), axis=0)
    none, seen = anchors.triangulate(still, visible, cameras)
    anchors.from_depth_maps(none, seen, cameras, np.ones((FRAMES, 48, 64))).estimate()


@pytest.mark.parametrize(
  "change, message",
  [
    ({"world_from_camera": np.diag([1.0, -1, 1, 1])}, "world_from_camera of frame 0: a mirror"),
    ({"world_from_camera": np.diag([2.0, 2, 2, 1])}, "it is scaled by 2"),
    ({"world_from_camera": np.eye(4) + np.eye(4, k=-3)}, "The matrix is transposed"),
    ({"world_from_camera": np.full((4, 4), np.inf)}, "world_from_camera has NaN or infinite"),
    ({"second": np.diag([1.0, 1, -1, 1])}, "second of frame 0: a mirror"),
    ({"intrinsics": np.diag([0.8, 0.8, 1])}, "intrinsics of frame 0: focal lengths 0.8, 0.8"),
    ({"intrinsics": np.diag([-50.0, 50, 1])}, "focal lengths -50, 50 .*which no camera"),
    ({"second": np.full((4, 4), np.nan)}, ""),
  ],
)
def test_cameras_that_cannot_be_are_refused(change, message):
  one = row(scene_record(0))
  shown = estimates.excerpt(one)
  record = records.decode(one["record"])
  whole = {"world_from_camera": record.world_from_camera, "intrinsics": record.intrinsics}
  count = len(shown.images)
  result = {**whole, **{name: np.tile(x, (count, 1, 1)) for name, x in change.items()}}
  made = estimates._taken("cameras", one, shown, result)
  assert re.search(message, made["failed"]) if message else not made["failed"], made["failed"]


BAD = {
  "size": ({"depth": np.ones((40, 20, 20))}, "depth of shape .17, 20, 20.; expected .17, 48, 64."),
  "NaN": ({"depth": np.full((40, 48, 64), np.nan)}, "depth has NaN"),
  "missing": ({"d": np.ones(3)}, "expected one of depth, relative, disparity"),
  "short": ({"depth": np.ones((5, 48, 64))}, "expected frame 19 to be in it"),
}


@pytest.mark.parametrize("arrays, message", BAD.values(), ids=BAD)
def test_depth_that_does_not_fit_is_refused(arrays, message, tmp_path):
  (tmp_path / "videos").mkdir()
  np.savez(tmp_path / "videos" / "a.mp4.npz", **arrays)
  (made,) = estimators(Settings(plugins={"depth": f"files:{tmp_path}"}))([bare()])
  assert re.search(message, made["failed"]), made["failed"]


@pytest.mark.parametrize(
  "contents, message",
  [
    (b"\xff\xd8\xff\xe0JFIF", "a.mp4.txt is no text; expected a caption in UTF-8"),
    ("ein Haus".encode("utf-16-le"), "a.mp4.txt is no text"),
    (b" \n", "expected a text"),
    ("ein\n Häschen".encode(), ""),
    # The limit of what is read lies within a character.
    (b"x" + "ä".encode() * 5000, ""),
  ],
)
def test_files_of_captions_are_text(tmp_path, contents, message):
  (tmp_path / "videos").mkdir()
  (tmp_path / "videos" / "a.mp4.txt").write_bytes(contents)
  (made,) = estimators(Settings(plugins={"captions": f"files:{tmp_path}"}))([row(scene_record(0))])
  assert message in made["failed"] if message else not made["failed"]
  if not message:
    said = records.decode(made["record"]).caption
    assert contents.decode().startswith(said[:3]) and "\ufffd" not in said and "\n" not in said


def test_archives_of_others_are_bounded_and_run_nothing(tmp_path, monkeypatch):
  (tmp_path / "videos").mkdir()
  path = tmp_path / "videos" / "a.mp4.npz"
  estimator = estimators(Settings(plugins={"depth": f"files:{tmp_path}"}))
  np.savez(path, depth=np.array([{}], dtype=object))
  assert "cannot be read" in estimator([bare()])[0]["failed"]
  np.savez_compressed(path, depth=np.zeros((40, 48, 64)))
  contents = bytearray(path.read_bytes())
  for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
    contents[contents.index(mark) + place] |= 1
  sealed = path.with_name("sealed.npz")
  sealed.write_bytes(contents)
  sealed.replace(path)
  said = estimator([bare()])[0]["failed"]
  assert "a.mp4.npz cannot be read" in said and "is encrypted" in said
  # Of a long film's depth the frames of the clip are read, of which there may be too much.
  np.savez_compressed(path, depth=np.ones((40, 48, 64)))
  needed = FRAMES * 48 * 64 * 8
  monkeypatch.setattr(arrays, "_MOST_READ", needed)
  assert not estimator([bare()])[0]["failed"]
  monkeypatch.setattr(arrays, "_MOST_READ", needed - 1)
  assert f"take {needed} bytes; expected at most {needed - 1}" in estimator([bare()])[0]["failed"]
  path.unlink()
  assert "No " in estimator([bare()])[0]["failed"]
  climbing = bare()
  climbing["span"] = Span(Unit("videos", "/films", "../../secret"), 3, 3 + FRAMES - 1)
  assert "leads out of" in estimator([climbing])[0]["failed"]


@pytest.mark.parametrize(
  "kind, name, message",
  [
    ("depth", "nothing", "expected files:DIR or MODULE:NAME"),
    ("depth", "files:/no/such", "No folder"),
    ("depth", "no_such_module:f", "can't be called"),
    ("depth", "json:loads", "can't be called"),
    ("captions", "ftp://x", "can't be called"),
  ],
)
def test_plug_ins_that_cannot_be_are_refused_at_the_start(kind, name, message):
  with pytest.raises((ValueError, OSError), match=message):
    Settings(plugins={kind: name}).check()


def test_flags_become_settings():
  settings, spread = parse(["side=64", "batch=2", "gpus=0.5"], ["flow=1:"], ["depth=a:b"])
  assert (settings.side, settings.limits, settings.plugins) == (
    64,
    {"flow": "1:"},
    {"depth": "a:b"},
  )
  assert spread == {"batch": 2, "gpus": 0.5}
  for bad in (["sides=1"], ["side"], ["side=x"], ["side=0"], ["side=64", "side=65"]):
    with pytest.raises(ValueError, match="side"):
      parse(bad, [], [])
  with pytest.raises(ValueError, match="Unknown plug-ins"):
    parse([], [], ["poses=a:b"])


@pytest.fixture
def endpoint(monkeypatch):
  """A server that answers as OpenAI's does; `asked` has the requests, `answers` what it says."""
  asked, answers = [], []

  class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
      pass

    def do_GET(self):
      self._say(200 if self.path == "/v1/models" else 404, {"data": [{"id": "qwen"}]})

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      asked.append((body, self.headers["Authorization"]))
      said = answers.pop(0) if answers else "A cat\nturns."
      if isinstance(said, int):
        self._say(said, {"error": "busy"})
      else:
        self._say(200, {"choices": [{"message": {"content": said}}]})

    def _say(self, status, value):
      contents = json.dumps(value).encode()
      self.send_response(status)
      self.send_header("Content-Length", str(len(contents)))
      self.send_header("Location", "/elsewhere")
      self.end_headers()
      self.wfile.write(contents)

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  monkeypatch.setattr(captioning, "_PAUSE", 0)
  monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
  monkeypatch.setenv("OPENAI_API_KEY", "secret")
  yield asked, answers
  server.shutdown()
  thread.join()
  server.server_close()


def test_captions_come_from_an_endpoint(endpoint):
  asked, answers = endpoint
  answers += [503, "A cat\nturns."]
  made = estimators(Settings(plugins={"captions": "endpoint"}))([row(scene_record(0))])
  assert records.decode(made[0]["record"]).caption == "A cat turns."
  body, key = asked[-1]
  assert key == "Bearer secret" and body["model"] == "qwen" and len(asked) == 2
  *pictures, question = body["messages"][0]["content"]
  assert len(pictures) == 6 and question["text"] == captioning.QUESTION
  assert pictures[0]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")


def test_a_prompt_is_written_by_the_endpoint(endpoint, tmp_path):
  write_image(tmp_path / "photo.png", np.random.default_rng(0).random((40, 60, 3)).astype("f4"))
  assert captioning.prompt("a dog", tmp_path / "none.png") == "a dog"
  assert captioning.prompt("auto", tmp_path / "photo.png") == "A cat turns."
  assert endpoint[0][0][0]["messages"][0]["content"][1]["text"] == captioning.ABOUT_A_PICTURE


def test_an_endpoint_that_fails_is_no_fault_of_the_clip(endpoint):
  asked, answers = endpoint
  answers += [503] * 4
  settings = Settings(plugins={"captions": "endpoint"})
  with pytest.raises(ConnectionError, match="HTTP 503.*is the server running"):
    estimators(settings)([row(scene_record(0))])
  answers += [400]
  made = estimators(settings)([row(scene_record(0))])
  assert "refused: HTTP 400" in made[0]["failed"]
  # The key goes to no other place.
  answers += [302]
  made = estimators(settings)([row(scene_record(0))])
  assert "refused: HTTP 302" in made[0]["failed"]
  answers += [""]
  assert "empty caption" in estimators(settings)([row(scene_record(0))])[0]["failed"]


def test_a_server_that_is_not_there_is_told_before_any_work(endpoint, monkeypatch):
  asked, _ = endpoint
  plugins.reach("captions", "endpoint")
  plugins.reach("depth", "http:network")  # no endpoint: a module of this name
  elsewhere = os.environ["OPENAI_BASE_URL"] + "/elsewhere"
  with pytest.raises(ValueError, match="elsewhere/models refused: HTTP 404"):
    plugins.reach("captions", elsewhere)
  monkeypatch.setenv("OPENAI_MODEL", "named")
  plugins.reach("captions", elsewhere)
  assert not asked
  with socket.create_server(("127.0.0.1", 0)) as silent:
    for named in ("", "named"):
      monkeypatch.setenv("OPENAI_MODEL", named)
      monkeypatch.setattr(captioning, "LISTED", 0.1)
      with pytest.raises(
        ConnectionError, match="doesn't answer within 0.1 s; is the server running"
      ):
        plugins.reach("captions", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")


def test_without_an_endpoint_auto_says_what_to_set(monkeypatch):
  monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
  with pytest.raises(ValueError, match="set OPENAI_BASE_URL"):
    captioning.prompt("auto", "photo.png")
  with pytest.raises(ValueError, match="expected http"):
    captioning.Endpoint("file:///etc/passwd")
