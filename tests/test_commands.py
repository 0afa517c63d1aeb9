"""Bad input to the commands: one clear line, exit status 1, nothing saved is lost."""

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import jax.numpy as jnp
import numpy as np
import plyfile
import pytest

from d4s_jax import errors
from d4s_jax.formats import atomic
from d4s_jax.formats.images import write_image
from d4s_jax.formats.scene import SceneMetadata, read_scene, write_scene
from d4s_jax.geometry.deformation import identity
from d4s_jax.models.system import System
from d4s_jax.pipeline import Pipeline, shot
from d4s_jax.types import DynamicGaussians
from tests.support import (
  ROOT,
  full_disk,
  random_params,
  run_command,
  serving,
  small_config,
  write_run,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A trained run, to be copied before it is damaged."""
  folder = tmp_path_factory.mktemp("commands") / "run"
  config = small_config()
  write_run(folder, config, random_params(System.build(config.model.to_dict())))
  return folder


@pytest.fixture
def place(tmp_path):
  """A folder with a photograph, a scene, and things that are neither."""
  photo = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
  write_image(tmp_path / "photo.png", photo)
  contents = (tmp_path / "photo.png").read_bytes()
  (tmp_path / "truncated.png").write_bytes(contents[: len(contents) // 2])
  (tmp_path / "text.png").write_text("a thousand words")
  (tmp_path / "file").write_text("mine")
  (tmp_path / "papers").mkdir()
  (tmp_path / "papers" / "thesis.txt").write_text("mine")
  _, cameras = shot.photograph(photo, shot.camera_path("up", 2), 16, 16)
  count = 8
  dynamic = DynamicGaussians(
    means=jnp.tile(jnp.array([0.0, 0.0, 3.0]), (count, 1)),
    quaternions=jnp.tile(jnp.array([1.0, 0, 0, 0]), (count, 1)),
    raw_scales=jnp.zeros((count, 3)),
    footprints=jnp.ones(count),
    opacities=jnp.full(count, 0.9),
    harmonics=jnp.ones((count, 1, 3)),
    times=jnp.array([0.0, 1.0]),
    deformation=identity(2, count),
  )
  metadata = SceneMetadata(
    cameras=cameras, times=jnp.array([0.0, 1.0]), prompt="", package_version="0"
  )
  write_scene(tmp_path / "scene", dynamic, metadata)
  return tmp_path


def refused(capsys, command, *arguments):
  """The one line that a command leaves on its way out."""
  with pytest.raises(SystemExit) as stop:
    run_command(command, *arguments)
  assert stop.value.code == 1
  lines = capsys.readouterr().err.strip().splitlines()
  assert lines[-1].startswith("error: ")
  assert not any("Traceback" in line for line in lines)
  return lines[-1]


# What differs from a good call, and what the line says. {} is the folder of `place`.
GENERATE = {
  "missing image": ("--image={}/none.jpg", "No image at .*none.jpg"),
  "truncated image": ("--image={}/truncated.png", "truncated.png cannot be read as an image"),
  "no image": ("--image={}/text.png", "text.png cannot be read as an image"),
  "folder as image": ("--image={}/papers", "papers cannot be read as an image"),
  "unknown trajectory": ("--trajectory=sprial", "Unknown trajectory 'sprial'; expected one of"),
  "broken trajectory": ("--trajectory={}/file", "file"),
  "distance": ("--trajectory=up:distance=-1", "distance=-1; expected a positive number"),
  "field of view": ("--fov=nan", "Field of view nan"),
  "output is a file": ("--output={}/file", "file exists and is not a scene"),
  "output below a file": ("--output={}/file/scene", "file is a file"),
  "output too long": ("--output={}/" + 250 * "a", "File name too long; expected a place"),
  "output here": ("--output=.", r"\. is the folder you are in; name a new one"),
  "larger than a scene": ("--height=80000", "16 x 80000 pixels; expected sides of at most 65536"),
  "larger than memory": (
    "--frames=6250001",
    "6250001 pictures of 16 x 16 pixels; expected at most",
  ),
  "output holds other things": ("--output={}/papers", "papers exists and is not a scene"),
  "no run": ("--checkpoint={}/none", "none holds no trained model .*Train one first"),
  "prompt": ("--prompt=caf\udce9", "is not text"),
  "negative prompt": ("--negative_prompt=caf\udce9", "is not text"),
  "steps": ("--steps=0", "0 steps"),
  "guidance": ("--guidance=more", "Unknown guidance 'more'"),
  "scale": ("--scale=nan", "scale nan"),
  "seed": ("--seed=-1", "seed is -1"),
}


@pytest.mark.parametrize("argument, message", GENERATE.values(), ids=GENERATE)
def test_generate_refuses(argument, message, place, run, capsys):
  good = ["--image={}/photo.png", "--trajectory=spiral", "--output={}/new", f"--checkpoint={run}"]
  arguments = [text.format(place) for text in [*good, argument]]
  line = refused(capsys, "generate", *arguments)
  assert re.search(message, line), line
  assert not (place / "new").exists()
  assert (place / "file").read_text() == (place / "papers" / "thesis.txt").read_text() == "mine"


def _truncate(folder):
  for path in (folder / "checkpoints").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit(path, old, new):
  path.write_text(path.read_text().replace(old, new))


DAMAGES = {
  "truncated": (_truncate, "checkpoints/7 can't be read"),
  "no steps": (
    lambda folder: shutil.rmtree(folder / "checkpoints" / "7"),
    "no complete checkpoint",
  ),
  "no folder": (lambda folder: shutil.rmtree(folder / "checkpoints"), "holds no checkpoints yet"),
  "no configuration": (
    lambda folder: (folder / "config.json").unlink(),
    "has checkpoints but no config.json",
  ),
  "no run": (lambda folder: (folder / "config.json").write_text("{}"), "clip.frames.*are missing"),
  "no model": (
    lambda folder: _edit(folder / "config.json", '"heads"', '"hands"'),
    "model section of .* describes no model",
  ),
  "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_generate_refuses_a_damaged_checkpoint(damage, message, place, run, capsys):
  copy = place / "copy"
  shutil.copytree(run, copy)
  damage(copy)
  arguments = [f"--image={place}/photo.png", "--trajectory=up", f"--checkpoint={copy}"]
  assert re.search(message, refused(capsys, "generate", *arguments, f"--output={place}/new"))


RENDER = {
  "no scene": ("--scene={}/papers", "No scene at .*papers"),
  "unknown trajectory": ("--trajectory=loop", "Unknown trajectory 'loop'"),
  "frames": ("--frames=0", "0 frames"),
  "height": ("--height=0", "height 0"),
  "size": ("--height=100000", "Pictures of 100000 x 100000 pixels; expected sides of at most"),
  "rate": ("--fps=nan", "nan frames per second"),
  "slow rate": ("--fps=1e-5", "1e-05 frames per second"),
  "suffix": ("--output={}/new.avi", "ends in .mp4"),
  "output is a folder": ("--output={}/scene", "scene; expected a name|is a folder"),
  "output below a file": ("--output={}/file/new.mp4", "file is a file"),
}


@pytest.mark.parametrize("argument, message", RENDER.values(), ids=RENDER)
def test_render_scene_refuses(argument, message, place, capsys):
  good = ["--scene={}/scene", "--trajectory=up", "--output={}/new.mp4"]
  line = refused(capsys, "render_scene", *(text.format(place) for text in [*good, argument]))
  assert re.search(message, line), line
  assert not (place / "new.mp4").exists()


def test_render_scene_refuses_a_truncated_scene(place, capsys):
  arrays = place / "scene" / "scene.safetensors"
  arrays.write_bytes(arrays.read_bytes()[:-40])
  line = refused(
    capsys, "render_scene", f"--scene={place}/scene", "--trajectory=up", f"--output={place}/a.mp4"
  )
  assert "scene.safetensors is truncated" in line


EXPORT = {
  "no scene": (["--scene={}/papers"], "No scene at .*papers"),
  "suffix": (["--output={}/new.fbx"], "new.fbx; expected a name that ends in .html, .safetensors"),
  "open suffix": (["--output={}/new.png"], r"several formats; add --format=depth\|image"),
  "format": (["--format=mesh", "--output={}/new.spz"], "ends in .obj or .ply or .glb"),
  "time": (["--time=1.5"], "--time is 1.5; expected a clip time from 0 to 1"),
  "no time": (["--time=nan"], "--time is nan"),
  "time and frames": (["--time=0.5", "--frames=3"], "give one of the two"),
  "frames": (["--frames=0", "--output={}/frames/a.ply"], "--frames is 0; expected 1 to 10000"),
  "frames beside others": (["--frames=3", "--output={}/papers/a.ply"], "papers exists; expected a"),
  "page of a moment": (
    ["--output={}/a.html", "--time=0"],
    "html holds the whole clip; leave --time and --frames out",
  ),
  "no mark to leave out": (["--nowatermark"], "ply gets no mark from export .*leave --nowatermark"),
  "output is a folder": (["--output={}/folder.ply"], "folder.ply is a folder"),
  "output below a file": (["--output={}/file/new.ply"], "file is a file"),
}


@pytest.mark.parametrize("arguments, message", EXPORT.values(), ids=EXPORT)
def test_export_refuses(arguments, message, place, capsys):
  (place / "folder.ply").mkdir()
  before = sorted(place.rglob("*"))
  good = ["--scene={}/scene", "--output={}/new.ply"]
  line = refused(capsys, "export", *(text.format(place) for text in [*good, *arguments]))
  assert re.search(message, line), line
  assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("suffix", ["ply", "compressed.ply", "splat", "spz", "sog", "glb", "exr"])
def test_export_writes_one_moment(suffix, place, capsys):
  run_command("export", f"--scene={place}/scene", f"--output={place}/new.{suffix}", "--time=0.5")
  assert (place / f"new.{suffix}").stat().st_size > 50
  assert f"new.{suffix}" in capsys.readouterr().out


def test_export_writes_a_page_and_view_serves_it_to_this_machine_alone(place):
  run_command("export", f"--scene={place}/scene", f"--output={place}/new.html")
  with serving("view", f"--scene={place}/scene") as address:
    with urllib.request.urlopen(address, timeout=10) as answer:
      # A file of its own also says where it comes from.
      page = re.sub(r'<meta name="d4s_jax"[^>]*>', "", (place / "new.html").read_text())
      assert answer.read().decode() == page
    with pytest.raises(urllib.error.HTTPError, match="404"):
      urllib.request.urlopen(f"{address}/../etc/passwd", timeout=10)
    foreign = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
      urllib.request.urlopen(foreign, timeout=10)
    # Another server can't have the port.
    done = start("view", f"--scene={place}/scene", f"--port={address.rpartition(':')[2]}")
    assert done.returncode == 1 and "is taken; name another with --port" in done.stderr


def test_export_writes_numbered_moments(place):
  dynamic, metadata = read_scene(place / "scene")
  moving = np.array(dynamic.deformation)
  moving[1, :, 0] = 2.0
  write_scene(place / "moving", dataclasses.replace(dynamic, deformation=moving), metadata)
  run_command("export", f"--scene={place}/moving", f"--output={place}/frames/a.ply", "--frames=3")
  files = sorted((place / "frames").iterdir())
  assert [file.name for file in files] == ["a_0001.ply", "a_0002.ply", "a_0003.ply"]
  # Half way at the time between the two that are stored.
  for file, shift in zip(files, (0, 1, 2)):
    np.testing.assert_allclose(plyfile.PlyData.read(file)["vertex"]["x"], shift, atol=1e-6)


def test_a_full_disk_leaves_no_part_of_a_sequence(place, capsys):
  with full_disk(500):
    line = refused(
      capsys, "export", f"--scene={place}/scene", f"--output={place}/frames/a.ply", "--frames=3"
    )
  assert "File too large" in line
  assert not (place / "frames").exists()
  assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_full_disk_leaves_the_old_video(place, capsys):
  video = place / "video.mp4"
  video.write_bytes(b"old")
  arguments = [f"--scene={place}/scene", "--trajectory=up", f"--output={video}", "--frames=4"]
  with full_disk(1000):
    line = refused(capsys, "render_scene", *arguments, "--height=32")
  assert "File too large" in line
  assert video.read_bytes() == b"old"
  assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_full_disk_leaves_the_old_scene(place, run, capsys):
  before = {path.name: path.read_bytes() for path in (place / "scene").iterdir()}
  arguments = [f"--image={place}/photo.png", "--trajectory=up", f"--checkpoint={run}"]
  with full_disk(2000):
    line = refused(capsys, "generate", *arguments, f"--output={place}/scene", "--steps=1")
  assert "File too large" in line
  assert {path.name: path.read_bytes() for path in (place / "scene").iterdir()} == before


def start(command, *arguments):
  """A command as a user starts it."""
  return subprocess.run(
    [sys.executable, "-m", f"d4s_jax.{command}", *arguments],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_one_line_and_status_1_from_the_shell(place):
  done = start(
    "generate", f"--image={place}/photo.png", "--trajectory=up", f"--output={place}/a",
    f"--checkpoint={place}/none",
  )  # fmt: skip
  assert done.returncode == 1
  assert done.stdout == ""
  assert len(done.stderr.strip().splitlines()) == 1
  assert done.stderr.startswith("error: ") and "python -m d4s_jax.train" in done.stderr


@pytest.mark.parametrize(
  "command", ["generate", "render_scene", "export", "view", "cameras", "curate"]
)
def test_help_shows_an_example(command):
  text = start(command, "--help").stdout
  # In a line of its own, with what it takes.
  assert re.search(rf"^  python -m d4s_jax\.{command} \S", text, re.M)


CAMERAS = {
  "nothing": ([], "''; expected check FILE, or convert FILE OUTPUT"),
  "a word too few": (["convert", "{}/path.txt"], "expected check FILE, or convert FILE OUTPUT"),
  "no file": (["check", "{}/none.txt"], "No camera path at .*none.txt"),
  "no cameras": (["check", "{}/file"], "file"),
  "an open suffix": (
    ["convert", "{}/path.txt", "{}/new.txt"],
    r"--format=realestate10k\|tum\|kitti",
  ),
  "another suffix": (
    ["convert", "{}/path.txt", "{}/new.txt", "--format=transforms"],
    "new.txt with --format=transforms; expected .json",
  ),
  "no lens": (["convert", "{}/path.txt", "{}/new", "--format=colmap"], "add --fov=DEGREES"),
}


@pytest.mark.parametrize("arguments, message", CAMERAS.values(), ids=CAMERAS)
def test_cameras_refuses(arguments, message, place, capsys):
  (place / "path.txt").write_text("0 0 0 0 0 0 0 1\n1 0 0 1 0 0 0 1\n")
  before = sorted(place.rglob("*"))
  line = refused(capsys, "cameras", *(text.format(place) for text in arguments))
  assert re.search(message, line), line
  assert sorted(place.rglob("*")) == before


def test_no_memory_is_one_line(capsys):
  with pytest.raises(SystemExit), errors.one_line():
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 26 bytes.\nA stack dump")
  line = capsys.readouterr().err
  assert line.startswith("error: Out of memory (RESOURCE_EXHAUSTED") and "dump" not in line
  with pytest.raises(RuntimeError, match="^else$"), errors.one_line():
    raise RuntimeError("else")


def test_a_scene_for_which_there_is_no_memory_is_one_line(place, capsys, monkeypatch):
  # XLA's own error, of an array of 32 TiB.
  monkeypatch.setattr(Pipeline, "sample", lambda *order: jnp.zeros((2**23, 2**20)))
  arguments = [f"--image={place / 'photo.png'}", "--trajectory=up", f"--output={place / 'new'}"]
  line = refused(capsys, "generate", *arguments)
  assert re.fullmatch(
    r"error: Out of memory \(RESOURCE_EXHAUSTED: .*35184372088832 bytes\.\); ask for less"
    " \\(fewer frames or views, smaller pictures or batches\\), or use more devices\\.",
    line,
  ), line
  assert not (place / "new").exists()


_MAKES_A_FOLDER = """
import pathlib, sys, time
from d4s_jax import errors
from d4s_jax.formats import atomic

def main(argv):
  with errors.one_line(), atomic.new_folder(pathlib.Path(argv[0]).parent / "new"):
    print("begun", flush=True)
    time.sleep(60)

sys.argv = [sys.argv[1]]
errors.run(main)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, monkeypatch):
  process = _begin_a_folder(tmp_path)
  (left,) = tmp_path.glob(".new.*")
  (left / "large").write_bytes(b"1" * 1000)
  monkeypatch.setattr(atomic, "_YOUNG", 0.0)
  folders = tmp_path / "other", tmp_path / ".new.123", tmp_path / ".new.0123abcd.old"
  for folder in folders:
    folder.mkdir()
  with pytest.raises(KeyError), atomic.new_folder(tmp_path / "new"):
    raise KeyError
  # It is still at work.
  assert (left / "large").exists()
  process.kill()
  process.communicate(timeout=30)
  assert left.exists()
  with atomic.new_folder(tmp_path / "new") as folder:
    assert not left.exists()
    (folder / "x").write_text("x")
  assert (tmp_path / "new" / "x").exists() and all(folder.exists() for folder in folders)


