import numpy as np
import pytest
from PIL import Image

from d4s_jax.formats import trajectories
from d4s_jax.pipeline import camera_files
from tests.formats.trajectories.test_readers import COUNT, make, write


def test_check_says_what_it_found_and_draws_it(tmp_path):
  said = camera_files.check(write(tmp_path, "transforms"), tmp_path / "path.png")
  assert "OpenGL axes" in said and f"frames       {COUNT}" in said
  assert "warnings     none" in said and "path.png" in said
  with Image.open(tmp_path / "path.png") as image:
    pixels = np.asarray(image.convert("RGB"))
  assert pixels.shape == (450, 1200, 3)
  # Not an empty sheet: some of it has the colours of the map.
  assert (np.ptp(pixels.astype(int), axis=-1) > 60).mean() > 0.005


@pytest.mark.parametrize("name", trajectories.WRITERS)
def test_convert_keeps_the_world_of_the_file(tmp_path, name):
  source = write(tmp_path, "transforms")
  output = tmp_path / f"new{trajectories.WRITERS[name].suffix}"
  said = camera_files.convert(source, output, name, None, None)
  assert trajectories.WRITERS[name].lost in said
  found = trajectories.read(output)
  np.testing.assert_allclose(found.world_from_camera, make().world_from_camera, atol=2e-6)


def test_convert_says_what_it_leaves_out_and_changes(tmp_path):
  (tmp_path / "tum.txt").write_text("1305031452.79 0 0 0 0 0 0 1\n1305031453.79 1 0 0 0 0 0 1\n")
  said = camera_files.convert(tmp_path / "tum.txt", tmp_path / "a.txt", "tum", None, None)
  assert "beyond the ninth, the time at which it starts, 1305031452.79." in said
  for name in ("transforms", "colmap"):
    source = write(tmp_path, name)
    said = camera_files.convert(source, tmp_path / f"{name}.json", "cameras", None, None)
    assert "digits beyond float32, names of pictures." in said
  assert "Note:" not in said
  said = camera_files.convert(write(tmp_path, "transforms"), tmp_path / "b.txt", "tum", None, None)
  assert "\nNote: OpenGL axes were turned to OpenCV's." in said
  source = write(tmp_path, "realestate10k")
  for wanted in (True, False):
    said = camera_files.convert(source, tmp_path / "b.txt", "tum", None, None)
    assert ("the video's address" in said) == wanted
    source.write_text("".join(source.read_text().splitlines(keepends=True)[1:]))


def test_a_file_is_not_written_over_itself(tmp_path):
  source = write(tmp_path, "transforms")
  before = source.read_bytes()
  with pytest.raises(ValueError, match="is the file that is read"):
    camera_files.convert(source, source, "transforms", None, None)
  assert source.read_bytes() == before


def test_convert_says_what_looks_wrong(tmp_path):
  (tmp_path / "still.txt").write_text("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n")
  said = camera_files.convert(tmp_path / "still.txt", tmp_path / "a.txt", "tum", None, None)
  assert said.endswith("\nWARNING: the camera stands still.")


def test_times_that_are_made_up_are_said(tmp_path):
  row = " ".join(map(str, np.eye(4)[:3].ravel()))
  (tmp_path / "kitti.txt").write_text("\ufeff" + f"{row}\n{row}\n", encoding="utf-8")
  said = camera_files.convert(tmp_path / "kitti.txt", tmp_path / "tum.txt", "tum", None, None)
  assert "Made up: its times, 24 frames a second." in said


def test_what_a_file_lacks_has_to_be_given(tmp_path):
  source = write(tmp_path, "tum")
  with pytest.raises(ValueError, match="no intrinsics .* add --fov=DEGREES"):
    camera_files.convert(source, tmp_path / "new", "colmap", None, None)
  camera_files.convert(source, tmp_path / "new", "colmap", 90.0, 100)
  found = trajectories.read(tmp_path / "new")
  assert found.size == (100, 100)
  np.testing.assert_allclose(found.intrinsics[0], [[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])
  with pytest.raises(ValueError, match="--height is 99999999; expected 1 to 65536 pixels"):
    camera_files.convert(source, tmp_path / "b", "colmap", 90.0, 99_999_999)
  with pytest.raises(ValueError, match="--fov given, but the file has intrinsics"):
    camera_files.convert(write(tmp_path, "transforms"), tmp_path / "b", "colmap", 90.0, None)
