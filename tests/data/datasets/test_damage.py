"""Broken and missing files of each dataset: named with cause and remedy, and the rest goes on."""

import functools
import gzip
import json
import os
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from d4s_jax.data.datasets.registry import open_dataset
from tests.data.datasets.writers import (
  dynamicreplica,
  matrixcity,
  multicamvideo,
  pointodyssey,
  realestate10k,
  spring,
  stereo4d,
  tartanair,
  virtual_kitti,
)


class Found:
  """A dataset after it was damaged: its scene, its first camera, all that was noted."""

  def __init__(self, name, written):
    self.dataset = open_dataset(name, written.root)
    self.scene = self.dataset.open(written.scene)
    self.view = self.scene.views[0]
    self.problems = "\n".join([*self.dataset.problems, *self.scene.problems])

  def says(self, pattern):
    assert re.search(pattern, self.problems), self.problems


def only(root, pattern):
  (path,) = root.rglob(pattern)
  return path


def cut(path, share=0.6):
  path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edit(path, number, line):
  """Replaces a line, counted from 0."""
  lines = path.read_text().splitlines()
  lines[number] = line(lines[number]) if callable(line) else line
  path.write_text("\n".join(lines) + "\n")


def test_tartanair(tmp_path):
  written = tartanair.write(tmp_path, frames=4)
  folder = tmp_path / written.scene
  shutil.rmtree(folder / "image_right")
  (folder / "image_left" / "000001_left.png").unlink()
  (folder / "depth_left" / "000002_left_depth.npy").unlink()
  cut(folder / "image_left" / "000003_left.png")
  cut(folder / "depth_left" / "000003_left_depth.npy")
  np.save(folder / "depth_left" / "000000_left_depth.npy", np.ones((240, 320), np.float32))
  Image.new("RGB", (640, 480)).save(folder / "image_left" / "000009_left.png")
  found = Found("tartanair", written)
  assert found.view.numbers.tolist() == [0, 2, 3]
  found.says("No picture at .*000001_left.png; the frame is left out. Fetch it again")
  found.says("000009_left.png has no line in .*pose_left.txt")
  found.says("No depth of frame 2 in .*depth_left; it counts as unknown")
  found.says("image_right has 0 pictures")  # that camera is left out
  assert [view.name for view in found.scene.views] == ["left"]
  assert not found.view.depth(1).any()
  with pytest.raises(ValueError, match="000003_left.png cannot be read as an image"):
    found.view.image(2)
  with pytest.raises(ValueError, match="000003_left_depth.npy has .* bytes of numbers.* truncated"):
    found.view.depth(2)
  with pytest.raises(ValueError, match="000000_left_depth.npy: depth of 320 x 240 pixels for cam"):
    found.view.depth(0)


def test_tartanair_poses(tmp_path):
  written = tartanair.write(tmp_path, frames=4)
  shutil.rmtree(tmp_path / written.scene / "image_right")
  (tmp_path / written.scene / "pose_right.txt").unlink()
  path = tmp_path / written.scene / "pose_left.txt"
  edit(path, 0, "1 2 3 0 0 0 0")
  edit(path, 1, "1 2 nan 0 0 0 1")
  edit(path, 2, "1 2 three 0 0 0 1")
  found = Found("tartanair", written)
  assert found.view.numbers.tolist() == [3]
  found.says("pose_left.txt, line 1: a pose that is not finite; the frame is left out")
  found.says("pose_left.txt, line 2: a pose that is not finite")
  found.says("pose_left.txt, line 3: '1 2 three 0 0 0 1'; expected 7 numbers. The line is left out")
  path.write_text("")
  with pytest.raises(ValueError, match="No frame of the camera 'left' has a picture and a pose"):
    Found("tartanair", written)


