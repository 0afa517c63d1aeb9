"""Scores of scenes: closed forms of depth, motion that is known, cycles."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.evaluation import geometry
from d4s_jax.geometry.deformation import identity
from d4s_jax.geometry.harmonics import from_rgb
from d4s_jax.types import Cameras, DynamicGaussians

SIDE = 16


def wall(move=(0.0, 0.0, 0.0), depth=4.0) -> DynamicGaussians:
  """Gaussians over all that the camera sees, which move as one from time 0 to 1."""
  places = np.stack(np.meshgrid(*[np.linspace(-4, 4, 41)] * 2), axis=-1).reshape(-1, 2)
  means = np.concatenate([places, np.full((len(places), 1), depth)], axis=1)
  count = len(means)
  deformation = identity(2, count).at[1, :, :3].add(jnp.asarray(move))
  return DynamicGaussians(
    means=jnp.asarray(means, jnp.float32),
    quaternions=jnp.tile(jnp.array([1.0, 0, 0, 0]), (count, 1)),
    raw_scales=jnp.zeros((count, 3)),
    footprints=jnp.full(count, 0.2),
    opacities=jnp.full(count, 0.9),
    harmonics=from_rgb(jnp.asarray(np.random.default_rng(0).random((count, 3)), jnp.float32)),
    times=jnp.array([0.0, 1.0]),
    deformation=deformation,
  )


def camera(count) -> Cameras:
  lens = np.array([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1]], np.float32)
  poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
  return Cameras(
    world_from_camera=poses, intrinsics=np.tile(lens, (count, 1, 1)), height=SIDE, width=SIDE
  )


def test_depth_scores_have_their_closed_forms():
  truth = np.random.default_rng(0).uniform(1, 10, (2, 8, 8))
  found = geometry.depth_scores(1.1 * truth, truth, align="none")
  np.testing.assert_allclose(found["absolute_relative"], 0.1)
  assert found["delta1"] == 1
  assert geometry.depth_scores(1.3 * truth, truth, align="none")["delta1"] == 0
  for align in ("median", "scale", "scale and shift"):
    found = geometry.depth_scores(3 * truth, truth, align=align)
    np.testing.assert_allclose(found["absolute_relative"], 0, atol=1e-9)
    np.testing.assert_allclose(found["scale"], 1 / 3)
  shifted = geometry.depth_scores(2 * truth + 1, truth, align="scale and shift")
  np.testing.assert_allclose(shifted["absolute_relative"], 0, atol=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("align", geometry.ALIGNMENTS)
def test_depth_scores_are_those_of_torchmetrics_after_an_alignment_by_scipy(align):
  torch, torchmetrics = pytest.importorskip("torch"), pytest.importorskip("torchmetrics")
  rng = np.random.default_rng(0)
  truth = rng.uniform(0.5, 100, (3, 8, 10))
  truth[0, :4] = 0
  found = 0.3 * truth * rng.uniform(0.7, 1.4, truth.shape) + 2
  found[1, 2:5] = 0
  known = (truth > 0) & (truth <= 80) & (found > 0)
  a, b = found[known], truth[known]
  if align == "median":
    a = a * scipy.stats.scoreatpercentile(b, 50) / scipy.stats.scoreatpercentile(a, 50)
  elif align == "scale":
    a = a * scipy.optimize.lsq_linear(a[:, None], b).x[0]
  elif align == "scale and shift":
    line = scipy.stats.linregress(a, b)
    a = line.slope * a + line.intercept
  a, b = torch.from_numpy(a), torch.from_numpy(b)
  relative = torchmetrics.functional.mean_absolute_percentage_error(a, b)
  near = torchmetrics.functional.classification.binary_accuracy(
    (torch.maximum(a / b, b / a) < 1.25).float(), torch.ones(len(a))
  )
  got = geometry.depth_scores(found, truth, align=align)
  np.testing.assert_allclose(got["absolute_relative"], relative, rtol=1e-6)
  np.testing.assert_allclose(got["delta1"], near, rtol=1e-6)


def test_depth_scores_leave_out_what_is_unknown_and_say_what_is_not_covered():
  truth = np.full((1, 4, 4), 2.0)
  truth[0, 0], depth = 0, np.full((1, 4, 4), 2.0)
  truth[0, 1], depth[0, 2] = 100, 0
  found = geometry.depth_scores(depth, truth, cap=80)
  np.testing.assert_allclose([found["absolute_relative"], found["covered"]], [0, 0.5])
  with pytest.raises(ValueError, match="No pixel"):
    geometry.depth_scores(np.zeros((1, 4, 4)), truth)
  with pytest.raises(ValueError, match="expected one of none, median"):
    geometry.depth_scores(depth, truth, align="mean")


def test_the_depth_of_a_wall_is_where_it_stands():
  found = geometry.scene_depth(wall(), camera(2), np.array([0, 1], np.float32))
  np.testing.assert_allclose(found, 4, rtol=1e-3)


def test_displacement_is_that_of_what_is_seen():
  flow = geometry.displacement(
    wall((0.3, -0.1, 0.2)), camera(1)[0], np.array([0, 0.5, 1], np.float32)
  )
  for number, share in enumerate((0, 0.5, 1)):
    want = np.broadcast_to(share * np.array([0.3, -0.1, 0.2]), flow[number].shape)
    np.testing.assert_allclose(flow[number], want, atol=1e-3)


def test_end_point_errors_of_true_tracks():
  source = SyntheticScenes(kind="dynamic", views=0, height=SIDE, width=SIDE)
  clip = source.read(0)
  tracks, count = clip.tracks, 12
  times = np.asarray(clip.source.times)
  moving = np.linspace(0, 1, len(times))[None, :, None] * np.array([0.3, 0, 0])
  points = np.zeros((count, len(times), 3)) + (0, 0, 4)
  points[: count // 2] += moving
  seen = np.ones((count, len(times)), bool)
  tracks = dataclasses.replace(tracks, points=points, visible=seen, valid=seen)
  views = dataclasses.replace(clip.source, cameras=camera(len(times)))
  clip = dataclasses.replace(clip, tracks=tracks, source=views)
  still = geometry.motion_scores(wall(), clip)
  np.testing.assert_allclose(still["end_point"], 0.3 * np.mean(times[1:]), rtol=1e-3)
  np.testing.assert_allclose([still["over_none"], still["drift"]], [1, 0], atol=1e-3)
  right = geometry.motion_scores(wall((0.3, 0, 0)), clip)
  np.testing.assert_allclose(right["end_point"], 0, atol=1e-3)
  np.testing.assert_allclose(right["drift"], 0.3 * np.mean(times[1:]), rtol=1e-2)
  unseen = dataclasses.replace(tracks, visible=~seen)
  with pytest.raises(ValueError, match="No track"):
    geometry.motion_scores(wall(), dataclasses.replace(clip, tracks=unseen))


def test_cycle_psnr_is_that_of_the_error():
  first = np.full((4, 4, 3), 0.5)
  np.testing.assert_allclose(geometry.cycle_psnr(first, first + 0.1), 20)
  assert geometry.cycle_psnr(first, first) == np.inf
