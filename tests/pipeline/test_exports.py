"""Exports of a small moving scene: which format a name means, and what the files show."""

import pathlib

import av
import numpy as np
import OpenEXR
import pytest
import safetensors.numpy
import trimesh
from PIL import Image

from d4s_jax.formats import trajectories
from d4s_jax.formats.scene import ARRAY_NAMES, write_scene
from d4s_jax.geometry import poses
from d4s_jax.pipeline import clips, shot
from d4s_jax.pipeline.drawing import draw
from d4s_jax.pipeline.exports import FORMATS, Export, find
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
    # Another number of times is compiled otherwise, so that rounding differs.
    found = file.channels()["Y"].pixels
  np.testing.assert_allclose(found, view(scene, 0.5).depth[0], rtol=1e-4)


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


def test_tracks_project_to_where_the_gaussians_are_drawn(scene, tmp_path):
  dynamic, metadata = scene
  Export(tmp_path / "a.npz").write(dynamic, metadata)
  with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
    tracks = {name: found[name] for name in found}
  solid = np.asarray(dynamic.opacities) > 0.5
  for index, time in enumerate(np.asarray(dynamic.times)):
    centres = clips.moment(dynamic, float(time)).means[solid]
    world = poses.invert(tracks["extrinsics_w2c"][index])
    local = tracks["tracks_XYZ"][index]
    np.testing.assert_allclose(local @ world[:3, :3].T + world[:3, 3], centres, atol=1e-5)
    fx, fy, cx, cy = tracks["fx_fy_cx_cy"][index]
    pixels = np.stack([fx, fy]) * local[:, :2] / local[:, 2:] + [cx, cy]
    np.testing.assert_allclose(pixels, tracks["tracks_xy"][index], atol=1e-2)
  # Far away is often hidden, near seldom.
  shown, depth = tracks["visibility"], tracks["tracks_XYZ"][..., 2]
  assert 0.2 < shown.mean() < 0.95
  assert depth[shown].mean() < depth[~shown].mean()


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
