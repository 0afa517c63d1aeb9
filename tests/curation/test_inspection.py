"""The inspection of a download: what it counts, what it finds, what it draws."""

import json
import os
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d4s_jax.curation.agreement import carried, depth_agreement, partner
from d4s_jax.curation.report import write_report
from d4s_jax.curation.settings import Settings
from d4s_jax.data import shards
from d4s_jax.data.datasets.registry import open_dataset
from tests.data.datasets.writers import (
  multicamvideo,
  pointodyssey,
  realestate10k,
  virtual_kitti,
)
from tests.support import full_disk, run_command


def check(name, written, *arguments):
  """Exit status of `curate --check`."""
  try:
    run_command("curate", f"--dataset={name}", f"--source={written.root}", "--check", *arguments)
  except SystemExit as stop:
    return stop.code
  return 0


def test_a_whole_dataset(tmp_path, capsys):
  written = pointodyssey.write(tmp_path / "set")
  assert check("pointodyssey", written, f"--output={tmp_path}/report") == 0
  said = capsys.readouterr().out
  assert (
    "1 scenes, 1 cameras, 6 frames, 6 of them with depth, 1 cameras with tracks; 0 problems" in said
  )
  assert "Seen from another frame, " in said
  names = sorted(path.name for path in (tmp_path / "report").iterdir())
  assert names == ["problems.txt", "report.json", "scene_00.png"]
  report = json.loads((tmp_path / "report" / "report.json").read_text())
  assert report["scenes"] == 1 and report["problems"] == [] and report["agreement"][0] > 0.95
  assert (tmp_path / "report" / "problems.txt").read_text() == ""


def test_what_is_broken_is_listed_and_the_status_tells(tmp_path, capsys):
  written = virtual_kitti.write(tmp_path / "set", "Scene01/clone", numbers=range(3))
  virtual_kitti.write(tmp_path / "set", "Scene02/fög", numbers=range(3))
  (broken,) = written.root.rglob("Scene01/*/*/*/Camera_0/rgb_00001.jpg")
  broken.write_bytes(broken.read_bytes()[:500])
  (missing,) = written.root.rglob("Scene02/*/*/*/Camera_1/depth_00002.png")
  missing.unlink()
  (scene,) = written.root.rglob("Scene02/*/intrinsic.txt")
  assert check("virtual_kitti", written, f"--output={tmp_path}/report") == 1
  said = capsys.readouterr().out
  assert f"- {broken} cannot be read as an image" in said
  assert "- No depth of frame 2 in " in said and "Camera_1" in said
  assert "2 scenes, 4 cameras, 12 frames, 11 of them with depth" in said and "2 problems" in said
  scene.write_bytes(b"\xff\xff")
  assert check("virtual_kitti", written, f"--output={tmp_path}/report") == 1
  said = capsys.readouterr().out
  assert "- Scene02/fög is left out: " in said and "intrinsic.txt is no text" in said
  assert "1 scenes, 2 cameras, 6 frames" in said
  listed = (tmp_path / "report" / "problems.txt").read_text().splitlines()
  assert len(listed) == 2


def test_names_that_are_no_text_are_escaped_and_spoil_no_report(tmp_path, capsys):
  written = virtual_kitti.write(tmp_path / "set", "Scene01/clone", numbers=range(3))
  virtual_kitti.write(tmp_path / "set", "Scene02/fog", numbers=range(3))
  (stated,) = written.root.rglob("Scene01/*/intrinsic.txt")
  stated.write_text(stated.read_text() + "no numbers\n")
  for path in (*written.root.rglob("Scene02/fog"), stated.parents[2]):
    path.rename(os.fsdecode(os.fsencode(path) + b"\xe9"))
  assert check("virtual_kitti", written, f"--output={tmp_path}/report") == 1
  said = capsys.readouterr().out
  assert "1 scenes, 2 cameras, 6 frames" in said
  listed = (tmp_path / "report" / "problems.txt").read_text()
  assert r"'Scene02/fog\udce9': a name that is no text; the scene is left out. Rename its" in listed
  assert rf"{stated.parents[2].name}\udce9/Scene01/clone/intrinsic.txt, line" in listed
  report = json.loads((tmp_path / "report" / "report.json").read_text())
  assert report["problems"] == listed.splitlines()
  # A manifest and its report name such files too.
  problem = os.fsdecode(b"caf\xe9.png is damaged")
  told = {"unit": "a", "problems": [problem], "quarantined": True, "reason": problem}
  (tmp_path / shards.MANIFEST).write_bytes(shards.line(told))
  write_report(tmp_path, Settings(), [problem])
  assert (tmp_path / "report.md").read_text().count(r"caf\udce9.png is damaged") == 3


def test_some_frames_are_read_where_all_would_take_long(tmp_path, capsys):
  for clip in "abcde":
    written = realestate10k.write(tmp_path / "set", clip)
  # In a scene that isn't drawn either.
  (broken,) = written.root.rglob("b/100100000.png")
  broken.write_bytes(broken.read_bytes()[:200])
  report = f"--output={tmp_path}/report"
  assert check("realestate10k", written, report) == 1
  assert check("realestate10k", written, report, "--frames=2") == 0
  capsys.readouterr()


