"""The nine readers against fixtures of independent code: cameras, depth and pixels agree."""

import pickle
import types

import numpy as np
import pytest

from d4s_jax.data.datasets.registry import DATASETS, open_dataset
from tests.data.datasets import checks
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

WRITERS = {
  "dynamicreplica": dynamicreplica,
  "matrixcity": matrixcity,
  "multicamvideo": multicamvideo,
  "pointodyssey": pointodyssey,
  "realestate10k": realestate10k,
  "spring": spring,
  "stereo4d": stereo4d,
  "tartanair": tartanair,
  "virtual_kitti": virtual_kitti,
}
# And one that is also packed in another way.
CASES = {
  **WRITERS,
  "realestate10k in chunks": types.SimpleNamespace(write=realestate10k.write_chunk),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
  """A dataset's line in the registry, the dataset, its scene, and the truth."""
  name = request.param.split()[0]
  written = CASES[request.param].write(tmp_path_factory.mktemp(name) / "päckchen 數據")
  # As it comes to a worker process.
  dataset = pickle.loads(pickle.dumps(open_dataset(name, written.root)))
  return DATASETS[name], dataset, dataset.open(written.scene), written


def test_all_are_here():
  assert set(WRITERS) == set(DATASETS)


def test_what_is_offered_is_there_and_nothing_is_wrong(case):
  line, dataset, scene, written = case
  assert dataset.names == [written.scene]
  assert scene.problems == () and dataset.problems == []
  assert (scene.metric, scene.dynamic) == (line.metric, line.dynamic)
  assert [view.name for view in scene.views] == list(written.eyes)
  assert len(scene.views) == min(line.cameras, 3)  # the fixture of ten cameras has three
  for kind in ("depth", "instances", "tracks"):
    assert (getattr(scene.views[0], kind) is not None) == getattr(line, kind), kind


def test_cameras(case):
  _, _, scene, written = case
  for view in scene.views:
    checks.check_cameras(view, written)
    checks.check_motion(view, written)


def test_pixels_and_depth(case):
  _, _, scene, written = case
  for view in scene.views:
    checks.check_pixels(view, written)


def test_views_of_a_moment_share_a_world(case):
  _, _, scene, written = case
  first = scene.views[0]
  for other in scene.views[1:]:
    assert other.numbers.tolist() == first.numbers.tolist()
    number = int(first.numbers[-1])
    ours = other.cameras.world_from_camera[-1, :3, 3] - first.cameras.world_from_camera[-1, :3, 3]
    true = written.eyes[other.name][number].center - written.eyes[first.name][number].center
    np.testing.assert_allclose(ours, written.place(true), atol=checks.TOLERANCE)