def test_the_second_version_of_tartanair_is_another_dataset(tmp_path):
  folder = tmp_path / "ArchVizTinyHouseDay" / "Data_easy" / "P000"
  folder.mkdir(parents=True)
  (folder / "pose_lcam_front.txt").write_text("0 0 0 0 0 0 1\n")
  with pytest.raises(ValueError, match="P000 is of TartanAir V2, another dataset"):
    open_dataset("tartanair", tmp_path)
  written = tartanair.write(tmp_path / "first", frames=1)
  for path in tmp_path.rglob("*_left.png"):
    Image.new("RGB", (640, 640)).save(path)
  with pytest.raises(ValueError, match="pictures of 640 x 640 pixels; expected 640 x 480"):
    Found("tartanair", written)


def test_realestate10k(tmp_path):
  written = realestate10k.write(tmp_path)
  path = only(tmp_path, "*.txt")
  lines = path.read_text().splitlines()
  first, second, third, fourth, fifth = lines[1:]
  bad = third.split()
  bad[9] = "nan"
  path.write_text(
    "\n".join([lines[0], fifth, first, first, second, " ".join(bad), fourth, "1 2 3"]) + "\n"
  )
  only(tmp_path, "133467000.png").unlink()
  cut(only(tmp_path, "99966000.png"))
  (path.parent / "ffffffffffffffff.txt").write_text("https://gone\n" + first + "\n")
  found = Found("realestate10k", written)
  assert found.view.numbers.tolist() == [66733000, 99966000, 166834000]
  found.says("line 3: time 66733000 after 166834000; the lines are sorted here")
  found.says("line 4: frame 66733000 occurs twice; the second is left out")
  found.says("line 6: nan; expected finite numbers. The frame is left out")
  found.says("line 8: 3 columns; expected 19")
  found.says("No picture at .*133467000.png")
  found.says("1 of 2 camera files, such as .*ffffffffffffffff.txt, have no folder of frames")
  found.view.image(0)
  with pytest.raises(ValueError, match="99966000.png cannot be read as an image .*intact"):
    found.view.image(1)


def test_realestate10k_in_chunks(tmp_path):
  """Damage of the chunk, the index, a picture and a clip."""
  written = realestate10k.write_chunk(tmp_path)
  folder = written.root / "train"
  path = folder / "000000.torch"
  whole = torch.load(path)
  key = whole[1]["key"]

  def read(**changes):
    torch.save([{**whole[1], **changes}], path)
    return Found("realestate10k", written)

  cameras = whole[1]["cameras"].clone()
  cameras[1, 7] = torch.nan
  found = read(cameras=cameras)
  assert found.view.numbers.tolist() == [66733000, 100100000, 133467000, 166834000]
  found.says(f"000000.torch, {key}, frame 1: nan; expected finite numbers. The frame is left out")
  found = read(images=[*whole[1]["images"][:4], whole[1]["images"][4][:500]])
  found.view.image(3)
  with pytest.raises(ValueError, match="clip .*: no picture at 166834000 .*fetch it again"):
    found.view.image(4)
  for changes in (
    {"key": "other"},
    {"images": whole[1]["images"][:4]},
    {"images": "none"},
    {"cameras": cameras[:, :17].contiguous()},
    {"timestamps": 5},
  ):
    with pytest.raises(ValueError, match=f"clip {key}: no such clip of .*fetch it again"):
      read(**changes)
  stamps = whole[1]["timestamps"]
  for wrong in (stamps * torch.inf, stamps - stamps):
    with pytest.raises(
      ValueError, match=f"clip {key}: timestamps that aren't whole, or come twice"
    ):
      read(timestamps=wrong)
  cut(path)
  with pytest.raises(ValueError, match="000000.torch cannot be read as tensors .*Fetch it again"):
    Found("realestate10k", written)
  path.unlink()
  with pytest.raises(ValueError, match="1 clips, such as train/.*000000.torch; fetch these"):
    Found("realestate10k", written)
  (folder / "index.json").write_text(json.dumps({key: "../../../000000.torch"}))
  with pytest.raises(ValueError, match="index.json: a chunk names .*which is outside"):
    open_dataset("realestate10k", written.root)
  (folder / "index.json").write_text("[]")
  with pytest.raises(ValueError, match="index.json: expected an object of clips"):
    open_dataset("realestate10k", written.root)
  # Of one split; clips of files, and of the other split, are there.
  files = realestate10k.write(written.root)
  dataset = open_dataset("realestate10k", written.root)
  assert files.scene in dataset.names and dataset.open(files.scene).views
  assert "index.json: expected an object of clips" in dataset.problems[0]