def test_a_truncated_video_is_told_once(tmp_path, capsys):
  written = multicamvideo.write(tmp_path / "set", cameras=2, frames=6)
  (video,) = written.root.rglob("cam02.mp4")
  video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
  assert check("multicamvideo", written, f"--output={tmp_path}/report") == 1
  listed = (tmp_path / "report" / "problems.txt").read_text().splitlines()
  assert len(listed) == 1 and "cam02.mp4 is damaged at frame" in listed[0]
  capsys.readouterr()


@pytest.mark.parametrize("mistake", ["inverse", "flip", "none"])
def test_a_mistaken_convention_shows(tmp_path, mistake):
  written = virtual_kitti.write(tmp_path, numbers=range(7), ball=(0, 0, -50))
  (path,) = tmp_path.rglob("extrinsic.txt")
  header, *lines = path.read_text().splitlines()
  for place, line in enumerate(lines):
    words = line.split()
    matrix = np.array(words[2:], float).reshape(4, 4)
    if mistake == "inverse":
      matrix = np.linalg.inv(matrix)
    if mistake == "flip":
      matrix = np.diag([1.0, -1, -1, 1]) @ matrix
    lines[place] = " ".join([*words[:2], *map(str, matrix.ravel())])
  path.write_text("\n".join([header, *lines]) + "\n")
  view = open_dataset("virtual_kitti", tmp_path).open(written.scene).views[0]
  first: Any = view.depth(0)
  other = partner(view.cameras, first)
  share = depth_agreement(first, view.cameras[0], view.depth(other), view.cameras[other])
  assert share > 0.9 if mistake == "none" else share < 0.3
  # A frame carried to another camera looks like its frame, or doesn't.
  image = carried(view.image(0), first, view.cameras[0], view.cameras[other])
  there = image.any(-1)
  away = np.abs(image - view.image(other))[there].mean() if there.mean() > 0.3 else 1.0
  assert (away < 0.05) == (mistake == "none"), away


def test_depths_that_disagree_with_cameras_are_a_problem_where_nothing_moves(tmp_path, capsys):
  from tests.data.datasets.writers import matrixcity

  written = matrixcity.write(tmp_path / "set")
  shutil.rmtree(next(written.root.rglob("small_city_depth")))
  matrixcity.write(tmp_path / "other", half=False)
  shutil.copytree(
    next((tmp_path / "other").rglob("small_city_depth_float32")),
    written.root / "small_city_depth_float32",
  )
  report = f"--output={tmp_path}/report"
  assert check("matrixcity", written, report) == 0
  # As if the depth were those of other frames.
  folder = next(written.root.rglob("*_depth/*_depth"))
  files = sorted(folder.iterdir())
  contents = [path.read_bytes() for path in files]
  for path, content in zip(files, contents[2:] + contents[:2]):
    path.write_bytes(content)
  capsys.readouterr()
  assert check("matrixcity", written, report) == 1
  assert "of the depths of its first frame agree" in capsys.readouterr().out


def test_a_sheet_has_a_row_for_everything_that_is_known(tmp_path):
  heights = {}
  for name, writer in {"pointodyssey": pointodyssey, "realestate10k": realestate10k}.items():
    written = writer.write(tmp_path / name)
    check(name, written, f"--output={tmp_path}/{name}-report")
    heights[name] = Image.open(tmp_path / f"{name}-report" / "scene_00.png").height
  rows = {name: round((height - 6) / 266) for name, height in heights.items()}
  # Frames, depth, carried, tracks, path; frames, path.
  assert rows == {"pointodyssey": 5, "realestate10k": 2}


def test_the_list_and_bad_calls(tmp_path, capsys):
  run_command("curate", "--list")
  assert "stereo4d: Stereo4D" in capsys.readouterr().out
  written = realestate10k.write(tmp_path / "set")
  for arguments, message in (
    (["--dataset=kubric", "--source=.", "--check"], "Unknown dataset 'kubric'; choose one of dyn"),
    (
      ["--dataset=vidoes", "--source=.", "--output=o"],
      "dataset 'vidoes'; choose videos, or",
    ),
    (["--dataset=videos", "--source=.", "--check"], "leave it out for --dataset=videos"),
    (["--dataset=spring", "--source=none", "--check"], "No folder at none"),
    (["--dataset=spring", f"--source={written.root}", "--check"], "https://spring-benchmark.org"),
    (["--dataset=spring"], "Expected --list, or --dataset=NAME --source=DIR and --output=DIR"),
    (["--dataset=spring", "--source=.", "--check", "--frames=-1"], "--frames is -1"),
  ):
    with pytest.raises(SystemExit) as stop:
      run_command("curate", *arguments, f"--output={tmp_path}/report")
    assert stop.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
  assert not (tmp_path / "report").exists()


def test_a_full_disk_leaves_the_old_report(tmp_path, capsys):
  written = realestate10k.write(tmp_path / "set")
  report = tmp_path / "report"
  report.mkdir()
  (report / "report.json").write_text("old")
  with full_disk(100):
    assert check("realestate10k", written, f"--output={report}") == 1
  assert "File too large" in capsys.readouterr().err
  assert [path.name for path in report.iterdir()] == ["report.json"]
  assert (report / "report.json").read_text() == "old"
