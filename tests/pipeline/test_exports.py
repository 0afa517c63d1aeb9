"""Exports of a small moving scene: which format a name means, and what the files show."""

import dataclasses
import io
import pathlib

import av
import numpy as np
import OpenEXR
import pytest
import safetensors.numpy
import trimesh
from PIL import Image

from d4s_jax.formats import trajectories
from d4s_jax.formats.scene import (
  ARRAY_NAMES,
  check_export,
  read_scene,
  write_scene,
)
from d4s_jax.pipeline import clips, detection, shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.pipeline.exports import FORMATS, Export, find
from d4s_jax.watermark import keys
from tests.formats.test_page import make
from tests.support import run_command

README = pathlib.Path(__file__).parents[2] / "d4s_jax" / "formats" / "README.md"


@pytest.fixture(scope="module")
def scene():
  return make(degree=0)


NAMES = {
  "a.ply": "ply",
  "A.PLY": "ply",
  "a.compressed.ply": "compressed-ply",
  "a.b.html": "html",
  "a.webp": "video",
  "a.obj": "mesh",
  "a.exr": "depth",
}


@pytest.mark.parametrize("name, format", NAMES.items())
def test_the_suffix_chooses(name, format):
  assert find(pathlib.Path(name)).name == format


@pytest.mark.parametrize(
  "name, file", [("transforms", "a.json"), ("colmap", "a"), ("tum", "a.txt")]
)
def test_the_path_of_the_scene_goes_along(scene, tmp_path, name, file):
  said = Export(tmp_path / file, format=name).write(*scene)
  assert "Not in it: the scene" in said
  found = trajectories.read(tmp_path / file)
  want = scene[1].cameras.world_from_camera
  np.testing.assert_allclose(found.world_from_camera, want, atol=1e-6)
  with pytest.raises(ValueError, match="tum holds the whole clip; leave --time and --frames out"):
    Export(tmp_path / "b.txt", time=0.5, format="tum")


def test_a_scene_is_not_written_over(scene, tmp_path):
  dynamic, metadata = scene
  write_scene(tmp_path / "scene", dynamic, metadata)
  inside = tmp_path / "scene" / "scene.safetensors"
  before = inside.read_bytes()
  with pytest.raises(SystemExit):
    run_command("export", f"--scene={tmp_path / 'scene'}", f"--output={inside}")
  assert inside.read_bytes() == before
  run_command("export", f"--scene={tmp_path / 'scene'}", f"--output={inside.with_name('a.ply')}")


def test_an_open_suffix_asks_for_the_format():
  with pytest.raises(ValueError, match=r"several formats; add --format=depth\|image"):
    find(pathlib.Path("a.png"))
  assert find(pathlib.Path("a.png"), "depth").name == "depth"
  assert find(pathlib.Path("a.ply"), "mesh").name == "mesh"
  with pytest.raises(ValueError, match="--format=mesh; expected a name that ends in .obj or .ply"):
    find(pathlib.Path("a.html"), "mesh")


def test_every_format_says_what_is_lost_and_stands_in_the_readme(scene, tmp_path):
  said = Export(tmp_path / "a.splat").write(*scene)
  assert "Not in it: motion" in said and "view-dependent colour" in said
  text = README.read_text()
  for row in FORMATS.values():
    for suffix in filter(None, (*row.suffixes, *row.named)):
      assert f"`{suffix}`" in text, suffix


def test_the_moment_is_said(scene, tmp_path):
  said = Export(tmp_path / "a.ply").write(*scene)
  assert "In it: the moment 0 of 0 to 1; --time chooses another" in said
  said = Export(tmp_path / "b.ply", time=0.5).write(*scene)
  assert "In it: the moment 0.5 of 0 to 1.\n" in said
  assert "In it: the moment" not in Export(tmp_path / "a.html").write(*scene)


def test_one_safetensors_file_keeps_everything(scene, tmp_path):
  dynamic, metadata = scene
  Export(tmp_path / "a.safetensors").write(dynamic, metadata)
  found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
  assert set(found) == set(ARRAY_NAMES)
  for name, array in found.items():
    np.testing.assert_array_equal(array, getattr(dynamic, name))
  with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
    assert "world_from_camera" in file.metadata()["scene"]
  again, about = read_scene(tmp_path / "a.safetensors")
  for name in ARRAY_NAMES:
    np.testing.assert_array_equal(getattr(again, name), getattr(dynamic, name))
  poses = (x.cameras.world_from_camera for x in (about, metadata))
  np.testing.assert_allclose(*poses, atol=1e-6)
  assert (about.prompt, about.seed, about.date) == (metadata.prompt, metadata.seed, metadata.date)