def test_a_clip_of_a_chunk_reads_nothing_of_the_others(tmp_path, monkeypatch):
  written = realestate10k.write_chunk(tmp_path)
  dataset = open_dataset("realestate10k", written.root)
  read, whole = [], zipfile.ZipExtFile.read

  def counting(self, *args):
    read.append(whole(self, *args))
    return read[-1]

  monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
  assert len(dataset.open(written.scene).views[0]) == len(realestate10k.STAMPS)
  ours = torch.load(written.root / "train" / "000000.torch")[1]
  tensors = [ours["timestamps"], ours["cameras"], *ours["images"]]
  structure = sum(map(len, read)) - sum(x.nbytes for x in tensors)
  # The other clip takes a megabyte.
  assert 0 < structure < 10_000


@pytest.mark.parametrize("factor", [0.5, 1e-3, -1.0])
def test_impossible_intrinsics(tmp_path, factor):
  written = realestate10k.write(tmp_path)
  words = only(tmp_path, "*.txt").read_text().splitlines()[2].split()
  words[1] = str(factor * float(words[1]))
  edit(only(tmp_path, "*.txt"), 2, " ".join(words))
  found = Found("realestate10k", written)
  assert len(found.view) == 4
  found.says("line 3: focal lengths .*(which no camera of square pixels has|expected positive)")


def test_mirrored_and_scaled_poses(tmp_path):
  written = realestate10k.write(tmp_path)
  path = only(tmp_path, "*.txt")
  row = path.read_text().splitlines()[1].split()[:7]
  edit(path, 1, " ".join([*row, *"-1 0 0 0 0 1 0 0 0 0 1 0".split()]))
  edit(
    path, 2, lambda line: " ".join([line.split()[0], *row[1:], *"2 0 0 0 0 2 0 0 0 0 2 0".split()])
  )
  edit(
    path, 3, lambda line: " ".join([line.split()[0], *row[1:], *"0 0 0 0 0 0 0 0 0 0 0 0".split()])
  )
  found = Found("realestate10k", written)
  assert len(found.view) == 2
  found.says("line 2: a mirror image .determinant -1.*, not a rotation")
  found.says("line 3: not a rotation")
  found.says("line 4: a pose that is not finite")


def test_realestate10k_of_another_kind(tmp_path):
  written = realestate10k.write(tmp_path)
  only(tmp_path, "*.txt").write_bytes(b"\xff\xfe\x00binary")
  with pytest.raises(ValueError, match="neither JSON nor text"):
    Found("realestate10k", written)


def test_pointodyssey(tmp_path):
  written = pointodyssey.write(tmp_path)
  folder = tmp_path / written.scene
  shutil.copytree(folder, folder.with_name("cut"))
  cut(folder.with_name("cut") / "anno.npz")
  shutil.copytree(folder, folder.with_name("lacks"))
  stored = dict(np.load(folder / "anno.npz"))
  cameras = {key: stored.pop(key) for key in ("intrinsics", "extrinsics")}
  np.savez(folder.with_name("lacks") / "anno.npz", **stored)
  shutil.copytree(folder, folder.with_name("bare"))
  np.savez(folder.with_name("bare") / "anno.npz", **cameras, trajs_3d=np.zeros(0))
  for key in ("trajs_3d", "trajs_2d"):
    shutil.copytree(folder, folder.with_name(key))
    objects = {key: np.array([{}], object)}
    np.savez(folder.with_name(key) / "anno.npz", **cameras, **stored | objects)
  (folder / "rgbs" / "rgb_00002.jpg").unlink()
  Image.new("L", (192, 108)).save(folder / "depths" / "depth_00003.png")
  found = Found("pointodyssey", written)
  assert found.dataset.names == ["train/bare", written.scene, "train/trajs_2d", "train/trajs_3d"]
  found.says(
    "cut/anno.npz is no .npz archive, or truncated .*Fetch it again. The scene is left out"
  )
  found.says("lacks/anno.npz has .*expected 'intrinsics' among them")
  found.says("has 5 pictures and 6 cameras")
  assert found.view.numbers.tolist() == [0, 1, 3, 4, 5]
  with pytest.raises(ValueError, match="depth_00003.png has 8 bits; expected depth of 16 bits"):
    found.view.depth(2)
  # Tracks are those of the frames that are left.
  assert not found.view.tracks(np.array([1])).valid[4].any()
  assert found.dataset.open("train/bare").views[0].tracks is None
  for key in ("trajs_3d", "trajs_2d"):
    with pytest.raises(ValueError, match=f"{key}/anno.npz: '{key}' holds .*not unpickled"):
      found.dataset.open(f"train/{key}")


