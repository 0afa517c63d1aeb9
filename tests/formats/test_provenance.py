"""Origins of files, in places where other programs find them."""

import json
import pathlib
from xml.etree import ElementTree

import av
import gsply
import gsply.sog_reader
import numpy as np
import OpenEXR
import plyfile
import pytest
import safetensors
import trimesh
from PIL import Image

from d4s_jax.formats import (
  depth,
  images,
  mesh,
  page,
  provenance,
  scene,
  scene_file,
  splats,
  video,
)
from d4s_jax.pipeline.clips import moment
from tests.formats.test_page import make

PICTURES = np.random.default_rng(0).random((3, 40, 24, 3), dtype=np.float32)
STAMPED = ["a.ply", "a.compressed.ply", "a.glb", "a.sog", "a.safetensors", "a.html", "mesh.ply"]
STAMPED += ["mesh.obj", "mesh.glb", "a.png", "a.jpg", "a.webp", "all.gif", "all.webp", "a.exr"]
STAMPED += ["a.npz"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A stamped file of each format, the scene they are of, and what is said."""
  folder = tmp_path_factory.mktemp("provenance")
  dynamic, metadata = make(degree=0)
  scene.write_scene(folder / "scene", dynamic, metadata)
  facts = provenance.facts(metadata)
  for suffix, write in splats.WRITERS.items():
    write(folder / f"a{suffix}", moment(dynamic, 0.0))
  page.write_page(folder / "a.html", dynamic, metadata)
  scene_file.write(folder / "a.safetensors", dynamic, metadata)
  corners = np.eye(3, dtype=np.float32)
  for suffix, write in mesh.WRITERS.items():
    surface = mesh.Mesh(corners, np.array([[0, 1, 2]]), corners, corners)
    write(folder / f"mesh{suffix}", surface)
  for name in ("a.png", "a.jpg", "a.webp"):
    images.write_image(folder / name, PICTURES[0])
  for name in ("all.gif", "all.webp"):
    video.write_video(folder / name, PICTURES, 8)
  depth.write_exr(folder / "a.exr", PICTURES[0, ..., 0])
  np.savez(folder / "a.npz", places=corners)
  for name in STAMPED:
    assert provenance.stamp(folder / name, facts), name
    before = (folder / name).read_bytes()
    # Once is enough.
    assert provenance.stamp(folder / name, facts)
    assert (folder / name).read_bytes() == before
  for name in ("a.splat", "a.spz"):
    before = (folder / name).read_bytes()
    assert not provenance.stamp(folder / name, facts)
    assert (folder / name).read_bytes() == before
  frames = np.full((2, 16, 16, 3), 0.5, np.float32)
  video.write_video(folder / "a.mp4", frames, 8, provenance.text(facts))
  return folder, dynamic, facts


@pytest.mark.parametrize("name", [*STAMPED, "a.mp4", "scene"])
def test_what_is_written_is_read(files, name):
  folder, _, facts = files
  assert provenance.read(folder / name) == facts
  assert facts["digital_source_type"].endswith("trainedAlgorithmicMedia")
  assert len(facts["prompt_hash"]) == 64


def test_other_programs_find_it(files):
  folder, dynamic, facts = files
  ply = plyfile.PlyData.read(folder / "a.ply")
  assert json.loads(ply.comments[0]) == {"d4s_jax": facts}
  seen = dynamic.opacities > 0
  np.testing.assert_array_equal(ply["vertex"]["x"], moment(dynamic, 0.0).means[seen, 0])
  contents = (folder / "a.glb").read_bytes()
  size = int.from_bytes(contents[12:16], "little")
  assert int.from_bytes(contents[8:12], "little") == len(contents)
  assert json.loads(contents[20 : 20 + size])["asset"]["extras"] == {"d4s_jax": facts}
  with Image.open(folder / "a.png") as image:
    image.load()
    assert json.loads(image.text["Comment"]) == {"d4s_jax": facts}
  with av.open(str(folder / "a.mp4")) as container:
    assert json.loads(container.metadata["comment"]) == {"d4s_jax": facts}


def test_other_programs_still_read_what_was_there(files):
  folder, dynamic, facts = files
  want = np.sort(moment(dynamic, 0.0).means[dynamic.opacities > 0, 0])
  np.testing.assert_allclose(np.sort(gsply.plyread(folder / "a.ply").means[:, 0]), want, atol=1e-6)
  packed = gsply.plyread(folder / "a.compressed.ply")
  np.testing.assert_allclose(np.sort(packed.means[:, 0]), want, atol=1e-2)
  found = gsply.sog_reader.sogread(str(folder / "a.sog"))
  np.testing.assert_allclose(np.sort(found.means[:, 0]), want, atol=1e-3)
  with safetensors.safe_open(folder / "a.safetensors", "numpy") as file:
    assert json.loads(file.metadata()["d4s_jax"]) == {"d4s_jax": facts}
    np.testing.assert_array_equal(file.get_tensor("means"), dynamic.means)
    np.testing.assert_array_equal(file.get_tensor("deformation"), dynamic.deformation)
  for suffix in (".ply", ".obj", ".glb"):
    assert len(trimesh.load(folder / f"mesh{suffix}", force="mesh").faces) == 1
  with OpenEXR.File(str(folder / "a.exr")) as file:
    assert json.loads(file.header()["comments"]) == {"d4s_jax": facts}
    np.testing.assert_array_equal(file.channels()["Y"].pixels, PICTURES[0, ..., 0])
  with np.load(folder / "a.npz", allow_pickle=False) as arrays:
    assert json.loads(str(arrays["provenance"])) == {"d4s_jax": facts}
    np.testing.assert_array_equal(arrays["places"], np.eye(3))
  for name, where in (("a.jpg", "comment"), ("all.gif", "comment")):
    with Image.open(folder / name) as image:
      assert json.loads(image.info[where]) == {"d4s_jax": facts}
  for name, count in (("a.jpg", 1), ("a.webp", 1), ("all.gif", 3), ("all.webp", 3)):
    with Image.open(folder / name) as image:
      assert (image.size, getattr(image, "n_frames", 1)) == ((24, 40), count)
      image.seek(count - 1)
      error = np.abs(np.asarray(image.convert("RGB"), np.float32) / 255 - PICTURES[count - 1])
      assert error.mean() < 0.25
      if name.endswith("webp"):
        said = ElementTree.fromstring(image.info["xmp"]).find(".//{*}description")
        assert json.loads(said.text) == {"d4s_jax": facts}


BROKEN = {
  "a.ply": b'ply\ncomment {"d4s_jax": [1]}\nend_header\n',
  "b.ply": b'ply\ncomment {"d4s_jax" oh\nend_header\n',
  "a.glb": b"glTF" + bytes(20),
  "a.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
  "a.html": b'<meta name="d4s_jax" content="7">',
  "a.mp4": b"no video",
  "b.glb": b"glTF",
  "a.sog": b"PK no archive",
  "a.npz": b"no archive",
  "a.exr": b"v/1\x01" + bytes([2, 0, 0, 0]) + b"name",
  "a.webp": b"RIFF\0\0\0\0WEBP",
  "a.gif": b"GIF89a",
  "a.jpg": b"\xff\xd8\xff",
  "a.safetensors": bytes(20),
  "a.txt": b"anything",
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_say_nothing_sound_say_nothing(name, tmp_path):
  path = pathlib.Path(tmp_path, name)
  path.write_bytes(BROKEN[name])
  assert provenance.read(path) is None


def test_hostile_words_stay_short(tmp_path):
  path = tmp_path / "a.ply"
  many = {f"key{i}" * 50: "x" * 10_000 for i in range(100)}
  path.write_text(f"ply\ncomment {json.dumps({'d4s_jax': many})}\nend_header\n")
  found = provenance.read(path)
  assert len(found) == 20
  assert all(len(key) <= 40 and len(value) <= 300 for key, value in found.items())
