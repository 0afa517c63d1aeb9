"""Marks through files: written by the commands, found by the command."""

import dataclasses

import numpy as np
import pytest

from d4s_jax.formats import images, mesh, provenance, scene
from d4s_jax.formats.scene import SceneMetadata
from d4s_jax.formats.video import write_video
from d4s_jax.pipeline import detection, exports, marking, shot
from d4s_jax.watermark import keys
from tests.formats.test_page import make
from tests.support import run_command
from tests.watermark.test_marks import cloud

SURE = -6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A marked scene and one that is not, and files of both."""
  folder = tmp_path_factory.mktemp("detection")
  _, cameras = shot.photograph(np.zeros((32, 32, 3), np.float32), shot.camera_path("up", 2), 32, 32)
  metadata = SceneMetadata(
    cameras=cameras,
    times=np.array([0, 1], np.float32),
    prompt="a cat",
    package_version="0",
    checkpoint="shipped tiny",
    checkpoint_hash=64 * "0",
    date="2026-01-01T00:00:00+00:00",
  )
  for name, wanted in (("marked", True), ("plain", False)):
    scene.write_scene(folder / name, marking.scene(cloud(), marking.key(wanted)), metadata)
    for suffix in ("ply", "compressed.ply", "splat", "spz", "sog", "glb", "safetensors", "html"):
      output = folder / f"{name}.{suffix}"
      run_command("export", f"--scene={folder / name}", f"--output={output}")
    run_command(
      "render_scene",
      *(f"--scene={folder / name}", f"--output={folder / name}.mp4", "--trajectory=forward"),
      *("--frames=6", "--height=128", f"--watermark={wanted}"),
    )
  return folder


FILES = ["", ".ply", ".compressed.ply", ".splat", ".spz", ".sog", ".glb", ".safetensors", ".html"]
FILES += [".mp4"]


@pytest.mark.parametrize("suffix", FILES)
def test_what_the_commands_write_is_found(place, suffix):
  assert detection.detect(place / f"marked{suffix}", keys.PUBLIC).log10_false < SURE
  assert detection.detect(place / f"marked{suffix}", "another key").log10_false > -3
  assert detection.detect(place / f"plain{suffix}", keys.PUBLIC).log10_false > -3


def test_a_refined_scene_is_marked_again(place, tmp_path):
  """Fitting wears a mark away; this scene had none."""
  video = tmp_path / "video.mp4"
  write_video(video, np.full((2, 32, 32, 3), 0.5, np.float32), 8)
  inputs = f"--scene={place / 'plain'}", f"--video={video}", "--steps=2"
  for wanted in (True, False):
    output = tmp_path / str(wanted)
    run_command("refine", *inputs, f"--output={output}", f"--watermark={wanted}")
    assert (detection.detect(output, keys.PUBLIC).log10_false < SURE) is wanted
    assert scene.read_scene(output)[1].checkpoint == "shipped tiny, refined in 2 steps"


def test_export_and_video_say_where_they_come_from(place):
  for suffix in ("", ".ply", ".glb", ".mp4"):
    found = provenance.read(place / f"marked{suffix}")
    assert found["checkpoint_hash"] == 64 * "0"
    assert found["date"] == "2026-01-01T00:00:00+00:00"
    assert "a cat" not in str(found)


def test_exports_of_pictures_are_marked(place, tmp_path):
  for name, form in (("a.png", "image"), ("a.mp4", "video")):
    inputs = f"--scene={place / 'plain'}", f"--output={tmp_path / name}", f"--format={form}"
    run_command("export", *inputs)
    assert detection.detect(tmp_path / name, keys.PUBLIC).log10_false < SURE
    # For research that the mark would disturb; where it comes from stays.
    run_command("export", *inputs, "--nowatermark")
    assert detection.detect(tmp_path / name, keys.PUBLIC).log10_false > -3
    assert provenance.read(tmp_path / name)["model"] == "shipped tiny"


def test_pictures_and_animations(place, tmp_path):
  frames = detection.video.read_video(place / "marked.mp4")
  images.write_image(tmp_path / "one.png", frames[2])
  one = detection.detect(tmp_path / "one.png", keys.PUBLIC)
  pictures = [detection.Image.fromarray(images.to_bytes(x)) for x in frames]
  pictures[0].save(
    tmp_path / "all.webp", save_all=True, append_images=pictures[1:], duration=100, quality=95
  )
  many = detection.detect(tmp_path / "all.webp", keys.PUBLIC)
  assert max(one.log10_false, many.log10_false) < SURE
  # An animation is read to its end.
  blank = detection.Image.new("RGB", pictures[0].size)
  blank.save(tmp_path / "late.webp", save_all=True, append_images=pictures[1:], quality=95)
  assert detection.detect(tmp_path / "late.webp", keys.PUBLIC).log10_false < SURE


def test_the_command_tells(place, capsys, monkeypatch):
  command = "watermark.__main__"
  run_command(command, "detect", str(place / "marked.ply"))
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].endswith("marked.ply: marked with the public key")
  assert "false-positive rate at most" in lines[1]
  assert "model: shipped tiny" in lines
  assert lines[-1] == "C2PA: unsigned"
  run_command(command, "detect", str(place / "plain"))
  assert "no mark found with the public key" in capsys.readouterr().out
  monkeypatch.setenv(keys.VARIABLE, "mine")
  run_command(command, "detect", str(place / "marked"))
  assert f"no mark found with the key of {keys.VARIABLE}" in capsys.readouterr().out


def test_the_command_tells_of_pictures_that_are_left_out(tmp_path, capsys, monkeypatch):
  images.write_image(tmp_path / "a.png", np.zeros((16, 16, 3), np.float32))
  small, large = np.zeros((16, 16, 3), np.float32), np.zeros((16, 32, 3), np.float32)
  monkeypatch.setattr(detection, "_pictures", lambda path: [large, small, small, large, small])
  run_command("watermark.__main__", "detect", str(tmp_path / "a.png"))
  said = capsys.readouterr().out
  assert "2 pictures of another shape than most were not looked at" in said


UNMARKED = {
  "a.png": "depth",
  "a.ply": "mesh",
  "a.glb": "mesh",
  "a.obj": "mesh",
  "a.exr": "depth",
}


@pytest.mark.parametrize("name, format", UNMARKED.items())
def test_the_command_tells_where_what_bears_no_mark_comes_from(name, format, tmp_path, capsys):
  dynamic, metadata = make(degree=0)
  metadata = dataclasses.replace(metadata, checkpoint="shipped tiny")
  exports.Export(tmp_path / name, format=format).write(dynamic, metadata)
  capsys.readouterr()
  run_command("watermark.__main__", "detect", str(tmp_path / name))
  lines = capsys.readouterr().out.splitlines()
  assert f"{name}: bears no mark" in lines[0]
  assert "model: shipped tiny" in lines and not any("score" in line for line in lines)


@pytest.mark.parametrize("name", ["a.ply", "a.glb"])
def test_a_damaged_file_is_not_called_unmarked(name, tmp_path, capsys):
  (tmp_path / name).write_bytes(b"anything")
  with pytest.raises(SystemExit):
    run_command("watermark.__main__", "detect", str(tmp_path / name))
  assert "can't be read" in capsys.readouterr().err


@pytest.mark.parametrize(
  "words, message",
  [
    (["detect", "{}/none.ply"], "Nothing is at .*none.ply"),
    (["find", "{}/marked"], "expected: detect FILE"),
    (["detect"], "expected: detect FILE"),
    (["sign", "{}/marked.mp4"], "sign needs --certificates and --key"),
    (["sign", "{}/marked.ply", "--certificates=a", "--key=b"], "marked.ply can't be signed"),
    (["detect", "{}"], "No scene at"),
    (["detect", "{}/marked/scene.json"], "scene.json cannot be read as an image"),
  ],
)
def test_the_command_refuses(words, message, place, capsys):
  with pytest.raises(SystemExit):
    run_command("watermark.__main__", *(word.format(place) for word in words))
  assert message.split(".*")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
  "name, message",
  [
    ("a.obj", "a.obj is a mesh, which has no Gaussians."),
    ("a.rrd", "a.rrd is a recording, which is not read; expected"),
    ("a.exr", "a.exr is depth, which has no colours."),
    ("a.ply", "a.ply can't be read as .ply of splats: it is a mesh, which has no Gaussians."),
    ("a.glb", "a mesh has no Gaussians"),
    ("a.html", "a.html can't be read as .html of splats: it is no page of a scene"),
  ],
)
def test_files_without_a_mark_are_named(tmp_path, name, message):
  path = tmp_path / name
  if path.suffix in mesh.WRITERS:
    corners = np.eye(3, dtype=np.float32)
    mesh.WRITERS[path.suffix](path, mesh.Mesh(corners, np.array([[0, 1, 2]]), corners, corners))
  else:
    path.write_bytes(b"anything")
  with pytest.raises(ValueError) as error:
    detection.detect(path, keys.PUBLIC)
  assert message in str(error.value)


def test_an_empty_key_is_none(monkeypatch):
  monkeypatch.setenv(keys.VARIABLE, " ")
  with pytest.raises(ValueError, match="is empty"):
    marking.key(True)
  assert marking.key(False) is None