def test_pointodyssey_of_version_1_0_has_other_axes(tmp_path):
  written = pointodyssey.write(tmp_path)
  path = tmp_path / written.scene / "anno.npz"
  stored = dict(np.load(path))
  stored["extrinsics"] = stored["extrinsics"] * np.array([1, -1, -1, 1], np.float16)[:, None]
  np.savez(path, **stored)
  with pytest.raises(ValueError, match="3D tracks project .* pixels away .* fetch version 1.2"):
    Found("pointodyssey", written)


def _annotations(root, change):
  path = only(root, "*.jgz")
  with gzip.open(path, "rt") as file:
    entries = json.load(file)
  change(entries)
  with gzip.open(path, "wt") as file:
    json.dump(entries, file)


def test_dynamicreplica(tmp_path):
  written = dynamicreplica.write(tmp_path)

  def change(entries):
    by = {(entry["camera_name"], entry["frame_number"]): entry for entry in entries}
    by["left", 1]["viewpoint"]["R"][0][0] = float("nan")
    by["left", 2]["viewpoint"]["intrinsics_format"] = "pixels"
    by["left", 3]["frame_timestamp"] = by["left", 4]["frame_timestamp"]
    entries.append("nothing")

  _annotations(tmp_path, change)
  only(tmp_path, "000000.pth").unlink()
  cut(only(tmp_path, "000004.pth"), 0.5)
  cut(only(tmp_path, "*left_0004.geometric.png"))
  found = Found("dynamicreplica", written)
  assert found.view.numbers.tolist() == [0, 3] and len(found.scene.views[1]) == 5
  found.says(r"entry \d+: viewpoint.R: .*expected 3 lists of 3 numbers, all finite. It is left out")
  found.says("viewpoint.intrinsics_format 'pixels'; expected ndc_isotropic or")
  found.says("left frame 4: time 0.133333 where frame 3 has 0.133333; expected rising times")
  found.says("entry 10: .*It is left out")
  assert not found.view.tracks(np.array([0, 1])).valid[:, 0].any()


def test_dynamicreplica_travels_light(tmp_path):
  """The real index lists hundreds of thousands of frames, and every worker process has it."""
  written = dynamicreplica.write(tmp_path)

  def change(entries):
    entries += [
      {**entry, "frame_number": 100 + number, "frame_timestamp": 10 + number / 30}
      for number in range(1000)
      for entry in entries[:2]
    ]

  plain = len(pickle.dumps(open_dataset("dynamicreplica", tmp_path)))
  _annotations(tmp_path, change)
  dataset = open_dataset("dynamicreplica", tmp_path)
  assert len(pickle.dumps(dataset)) - plain < 20 * 2000
  views = pickle.loads(pickle.dumps(dataset)).open(written.scene).views
  assert [len(view) for view in views] == [1005, 1005]


def test_dynamicreplica_files_that_are_cut(tmp_path):
  written = dynamicreplica.write(tmp_path)
  cut(only(tmp_path, "000004.pth"), 0.5)
  cut(only(tmp_path, "*left_0003.geometric.png"))
  found = Found("dynamicreplica", written)
  with pytest.raises(ValueError, match="000004.pth cannot be read as tensors"):
    found.view.tracks(np.array([3, 4]))
  with pytest.raises(ValueError, match="left_0003.geometric.png cannot be read"):
    found.view.depth(3)
  path = only(tmp_path, "*.jgz")
  cut(path)
  with pytest.raises(ValueError, match="frame_annotations_train.jgz is no list .*Fetch it again"):
    Found("dynamicreplica", written)