def test_the_second_of_two_that_make_one_folder_says_so_and_leaves_nothing(tmp_path):
  with pytest.raises(FileExistsError, match="new exists; expected a new name"):
    with atomic.new_folder(tmp_path / "new") as second:
      (second / "x").write_text("2")
      with atomic.new_folder(tmp_path / "new") as first:
        (first / "x").write_text("1")
  assert [path.name for path in tmp_path.iterdir()] == ["new"]
  assert (tmp_path / "new" / "x").read_text() == "1"


def _begin_a_folder(place):
  (place / "script.py").write_text(_MAKES_A_FOLDER)
  process = subprocess.Popen(
    [sys.executable, place / "script.py", place / "x"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None and process.stdout.readline() == "begun\n"
  return process


def test_a_stop_by_signal_leaves_no_temporary_folder(tmp_path):
  process = _begin_a_folder(tmp_path)
  process.terminate()
  _, said = process.communicate(timeout=30)
  assert process.returncode == 130 and said.strip() == "error: interrupted"
  assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.parametrize(
  "error, status, line",
  [
    ("ValueError('no')", errors.REFUSED, "error: no"),
    ("FileNotFoundError('no')", errors.REFUSED, "error: no"),
    ("ConnectionError('gone')", errors.UNREACHABLE, "error: gone"),
    ("TimeoutError('slow')", errors.UNREACHABLE, "error: slow"),
    ("OSError(116, 'stale')", errors.UNREACHABLE, "error: [Errno 116] stale"),
    ("ValueError('UNAVAILABLE: later')", errors.UNREACHABLE, "error: UNAVAILABLE: later"),
    ("ValueError('no') from OSError(5, 'EIO')", errors.UNREACHABLE, "error: no"),
    ("RuntimeError('a bug')", errors.CRASHED, "RuntimeError: a bug"),
  ],
)
def test_the_status_says_whether_to_try_again(error, status, line, tmp_path):
  # Python's teardown is left out: it crashes while a program of XLA's still runs.
  script = f"""
import atexit
import gc
import os

from d4s_jax import errors

atexit.register(os.abort)

def main(argv):
  assert gc.get_freeze_count(), "the collector looks through all that was imported"
  with errors.one_line():
    raise {error}

errors.run(main)
"""
  (tmp_path / "script.py").write_text(script)
  for shown in "", "1":
    done = subprocess.run(
      [sys.executable, tmp_path / "script.py"],
      env=os.environ | {"PYTHONPATH": str(ROOT), errors.TRACEBACK: shown},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == line
    assert ("Traceback" in done.stderr) == bool(shown or status == errors.CRASHED)


class BusyError(ValueError):
  """As gcsfs raises it."""

  code = 503


UNREAD = "UNKNOWN: Error reading local file: {} [tensorstore_spec='{{}}'] [os_error_code='{}']"


@pytest.mark.parametrize(
  "error, passes, again",
  [
    (ValueError("UNAVAILABLE: later"), True, True),
    (ValueError("ABORTED: All 32 retry attempts failed: CURL error"), True, True),
    (ValueError(UNREAD.format("Stale file handle", errno.ESTALE)), True, True),
    (BusyError("Service Unavailable, 503"), True, True),
    (OSError(errno.EHOSTUNREACH, "No route to host"), True, True),
    # A bad block stays bad, but a second try may do without it.
    (OSError(errno.EIO, "Input/output error"), False, True),
    (ValueError(UNREAD.format("Input/output error", errno.EIO)), False, True),
    (ValueError(UNREAD.format("Permission denied", errno.EACCES)), False, False),
    # Words of whoever gave the command.
    (
      ValueError("The prompt is 'a sign that says UNAVAILABLE: back soon'; expected two."),
      False,
      False,
    ),
    (ValueError("[os_error_code='116'] is no name."), False, False),
  ],
)
def test_only_what_did_not_answer_is_asked_again(error, passes, again):
  wrapped = ValueError("It can't be read.")
  wrapped.__cause__ = error
  for each in (error, wrapped):
    assert errors.passes(each) == passes
    assert errors.status(each) == (errors.UNREACHABLE if again else errors.REFUSED)


def test_a_stray_word_is_one_line():
  done = start("render_scene", "--scene=a", "--trajectory=up", "--output=a.mp4", "extra")
  assert done.returncode == 1
  assert done.stderr.startswith("error: Unexpected words ['extra']")
  assert len(done.stderr.strip().splitlines()) == 1


def test_a_mistake_in_a_config_file_s_argument_is_one_line():
  done = start("train", "--config=configs/joint.py:nosuch", "--workdir=none")
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: Unknown preset 'nosuch'; choose one of ")
