"""Families through the command's runner, to their values: the truth scores better than damage."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from d4s_jax.data.source import open_source
from d4s_jax.evaluation import families, runner, sample_sets, tools
from d4s_jax.evaluation.camera_paths import path_error
from d4s_jax.evaluation.metrics import METRICS
from d4s_jax.evaluation.settings import Settings, Weights
from d4s_jax.formats.cameras import write_trajectory
from d4s_jax.formats.scene import SceneMetadata, write_scene
from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry.deformation import identity
from d4s_jax.geometry.harmonics import from_rgb
from d4s_jax.types import DynamicGaussians, Views

# As the user's own matcher: SIFT, so that its figures are known.
MATCHER = """
from d4s_jax.evaluation.matching import sift_features, sift_match


def match(first, second):
  return sift_match(sift_features(first), sift_features(second))
"""


def scores(folder: pathlib.Path, names: str, **options) -> dict[str, tuple[float, float]]:
  """Of the sets `good` and `bad` beside each other."""
  settings = Settings(
    **dict(
      samples=f"{folder / 'good'},{folder / 'bad'}",
      metrics=names,
      output=str(folder / "out"),
    )
    | options
  )
  found = runner.evaluate(settings)
  for row in found.rows:
    for result in row.results.values():
      assert bool(row.weights) == bool(METRICS[row.name].family.tools), row.name
      assert result.total == 1, (row.name, result)
  return {row.name: tuple(row.results[x].value for x in ("good", "bad")) for row in found.rows}


def check_ranks(found: dict[str, tuple[float, float]]) -> None:
  for name, (good, bad) in found.items():
    assert (good > bad) == (METRICS[name].better == "higher") and good != bad, (name, good, bad)


def lifted(views: Views, rng: np.random.Generator | None = None) -> DynamicGaussians:
  """A Gaussian for each pixel of the first and last frame; with `rng`, at wrong depths, tinted."""
  ends = [0, len(views.times) - 1]
  cameras, depth = views.cameras[ends], np.asarray(views.depth)[ends]
  colours = np.asarray(views.images)[ends].reshape(-1, 3)
  if rng is not None:
    depth = depth * rng.uniform(0.4, 1.6, depth.shape).astype(np.float32)
    colours = np.clip(colours + rng.normal(0, 0.1, colours.shape), 0, 1)
  origins, rays = pinhole.rays(cameras)
  forward = np.asarray(cameras.world_from_camera)[:, None, None, :3, 2]
  means = origins + rays * (depth / np.sum(rays * forward, axis=-1))[..., None]
  width = depth / np.asarray(cameras.intrinsics)[:, None, None, 0, 0]
  count = len(colours)
  return DynamicGaussians(
    means=jnp.asarray(means.reshape(-1, 3)),
    quaternions=jnp.tile(jnp.array([1.0, 0, 0, 0]), (count, 1)),
    raw_scales=jnp.full((count, 3), -0.5),
    footprints=jnp.asarray(width.reshape(-1)),
    opacities=jnp.full(count, 0.9),
    harmonics=from_rgb(jnp.asarray(colours, jnp.float32)),
    times=jnp.array([0.0, 1.0]),
    deformation=identity(2, count),
  )


def test_views_and_depth_of_a_scene_that_is_right_and_of_one_that_is_not(tmp_path):
  options = {"split": "heldout", "kind": "static", "views": 2, "frames": 5}
  options |= {"height": 40, "width": 48}
  clip = open_source("synthetic", **options).read(0)
  told = {"source": "synthetic", "options": options, "clips": {"a": 0}}
  (tmp_path / "true").mkdir()
  (tmp_path / "true" / sample_sets.SOURCE).write_text(json.dumps(told))
  metadata = SceneMetadata(
    cameras=clip.source.cameras,
    times=np.asarray(clip.source.times),
    prompt="a scene",
    package_version="0",
  )
  for name, rng in (("good", None), ("bad", np.random.default_rng(0))):
    write_scene(tmp_path / name / "a", lifted(clip.source, rng), metadata)
  names = "view_psnr,view_ssim,view_lpips,depth_abs_rel,depth_delta1"
  found = scores(tmp_path, names, reference=str(tmp_path / "true"))
  check_ranks(found)
  # So that none stands under another's name.
  good, bad = np.array(list(found.values())).T
  assert 20 < good[0] < 50 and 0.6 < good[1] < 1 and good[2] < 0.3
  # Depths that are off by 30% on average, as several Gaussians blend them.
  assert good[3] < 0.03 and 0.06 < bad[3] < 0.3 and bad[4] < 0.95 < good[4] <= 1


@pytest.mark.parity
def test_the_noise_of_pictures_is_that_of_torchmetrics():
  torch = pytest.importorskip("torch")
  image = pytest.importorskip("torchmetrics.functional.image")
  rng = np.random.default_rng(0)
  truth = rng.random((3, 12, 16, 3), np.float32)
  found = np.clip(truth + rng.normal(0, [[[[0.01]]], [[[0.1]]], [[[0.5]]]], truth.shape), 0, 1)
  a, b = (torch.from_numpy(x.astype(np.float64)) for x in (found, truth))
  want = image.peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
  np.testing.assert_allclose(families.psnr(found, truth), want, rtol=1e-6)


@pytest.fixture(scope="module")
def scenes():
  """Two static scenes with corners, each along a path."""
  options = {"split": "heldout", "kind": "static", "views": 1, "frames": 9}
  source = open_source("synthetic", **options, height=256, width=256)
  return [source.read(number).source for number in (0, 1)]


def test_matches_and_camera_paths_of_a_video_and_of_one_with_a_frame_of_another(
  scenes, tmp_path, monkeypatch
):
  walk, other = scenes
  video = np.asarray(walk.images)
  cut = video.copy()
  cut[4] = other.images[4]
  (tmp_path / "mine.py").write_text(MATCHER)
  monkeypatch.syspath_prepend(str(tmp_path))
  for name, frames in (("good", video), ("bad", cut)):
    (tmp_path / name).mkdir()
    np.save(tmp_path / name / "a.npy", frames)
    write_trajectory(tmp_path / name / "a.json", walk.cameras, np.asarray(walk.times))
  names = "matches_xfeat,matches_sift,matches_plug_in,pose_success"
  found = scores(tmp_path, names, matcher="mine:match")
  check_ranks(found)
  assert found["pose_success"] == (1, 0)
  assert found["matches_plug_in"] == found["matches_sift"] != found["matches_xfeat"]


def test_errors_of_a_camera_path_stand_under_their_own_names(scenes, tmp_path):
  walk, rng = scenes[0], np.random.default_rng(0)
  truth = np.asarray(walk.cameras.world_from_camera, np.float64)
  # Turned by a few degrees and moved by decimetres, each camera in its own way.
  moves = np.tile(np.eye(4), (len(truth), 1, 1))
  moves[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, 0.05, (len(truth), 3))).as_matrix()
  moves[:, :3, 3] = rng.normal(0, 0.1, (len(truth), 3))
  wrong = (truth @ moves).astype(np.float32)
  for name, poses in (("good", walk.cameras.world_from_camera), ("bad", wrong)):
    (tmp_path / name).mkdir()
    np.save(tmp_path / name / "a.npy", np.asarray(walk.images))
    cameras = dataclasses.replace(walk.cameras, world_from_camera=poses)
    write_trajectory(tmp_path / name / "a.json", cameras, np.asarray(walk.times))
  found = scores(tmp_path, "rpe_translation,rpe_rotation,ate")
  check_ranks(found)
  # The path that is found is nearly the true one, so errors of the wrong one are known.
  want = path_error(truth, wrong.astype(np.float64))
  got = [found[name][1] for name in ("rpe_translation", "rpe_rotation", "ate")]
  np.testing.assert_allclose(
    got, [want.relative_translation, want.relative_rotation, want.absolute], rtol=0.1
  )
  assert want.relative_rotation > 10 * want.relative_translation


def test_consistency_of_the_subject_and_of_the_whole(tmp_path, monkeypatch):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.ViTConfig(
    **dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
    **dict(image_size=32, patch_size=8),
  )
  transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "dino")
  monkeypatch.setattr(tools, "PUBLISHED", {"dino": {}})
  rng = np.random.default_rng(0)
  video = np.repeat(rng.random((1, 32, 32, 3), np.float32), 4, axis=0)
  mask = np.zeros_like(video)
  mask[:, 8:24, 8:24] = 1
  noise = rng.random(video.shape, np.float32)
  for place, where in (("subject", mask), ("background", 1 - mask)):
    folder = tmp_path / place
    for name, frames in (
      ("good", video),
      ("bad", np.where(where > 0.5, noise, video)),
      ("masks", mask),
    ):
      (folder / name).mkdir(parents=True)
      np.save(folder / name / "a.npy", frames)
    names = "subject_consistency,subject_consistency_segmented"
    found = scores(
      *(folder, names),
      masks=str(folder / "masks"),
      weights=Weights(dino=str(tmp_path / "dino")),
    )
    whole, segmented = found.values()
    assert (whole[0], segmented[0]) == pytest.approx((100, 100)) and whole[1] < 99.9
    # What happens behind the subject doesn't count.
    assert (segmented[1] < 99.9) == (place == "subject")
    assert place == "subject" or segmented[1] == pytest.approx(100)