def test_a_safetensors_file_is_a_scene_for_the_commands(scene, tmp_path):
  file = tmp_path / "a.safetensors"
  Export(file).write(*scene)
  write_scene(tmp_path / "scene", *scene)
  for name, place in (("a.ply", file), ("b.ply", tmp_path / "scene")):
    run_command("export", f"--scene={place}", f"--output={tmp_path / name}")
  assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
  with pytest.raises(ValueError, match="part of the scene"):
    check_export(file, file)
  safetensors.numpy.save_file({"weights": np.zeros(3, np.float32)}, tmp_path / "c.safetensors")
  with pytest.raises(ValueError, match="c.safetensors says nothing of its scene; expected"):
    read_scene(tmp_path / "c.safetensors")
  file.write_bytes(file.read_bytes()[:-5])
  with pytest.raises(ValueError, match="a.safetensors is truncated"):
    read_scene(file)


def test_tapvid_3ds_evaluation_takes_a_file_of_tracks(scene, tmp_path):
  """The published one, if it is installed (github.com/google-deepmind/tapnet)."""
  theirs = pytest.importorskip("tapnet.tapvid3d.evaluation.evaluate_model")
  (tmp_path / "true").mkdir()
  Export(tmp_path / "true" / "a.npz").write(*scene)
  with np.load(tmp_path / "true" / "a.npz") as file:
    arrays = dict(file)
  scores = []
  # At most 4 of 256 pixels to the right costs the finest of the five thresholds, or two.
  for pixels in (0, 4):
    moved = arrays["tracks_XYZ"].copy()
    moved[..., 0] += pixels * moved[..., 2] / arrays["fx_fy_cx_cy"][0] * 96 / 256
    folder = tmp_path / str(pixels)
    folder.mkdir()
    np.savez(folder / "a.npz", tracks_XYZ=moved, visibility=arrays["visibility"])
    found = theirs.evaluate_data_source(["a.npz"], str(tmp_path / "true"), str(folder), ["none"])
    scores.append(float(found["none"]["average_jaccard"]))
  assert scores[0] == pytest.approx(1) and 0.3 < scores[1] < 0.95


def view(scene, time):
  """What the renderer sees from the path at a time."""
  dynamic, metadata = scene
  times = np.float32([time])
  cameras = shot.along(shot.enlarged(metadata.cameras), metadata.times, times)
  return draw(dynamic, cameras, times, "draw", metadata.cameras)


def test_depth_and_pictures_are_the_renderers(scene, tmp_path):
  want = view(scene, 0.6)
  Export(tmp_path / "a.exr", time=0.6).write(*scene)
  with OpenEXR.File(str(tmp_path / "a.exr")) as file:
    np.testing.assert_array_equal(file.channels()["Y"].pixels, want.depth[0])
  Export(tmp_path / "a.png", time=0.6, format="image").write(*scene)
  with Image.open(tmp_path / "a.png") as image:
    found = np.asarray(image, np.float32) / 255
  # The picture carries the invisible mark.
  error = np.abs(found - np.clip(want.image[0], 0, 1))
  assert error.mean() < 0.01 and error.max() < 0.05


def test_numbered_depth_follows_the_path(scene, tmp_path):
  Export(tmp_path / "depth" / "a.exr", frames=3).write(*scene)
  files = sorted((tmp_path / "depth").iterdir())
  assert [file.name for file in files] == ["a_0001.exr", "a_0002.exr", "a_0003.exr"]
  with OpenEXR.File(str(files[1])) as file:
    found = file.channels()["Y"].pixels
  # Another number of times is compiled otherwise, so that rounding differs; where it lets another
  # Gaussian pass the least opacity, a pixel does.
  want = view(scene, 0.5).depth[0]
  np.testing.assert_allclose(found, want, rtol=1e-2)
  assert np.isclose(found, want, rtol=1e-4).mean() > 0.9999


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_videos_show_the_path(scene, tmp_path, suffix):
  Export(tmp_path / f"a{suffix}", frames=3).write(*scene)
  if suffix == ".webp":  # FFmpeg reads no animated WebP.
    with Image.open(tmp_path / "a.webp") as image:
      image.seek(2)
      found = np.asarray(image.convert("RGB"), np.float32) / 255
  else:
    with av.open(str(tmp_path / f"a{suffix}")) as file:
      found = [*file.decode(video=0)][2].to_ndarray(format="rgb24") / 255
  want = np.clip(view(scene, 1.0).image[0], 0, 1)
  assert np.abs(found - want).mean() < 0.03 < np.abs(found[::-1] - want).mean()


