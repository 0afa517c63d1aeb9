"""All nine datasets through `curate --output`: clips of the shards are those of the readers."""

import re

import numpy as np
import pytest

from configs import joint
from d4s_jax.curation import stages
from d4s_jax.data.datasets.registry import DATASETS
from d4s_jax.data.datasets.windows import Windows
from d4s_jax.data.recorded import Recorded
from d4s_jax.data.shards import read_manifest
from d4s_jax.training import loop
from d4s_jax.training.log import read_metrics
from tests.curation import local
from tests.data.datasets.test_conventions import WRITERS
from tests.support import run_command

FEW = {
  "tartanair": {"frames": 5},
  "spring": {"frames": 5},
  "multicamvideo": {"cameras": 2, "frames": 6},
}
# Of as many frames as two clips of `tiny` need.
LONG = {
  **dict.fromkeys(DATASETS, {"frames": 18}),
  "matrixcity": {"numbers": range(18)},
  "realestate10k": {"stamps": range(10**6, 19 * 10**6, 10**6)},
  "virtual_kitti": {"numbers": range(18)},
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
  assert re.search(r"Judging clips: 100%.*(\d+)/\1 .*clip", said.err)
  entries = read_manifest(tmp_path / "out")
  about = DATASETS[name]
  assert entries and all(x.metric == about.metric for x in entries)
  assert all(x.dynamic == about.dynamic for x in entries)
  # Parts for training alone, or without splits: what is held out is decided when they are read.
  assert {x.split for x in entries} == {""}
  how = {"distance": 0.0 if about.metric else 1.0, **SIZE}
  kept = Recorded(tmp_path / "out", **how)
  read = Windows(name, written.root, **how)
  for index, one in enumerate(kept._entries[:2]):
    scene = one.name.removeprefix(f"{name}/").rpartition("/")[0]
    assert scene in read._names
    monkeypatch.setattr(read, "_names", [scene])
    tracked = False
    for seed in range(5):
      clips = [x.draw(i, np.random.default_rng(seed)) for x, i in ((read, 0), (kept, index))]
      _compare(*clips, about)
      tracked |= np.asarray(clips[1].tracks.valid).any()
    # Of two cameras, one has tracks.
    assert tracked == about.tracks
    monkeypatch.undo()
    local.use(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_dataset_is_curated_on_ray_and_trained_on(name, tmp_path, capsys):
  """Two steps of the joint stage of `tiny`, from shards that were written by workers of Ray.

  Of two clips of one place the second is held out.
  """
  written = WRITERS[name].write(tmp_path / "päckchen", **LONG[name])
  arguments = [f"--dataset={name}", f"--source={written.root}", f"--output={tmp_path}/shards"]
  run_command("curate", *arguments, "--set=frames=9", "--set=shortest=9", *ALL)
  assert "2 of 2 clips of 1 scenes or files were kept, 0 quarantined" in capsys.readouterr().out
  config = joint.get_config("tiny")
  config.steps, config.heldout.batches, config.optimizer.warmup = 2, 1, 1
  config.batch_size, config.data.source = 2, f"shards:{tmp_path}/shards"
  config.data.distance = 0.0 if DATASETS[name].metric else 2.0
  assert loop.run(config, tmp_path / "run")
  told = read_metrics(tmp_path / "run", "train")
  assert [one["step"] for one in told] == [1, 2]
  assert all(np.isfinite(one["loss"]) for one in told)


def _compare(read, kept, about):
  assert kept.scale == read.scale and kept.dynamic == read.dynamic
  for one, other in ((read.source, kept.source), (read.target, kept.target)):
    np.testing.assert_allclose(other.times, one.times, atol=1e-6)
    # JPEG of a resized picture, against a resized picture.
    assert one.images.dtype == other.images.dtype == np.uint8
    assert np.abs(other.images - one.images.astype(np.float32)).mean() < 0.01 * 255
    for field in ("world_from_camera", "intrinsics"):
      np.testing.assert_allclose(
        getattr(other.cameras, field), getattr(one.cameras, field), rtol=1e-5, atol=2e-4
      )
    assert one.depth.any() == about.depth
    np.testing.assert_array_equal(other.depth > 0, one.depth > 0)
    np.testing.assert_allclose(other.depth, one.depth, rtol=1e-3)
  for field in ("visible", "valid"):
    np.testing.assert_array_equal(getattr(kept.tracks, field), getattr(read.tracks, field))
  np.testing.assert_allclose(kept.tracks.points, read.tracks.points, atol=1e-3)
  if about.instances:
    assert read.instances.any()
    np.testing.assert_array_equal(kept.instances, read.instances)
