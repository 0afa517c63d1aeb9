"""All nine datasets through `curate --output`: clips of the shards are those of the readers."""

import re

import numpy as np
import pytest

from d4s_jax.curation import stages
from d4s_jax.data.datasets.registry import DATASETS
from d4s_jax.data.datasets.windows import Windows
from d4s_jax.data.recorded import Recorded
from d4s_jax.data.shards import read_manifest
from tests.curation import local
from tests.data.datasets.test_conventions import WRITERS
from tests.support import run_command

FEW = {
  "tartanair": {"frames": 5},
  "spring": {"frames": 5},
  "multicamvideo": {"cameras": 2, "frames": 6},
}
SIZE = {"frames": 5, "height": 40, "width": 44, "views": 4, "tracks": 30}
ALL = [f"--limit={name}=:" for name in stages.limits({})]


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_clips_of_shards_are_those_of_the_reader(name, tmp_path, monkeypatch, capsys):
  local.use(monkeypatch)
  written = WRITERS[name].write(tmp_path / "päckchen", **FEW.get(name, {}))
  arguments = [f"--dataset={name}", f"--source={written.root}", f"--output={tmp_path}/out"]
  run_command("curate", *arguments, "--set=shortest=5", "--set=side=480", *ALL)
  said = capsys.readouterr()
  assert "0 quarantined" in said.out
  assert re.search(r"Curating \w+: 100%.*(\d+)/\1 .*clip", said.err)
  entries = read_manifest(tmp_path / "out")
  line = DATASETS[name]
  assert entries and all(x.metric == line.metric and x.dynamic == line.dynamic for x in entries)
  split = entries[0].split or "train"
  how = {"distance": 0.0 if line.metric else 1.0, **SIZE}
  kept = Recorded(tmp_path / "out", split, **how)
  read = Windows(name, written.root, split, **how)
  for index, one in enumerate(kept._entries[:2]):
    scene = one.name.removeprefix(f"{name}/").rpartition("/")[0]
    assert scene in read._names
    monkeypatch.setattr(read, "_names", [scene])
    tracked = False
    for seed in range(5):
      clips = [x.draw(i, np.random.default_rng(seed)) for x, i in ((read, 0), (kept, index))]
      _compare(*clips, line)
      tracked |= np.asarray(clips[1].tracks.valid).any()
    # Of two cameras, one has tracks.
    assert tracked == line.tracks
    monkeypatch.undo()
    local.use(monkeypatch)


def _compare(read, kept, line):
  assert kept.scale == read.scale and kept.dynamic == read.dynamic
  for one, other in ((read.source, kept.source), (read.target, kept.target)):
    np.testing.assert_allclose(other.times, one.times, atol=1e-6)
    # JPEG of a resized picture, against a resized picture.
    assert np.abs(other.images - one.images).mean() < 0.01
    for field in ("world_from_camera", "intrinsics"):
      np.testing.assert_allclose(
        getattr(other.cameras, field), getattr(one.cameras, field), rtol=1e-5, atol=2e-4
      )
    assert one.depth.any() == line.depth
    np.testing.assert_array_equal(other.depth > 0, one.depth > 0)
    np.testing.assert_allclose(other.depth, one.depth, rtol=1e-3)
  for field in ("visible", "valid"):
    np.testing.assert_array_equal(getattr(kept.tracks, field), getattr(read.tracks, field))
  np.testing.assert_allclose(kept.tracks.points, read.tracks.points, atol=1e-3)
  if line.instances:
    assert read.instances.any()
    np.testing.assert_array_equal(kept.instances, read.instances)