@pytest.mark.parametrize("kind", ["image", "depth", "trajectories"])
def test_paths_that_climb_out_are_not_followed(tmp_path, kind):
  written = dynamicreplica.write(tmp_path / "inside")
  (tmp_path / "secret.png").write_bytes(b"x")

  def change(entries):
    for entry in entries:
      if entry["camera_name"] == "left":
        entry[kind]["path"] = "../../secret.png"

  _annotations(tmp_path, change)
  found = Found("dynamicreplica", written)
  assert [view.name for view in found.scene.views] == ["right"]
  found.says("names '.*secret.png', which is outside .*train; it is not followed")


def test_paths_that_climb_out_of_the_folder_that_one_is_in(tmp_path, monkeypatch):
  matrixcity.write(tmp_path / "city", poses=True)
  path = only(tmp_path, "transforms_train.json")
  path.write_text(path.read_text().replace("../../train/", "../../../../../elsewhere/"))
  monkeypatch.chdir(tmp_path / "city")
  with pytest.raises(ValueError, match="elsewhere.*', which is outside .; it is not followed"):
    open_dataset("matrixcity", ".")


def test_one_path_that_climbs_out_loses_its_frame_alone(tmp_path):
  written = dynamicreplica.write(tmp_path)

  def change(entries):
    next(x for x in entries if x["camera_name"] == "left")["depth"]["path"] = "../../secret.png"

  _annotations(tmp_path, change)
  found = Found("dynamicreplica", written)
  assert [len(view) for view in found.scene.views] == [4, 5]
  found.says("secret.png', which is outside .*train; it is not followed. The frame is left out")


def test_spring(tmp_path):
  written = spring.write(tmp_path)
  folder = tmp_path / written.scene
  edit(folder / "cam_data" / "extrinsics.txt", 1, "0 " * 16)
  edit(folder / "cam_data" / "intrinsics.txt", 2, "0 0 960 540")
  (folder / "disp1_left" / "disp1_left_0001.dsp5").unlink()
  cut(folder / "disp1_left" / "disp1_left_0004.dsp5", 0.3)
  shutil.copytree(folder / "frame_left", tmp_path / "spring" / "test" / "0003" / "frame_left")
  (tmp_path / "spring" / "test" / "0003" / "cam_data").mkdir()
  found = Found("spring", written)
  assert found.view.numbers.tolist() == [1, 4]
  found.says("extrinsics.txt, line 2: a pose that is not finite")
  found.says("extrinsics.txt, line 3: focal lengths 0, 0")
  found.says("No depth of frame 1 in .*disp1_left")
  found.says("1 scenes, such as .*0003, have no cam_data/extrinsics.txt")
  with pytest.raises(ValueError, match="disp1_left_0004.dsp5 cannot be read .*Fetch it again"):
    found.view.depth(1)


def test_spring_of_another_aspect(tmp_path):
  """The intrinsics are of another picture, and so is the depth."""
  written = spring.write(tmp_path)
  for path in (tmp_path / written.scene / "frame_left").iterdir():
    Image.open(path).resize((96, 60)).save(path)
  found = Found("spring", written)
  found.says("frame_left has pictures of 96 x 60; expected the aspect of 1920 x 1080")
  with pytest.raises(ValueError, match="depth of 96 x 54 pixels for cameras of 96 x 60"):
    found.view.depth(0)


