"""Origins of files, in places where other programs find them."""

import json
import pathlib

import av
import numpy as np
import plyfile
import pytest
from PIL import Image

from d4s_jax.formats import images, page, provenance, scene, splats, video
from d4s_jax.pipeline.clips import moment
from tests.formats.test_page import make


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A stamped file of each format, the scene they are of, and what is said."""
  folder = tmp_path_factory.mktemp("provenance")
  dynamic, metadata = make(degree=0)
  scene.write_scene(folder / "scene", dynamic, metadata)
  facts = provenance.facts(metadata)
  for suffix in (".ply", ".glb", ".splat", ".spz"):
    splats.WRITERS[suffix](folder / f"a{suffix}", moment(dynamic, 0.0))
  page.write_page(folder / "a.html", dynamic, metadata)
  images.write_image(folder / "a.png", np.full((8, 8, 3), 0.5, np.float32))
  for name in ("a.ply", "a.glb", "a.png", "a.html"):
    assert provenance.stamp(folder / name, facts)
  for name in ("a.splat", "a.spz"):
    before = (folder / name).read_bytes()
    assert not provenance.stamp(folder / name, facts)
    assert (folder / name).read_bytes() == before
  frames = np.full((2, 16, 16, 3), 0.5, np.float32)
  video.write_video(folder / "a.mp4", frames, 8, provenance.text(facts))
  return folder, dynamic, facts


@pytest.mark.parametrize("name", ["a.ply", "a.glb", "a.png", "a.html", "a.mp4", "scene"])
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


BROKEN = {
  "a.ply": b'ply\ncomment {"d4s_jax": [1]}\nend_header\n',
  "b.ply": b'ply\ncomment {"d4s_jax" oh\nend_header\n',
  "a.glb": b"glTF" + bytes(20),
  "a.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
  "a.html": b'<meta name="d4s_jax" content="7">',
  "a.mp4": b"no video",
  "b.glb": b"glTF",
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