def test_tracks_are_what_tapvid_3d_describes(scene, tmp_path, monkeypatch):
  """By its own words: a lens, world to camera, the camera's axes, and where each is first seen."""
  monkeypatch.setenv(keys.VARIABLE, "a key")
  dynamic, metadata = scene
  lenses = np.array(metadata.cameras.intrinsics)
  lenses[:, [0, 1], [0, 1]] *= np.linspace(1, 2, len(lenses))[:, None]
  zooming = dataclasses.replace(metadata.cameras, intrinsics=lenses)
  Export(tmp_path / "a.npz").write(dynamic, dataclasses.replace(metadata, cameras=zooming))
  with np.load(tmp_path / "a.npz") as file:
    images, tracks, seen = (file[x] for x in ("images_jpeg_bytes", "tracks_XYZ", "visibility"))
    queries, (fx, fy, cx, cy) = file["queries_xyt"], file["fx_fy_cx_cy"]
    extrinsics, ours = file["extrinsics_w2c"], file["tracks_xy"]
  frames, count, _ = tracks.shape
  assert frames == len(dynamic.times) == len(images) and seen.shape == (frames, count)
  pixels = tracks[..., :2] / tracks[..., 2:] * [fx, fy] + [cx, cy]
  np.testing.assert_allclose(pixels, ours, atol=1e-2)
  every = [clips.moment(dynamic, float(x)).means[np.asarray(dynamic.opacities) > 0.5]
           for x in dynamic.times]  # fmt: skip
  world = np.linalg.inv(extrinsics)
  places = tracks @ world[:, :3, :3].swapaxes(1, 2) + world[:, None, :3, 3]
  # Those that are seen, in their order.
  apart = np.abs(places[0][:, None] - every[0]).max(axis=-1)
  kept = apart.argmin(axis=1)
  assert 50 < count < len(every[0]) and (np.diff(kept) > 0).all()
  np.testing.assert_allclose(places, np.stack(every)[:, kept], atol=1e-5)
  first = queries[:, 2].astype(int)
  np.testing.assert_allclose(queries[:, :2], pixels[first, np.arange(count)], atol=1e-2)
  assert (first == seen.argmax(axis=0)).all() and seen[first, np.arange(count)].all()
  # Far away is often hidden, near seldom.
  assert 0.2 < seen.mean() < 0.99
  assert tracks[..., 2][seen].mean() < tracks[..., 2][~seen].mean()
  for index, contents in enumerate(images):
    with Image.open(io.BytesIO(contents)) as image:
      found = np.asarray(image, np.float32) / 255
    # Through the lens of the first, whatever the scene's own does later.
    camera = dataclasses.replace(zooming, intrinsics=np.tile(lenses[:1], (frames, 1, 1)))
    camera = shot.enlarged(camera)[np.array([index])]
    want = draw(dynamic, camera, dynamic.times[index : index + 1], "draw", zooming).image[0]
    assert found.shape == want.shape == (2 * round(cy), 2 * round(cx), 3)
    assert np.abs(found - np.clip(want, 0, 1)).mean() < 0.02
  assert detection.detect(tmp_path / "a.npz", "a key").log10_false < -6
  Export(tmp_path / "b.npz", watermark=False).write(dynamic, metadata)
  assert detection.detect(tmp_path / "b.npz", "a key").log10_false > -3


def test_tracks_of_what_is_never_seen_are_refused(scene, tmp_path):
  dynamic, metadata = scene
  behind = dataclasses.replace(dynamic, means=dynamic.means * np.float32([1, 1, -1]))
  with pytest.raises(ValueError, match="No opaque Gaussian is seen along the path"):
    Export(tmp_path / "a.npz").write(behind, metadata)


def test_tracks_of_more_pixels_than_memory_holds_are_refused(scene, tmp_path, monkeypatch):
  monkeypatch.setattr("d4s_jax.pipeline.shot._MOST_PIXELS", 1000)
  with pytest.raises(ValueError, match="expected at most 1000 pixels in all"):
    Export(tmp_path / "a.npz").write(*scene)


def test_a_mesh_lies_where_the_scene_is_seen(scene, tmp_path):
  said = Export(tmp_path / "a.glb", time=0.5, format="mesh").write(*scene)
  assert "no vertex follows" in said
  mesh = trimesh.load(tmp_path / "a.glb", force="mesh")
  want = view(scene, 0.5)
  # y is up and z towards the viewer there; the scene is 1.5 to 5 m ahead.
  low, high = np.quantile(-mesh.vertices[:, 2], [0.02, 0.98])
  near, far = np.quantile(want.depth[want.alpha > 0.5], [0.02, 0.98])
  assert abs(low - near) < 0.5 and abs(high - far) < 0.6
  # The faces look towards the camera that saw them, though bumps have sides.
  assert (mesh.face_normals[:, 2] > 0).mean() > 0.6