def test_virtual_kitti(tmp_path):
  written = virtual_kitti.write(tmp_path)
  edit(only(tmp_path, "extrinsic.txt"), 1, "0 0 1 0 0")
  edit(only(tmp_path, "intrinsic.txt"), 3, "1 0 145 145 nan 37")
  with only(tmp_path, "intrinsic.txt").open("a") as file:
    file.writelines(f"{frame} 0 145 145 62 37\n" for frame in ("inf", "nan", "1e400", "2.5"))
  with only(tmp_path, "extrinsic.txt").open("a") as file:
    file.writelines(f"{frame} 0 {'1 ' * 16}\n" for frame in ("inf", "1e300"))
  shutil.rmtree(only(tmp_path, "rgb/Camera_1"))
  virtual_kitti.write(tmp_path, "Scene02/rain", numbers=(0,))
  shutil.rmtree(tmp_path / "vkitti_2.0.3_textgt" / "Scene02")
  found = Found("virtual_kitti", written)
  assert found.dataset.names == [written.scene]
  assert [view.name for view in found.scene.views] == ["Camera_0"]
  assert found.view.numbers.tolist() == [2, 4, 5]
  found.says("Scene02/rain has no camera files; unpack the archive textgt")
  found.says("extrinsic.txt, line 2: '0 0 1 0 0'; expected 18 numbers, the first 2 whole")
  found.says("intrinsic.txt, line 12: 'inf .*'; expected 6 numbers, the first 2 whole. The line is")
  found.says("intrinsic.txt, line 13: 'nan")
  found.says("extrinsic.txt, line 12: 'inf 0 .*'; expected 18 numbers, the first 2 whole")
  found.says("extrinsic.txt, line 13: '1e300 0")
  found.says("extrinsic.txt, line 4: focal lengths 145, 145 and centre nan")
  found.says("Camera_1 has 0 pictures")


def test_virtual_kitti_files_that_are_cut(tmp_path):
  written = virtual_kitti.write(tmp_path)
  for name in ("rgb_00001.jpg", "depth_00001.png", "instancegt_00001.png"):
    cut(only(tmp_path, f"Camera_0/{name}"))
  only(tmp_path, "Camera_0/rgb_00004.jpg").unlink()
  only(tmp_path, "Camera_0/depth_00005.png").unlink()
  found = Found("virtual_kitti", written)
  assert found.view.numbers.tolist() == [0, 1, 2, 5]
  found.says("No picture at .*Camera_0/rgb_00004.jpg; the frame is left out. Fetch it again")
  found.says("No depth of frame 5 in .*Camera_0; it counts as unknown")
  assert found.view.depth(0).any() and not found.view.depth(3).any()
  for read, name in (
    (found.view.image, "rgb_00001.jpg"),
    (found.view.depth, "depth_00001.png"),
    (found.view.instances, "instancegt_00001.png"),
  ):
    read(0)
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
      read(1)
  cut(only(tmp_path, "extrinsic.txt"), 0.5)
  found = Found("virtual_kitti", written)
  assert found.view.numbers.tolist() == [0, 1, 2]
  found.says(r"extrinsic.txt, line 7: .*expected 18 numbers")


def test_multicamvideo(tmp_path):
  written = multicamvideo.write(tmp_path)
  path = only(tmp_path, "camera_extrinsics.json")
  stored = json.loads(path.read_text())
  stored["frame3"]["cam01"] = "[1 0 0 0] [0 1 0 0]"
  stored["frame4"]["cam01"] = float("nan")
  stored["frame5"]["cam01"] = "[-1 0 0 0] [0 1 0 0] [0 0 1 0] [0 0 0 1] "
  stored["frame12"] = stored["frame11"]
  del stored["frame6"]["cam01"]
  path.write_text(json.dumps(stored))
  cut(only(tmp_path, "cam02.mp4"), 0.1)
  cut(only(tmp_path, "cam03.mp4"), 0.7)
  shutil.copytree(tmp_path / written.scene, tmp_path / "val" / "10basic_trajectories")
  found = Found("multicamvideo", written)
  assert found.view.numbers.tolist() == [0, 1, 2, 7, 8, 9, 10, 11]
  found.says("frame3, cam01: a pose that is not finite")
  found.says("frame4, cam01: a pose that is not finite")
  found.says("frame5, cam01: a mirror image")
  found.says("'frame6' has no cam01; it is left out")
  found.says("cam01.mp4 has 12 frames and no frame 12")
  found.says("10basic_trajectories is left out: its focal length is unknown")
  last = found.scene.views[-1]
  last.image(0)
  with pytest.raises(
    ValueError, match="cam03.mp4 (ends after|is damaged at frame).*fetch it again"
  ):
    last.image(11)


def test_multicamvideo_without_its_first_camera(tmp_path):
  written = multicamvideo.write(tmp_path, frames=2)
  only(tmp_path, "cam01.mp4").unlink()
  found = Found("multicamvideo", written)
  found.says("videos has no cam01.mp4; the camera is left out. Fetch it again")
  assert [view.name for view in found.scene.views] == ["cam02", "cam03"]
  shutil.rmtree(tmp_path / written.scene / "videos")
  with pytest.raises(ValueError, match="videos has no cam01.mp4. Fetch it again"):
    Found("multicamvideo", written)


def test_multicamvideo_cut_to_another_shape_has_no_known_lens(tmp_path):
  written = multicamvideo.write(tmp_path, cameras=2, frames=2)
  frames = [np.zeros((64, 96, 3))] * 2
  multicamvideo.video(only(tmp_path, "cam02.mp4"), frames, 15)
  found = Found("multicamvideo", written)
  assert [view.name for view in found.scene.views] == ["cam01"]
  found.says("cam02.mp4 has frames of 96 x 64 pixels; expected square ones")


def test_stereo4d(tmp_path):
  written = stereo4d.write(tmp_path)
  path = only(tmp_path, "*.npz")
  shutil.copy(path, path.with_name("gone_7.npz"))
  stored = dict(np.load(path))
  stored["camera2world"][1, 0, 0] = np.nan
  stored["timestamps"][4] = stored["timestamps"][3]
  np.savez(path, **stored)
  found = Found("stereo4d", written)
  assert found.view.numbers.tolist() == [0, 2, 3, 5]
  found.says("frame 1: a pose that is not finite")
  found.says("frame 4: time 130.13 where frame 3 has 130.13; expected rising times")
  found.says("1 of 2 clips, such as .*gone_7.npz, have no gone_7-left_rectified.mp4")
  # Tracks are those of the frames that are left.
  assert found.view.tracks(np.array([1])).valid[0].sum() == 0
  for key, wrong in (
    ("track_indices", None),
    ("track_indices", np.array(3)),
    ("track_lengths", np.array([3], object)),
  ):
    np.savez(path, **{name: x for name, x in (stored | {key: wrong}).items() if x is not None})
    with pytest.raises(ValueError, match=f".npz.*{key}.*(among them|has shape|not unpickled)"):
      Found("stereo4d", written)
  stored["track_lengths"][0] += 1
  np.savez(path, **stored)
  with pytest.raises(ValueError, match="tracks whose lengths, frames and positions don't fit"):
    Found("stereo4d", written)
  np.savez(path, **stored | {"camera2world": np.zeros((20, 3, 4)), "timestamps": np.arange(20)})
  with pytest.raises(ValueError, match="has 6 frames and .*npz 20 cameras; expected as many"):
    Found("stereo4d", written)


@pytest.mark.parametrize(
  "times, kept",
  [
    ([0, 9e9, 20, 30, 40, 50, 60], [0, 2, 3, 4, 5]),
    ([9e9, 10, 20, 30, 40, 50, 60], [1, 2, 3, 4, 5]),
    ([0, 10, 20, 30, 1, 50, 60], [0, 1, 2, 3, 5]),
    ([0, 10, 10, 10, 10, 50, 60], [0, 1, 5]),
    ([6, 5, 4, 3, 2, 1, 0], [5]),
  ],
)
def test_the_fewest_frames_are_left_out_for_times_to_rise(tmp_path, times, kept):
  written = stereo4d.write(tmp_path)
  path = only(tmp_path, "*.npz")
  np.savez(path, **dict(np.load(path)) | {"timestamps": np.array(times) * 1e6})
  found = Found("stereo4d", written)
  assert found.view.numbers.tolist() == kept
  found.says("frame .: time .* where frame . has .*; expected rising times. The frame is left out")


@pytest.mark.parametrize(
  "name, write",
  [
    ("dynamicreplica", dynamicreplica.write),
    ("matrixcity", functools.partial(matrixcity.write, poses=True)),
    ("realestate10k", realestate10k.write),
    ("stereo4d", stereo4d.write),
    ("virtual_kitti", functools.partial(virtual_kitti.write, apart=False)),
  ],
)
def test_links_are_followed_and_what_may_not_be_entered_is_noted(
  tmp_path, monkeypatch, name, write
):
  write(tmp_path / "other disk")
  lost = tmp_path / "set" / "lost+found"
  lost.mkdir(parents=True)
  round_again = lost.with_name("round again")
  round_again.symlink_to(lost.parent)
  for part in (tmp_path / "other disk").iterdir():
    (lost.parent / part.name).symlink_to(part)
  may = os.access
  monkeypatch.setattr(os, "access", lambda path, how: path != lost and may(path, how))
  dataset = open_dataset(name, tmp_path / "set")
  assert [problem.partition(";")[0] for problem in dataset.problems] == [
    f"{lost} may not be read",
    f"{round_again} is a link to a folder that it lies in",
  ]
  (scene,) = dataset.names
  assert len(dataset.open(scene).views[0]) > 4


def test_stereo4d_truncated(tmp_path):
  """A video ends early, the other one at once, and so do the cameras of another clip."""
  written = stereo4d.write(tmp_path)
  path = only(tmp_path, "*.npz")
  other = path.with_name("other_7.npz")
  shutil.copy(path, other)
  video = only(tmp_path, "*left_rectified.mp4")
  shutil.copy(video, video.with_name("other_7-left_rectified.mp4"))
  cut(other)
  cut(video, 0.7)
  right = only(tmp_path, "*-right_rectified.mp4")
  right.write_bytes(right.read_bytes()[:200])
  found = Found("stereo4d", written)
  assert [view.name for view in found.scene.views] == ["left"]
  found.says("right_rectified.mp4 cannot be read as a video")
  found.view.image(0)
  with pytest.raises(ValueError, match="left_rectified.mp4 (ends after|is damaged at frame)"):
    found.view.image(5)
  with pytest.raises(ValueError, match="other_7.npz is no .npz archive, or truncated"):
    found.dataset.open("other_7")


def test_matrixcity(tmp_path):
  written = matrixcity.write(tmp_path)
  path = tmp_path / matrixcity.BLOCK / "transforms.json"
  other = path.parent.with_name("small_city_road_down")
  other.mkdir()
  (other / "transforms.json").write_text("{")
  stored = json.loads(path.read_text())
  frame = next(frame for frame in stored["frames"] if frame["frame_index"] == 9999)
  frame["rot_mat"][0][0] = float("nan")
  stored["frames"] += [{**frame, "frame_index": "10001"}, "nothing"]
  path.write_text(json.dumps(stored))
  (path.parent / "0010.png").unlink()
  cut(only(tmp_path, "0008.exr"))
  found = Found("matrixcity", written)
  assert found.view.numbers.tolist() == [7, 8, 10000]
  found.says("frame 9999: a pose that is not finite")
  found.says(r"transforms.json: frames.5..frame_index: '10001'.* The frame is left out")
  found.says(r"transforms.json: frames.6..file_path: None.* The frame is left out")
  found.says("No picture at .*0010.png")
  found.says("small_city_road_down/transforms.json: not valid JSON .*The block is left out")
  with pytest.raises(ValueError, match="0008.exr cannot be read .*Fetch it again"):
    found.view.depth(1)


def test_matrixcity_paths_that_climb_out_are_not_followed(tmp_path):
  matrixcity.write(tmp_path / "city", poses=True)
  path = only(tmp_path, "transforms_train.json")
  path.write_text(path.read_text().replace("../../train/", "../../../../../elsewhere/"))
  with pytest.raises(ValueError, match="names '.*elsewhere.*', which is outside .*city; it is not"):
    open_dataset("matrixcity", tmp_path / "city")
