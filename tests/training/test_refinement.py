"""Per-scene optimisation finds what changed in a scene, moving things among it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.formats.scene import SceneMetadata, read_scene, write_scene
from d4s_jax.formats.video import write_video
from d4s_jax.geometry import harmonics
from d4s_jax.geometry.deformation import deform, identity
from d4s_jax.render import render
from d4s_jax.training import refinement
from d4s_jax.training.refinement import refine, refining
from d4s_jax.types import Cameras, DynamicGaussians, Views
from tests.support import run_command

FRAMES, SIDE, COUNT = 4, 24, 40
STEPS = 150


def scene(times=FRAMES) -> DynamicGaussians:
  rng = np.random.default_rng(0)
  means = rng.uniform(-1, 1, (COUNT, 3)) + (0, 0, 4)
  still = identity(times, COUNT)
  ramp = jnp.linspace(0, 0.3, times)[:, None]
  return DynamicGaussians(
    means=jnp.asarray(means, jnp.float32),
    quaternions=jnp.tile(jnp.array([1.0, 0, 0, 0]), (COUNT, 1)),
    raw_scales=jnp.full((COUNT, 3), 1.0),
    footprints=jnp.full(COUNT, 0.1),
    opacities=jnp.full(COUNT, 0.7),
    harmonics=harmonics.from_rgb(jnp.asarray(rng.random((COUNT, 3)), jnp.float32)),
    times=jnp.linspace(0, 1, times),
    # Half of them go to the right.
    deformation=still.at[:, : COUNT // 2, 0].add(ramp),
  )


def pictures(dynamic: DynamicGaussians) -> Views:
  lens = jnp.array([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1.0]])
  cameras = Cameras(
    world_from_camera=jnp.tile(jnp.eye(4), (len(dynamic.times), 1, 1)),
    intrinsics=jnp.tile(lens, (len(dynamic.times), 1, 1)),
    height=SIDE,
    width=SIDE,
  )
  rendering = render(deform(dynamic), cameras)
  return Views(images=rendering.image, depth=rendering.depth, cameras=cameras, times=dynamic.times)


def test_colours_and_motion_are_found():
  truth = scene()
  views = pictures(truth)
  start = dataclasses.replace(
    truth, harmonics=0.5 * truth.harmonics, deformation=identity(FRAMES, COUNT)
  )
  asked = []

  def proceed(number):
    asked.append(number)
    return number < STEPS

  fitted = refine(start, views, extent=4.0, key=jax.random.key(0), proceed=proceed)
  assert asked == list(range(STEPS + 1))
  errors = [float(jnp.mean(jnp.abs(pictures(x).images - views.images))) for x in (start, fitted)]
  assert errors[1] < 0.3 * errors[0]
  went = np.asarray(fitted.deformation[-1, :, 0] - fitted.deformation[0, :, 0])
  assert went[: COUNT // 2].mean() > went[COUNT // 2 :].mean() + 0.03
  np.testing.assert_allclose(jnp.linalg.norm(fitted.deformation[..., 3:7], axis=-1), 1, atol=1e-5)
  np.testing.assert_allclose(jnp.linalg.norm(fitted.quaternions, axis=-1), 1, atol=1e-5)


def transparent(scene: DynamicGaussians, share: float) -> DynamicGaussians:
  """The same scene in which a share of the slots is room."""
  kept = np.arange(COUNT) < (1 - share) * COUNT
  return dataclasses.replace(scene, opacities=jnp.where(kept, scene.opacities, 0))


def test_copies_of_a_gaussian_look_like_it():
  opacity = np.array([0.3, 0.9, 0.9])
  copies = np.array([1, 2, 5])
  fainter, factor = refinement.shared(opacity, copies)
  np.testing.assert_allclose(1 - (1 - fainter) ** copies, opacity)
  assert factor[0] == 1 and 0.5 < factor[2] < factor[1] < 1
  # Of two: o / (o' + o' - o'^2 / sqrt(2)).
  half = fainter[1]
  np.testing.assert_allclose(factor[1], 0.9 / (2 * half - half**2 / np.sqrt(2)))


def test_room_is_moved_to_where_opaque_gaussians_are_and_the_picture_stays():
  start = transparent(scene(), 0.5)
  fields = refinement._fields(start)
  moved, footprints, which = refinement._relocated(
    fields, start.footprints, np.random.default_rng(0)
  )
  assert set(range(COUNT // 2, COUNT)) <= set(which.tolist())
  after = refinement._scene(start, moved, footprints)
  assert (np.asarray(after.opacities) > 0.005).all()
  places = {tuple(x) for x in np.asarray(start.means[: COUNT // 2]).tolist()}
  assert {tuple(x) for x in np.asarray(after.means).tolist()} <= places
  # A copy moves as what it is a copy of.
  assert (np.asarray(after.deformation[-1, :, 0]) > 0.29).any()
  errors = np.abs(np.asarray(pictures(after).images) - np.asarray(pictures(start).images))
  assert errors.mean() < 0.02


def some_steps(count):
  start, views = transparent(scene(), 0.5), pictures(scene())
  states = refining(start, views, extent=4.0, key=jax.random.key(1), steps=130)
  current = next(states)
  for _ in range(count - 1):
    current = next(states)
  return current()


def test_room_comes_to_life_and_the_count_stays():
  after = some_steps(104)
  assert after.means.shape == (COUNT, 3)
  assert (np.asarray(after.opacities) > 0.005).mean() > 0.9


def test_moments_of_what_moved_are_forgotten():
  moments = refinement._OPTIMIZER.init(refinement._fields(scene()))
  ones = jax.tree.map(jnp.ones_like, moments)
  moved = np.array([3, 7])
  after = jax.tree.map(lambda x: refinement._without(x, moved), ones)
  assert after.count == ones.count
  kept = ~np.isin(np.arange(COUNT), moved)
  for fields in (after.mu, after.nu):
    for name, x in fields.items():
      rows = np.asarray(x)
      assert (rows[kept] == 1).all() and (rows[moved] == 0).all(), name


def test_nothing_is_compiled_after_the_first_steps_whatever_moves(monkeypatch):
  monkeypatch.setattr(refinement, "_EVERY", 3)
  counts, compiled = [], []
  whole = refinement._relocated

  def relocated(*args):
    found = whole(*args)
    counts.append(len(found[2]))
    # As many are dead again, and one more: what moves differs in number every time.
    opacities = np.array(found[0]["opacities"])
    opacities[: 5 + len(counts)] = -9
    return found[0] | {"opacities": jnp.asarray(opacities)}, *found[1:]

  def listen(event, duration, **more):
    del duration, more
    if "backend_compile" in event:
      compiled.append(event)

  monkeypatch.setattr(refinement, "_relocated", relocated)
  start, views = transparent(scene(), 0.5), pictures(scene())
  states = refining(start, views, extent=4.0, key=jax.random.key(1), steps=100)
  # As a fit is warmed up: its start and a step.
  next(states)()
  before = list(compiled)
  jax.monitoring.register_event_duration_secs_listener(listen)
  for _ in range(15):
    next(states)()
  assert len(set(counts)) > 3 and compiled == before, (counts, len(compiled))


@pytest.mark.slow
def test_steps_are_the_same_twice():
  for one, other in zip(*(jax.tree.leaves(some_steps(104)) for _ in range(2))):
    np.testing.assert_array_equal(one, other)


def test_the_command_improves_a_scene_and_refuses_other_videos(tmp_path, capsys):
  truth = scene()
  views = pictures(truth)
  metadata = SceneMetadata(cameras=views.cameras, times=truth.times, prompt="", package_version="0")
  grey = dataclasses.replace(truth, harmonics=0 * truth.harmonics)
  write_scene(tmp_path / "scene", grey, metadata)
  video = np.asarray(views.images)
  write_video(tmp_path / "true.mp4", video, 8)
  write_video(tmp_path / "short.mp4", video[:2], 8)
  arguments = [f"--scene={tmp_path}/scene", f"--output={tmp_path}/better", "--steps=40"]
  with pytest.raises(SystemExit):
    run_command("refine", *arguments, f"--video={tmp_path}/short.mp4")
  assert "2 frames and the scene 4 cameras" in capsys.readouterr().err
  # Nor may it take the place of its start.
  with pytest.raises(SystemExit):
    run_command("refine", *arguments, f"--video={tmp_path}/true.mp4", f"--output={tmp_path}/scene")
  assert "is the scene itself" in capsys.readouterr().err
  run_command("refine", *arguments, f"--video={tmp_path}/true.mp4")
  said = capsys.readouterr()
  before, after = map(float, re.findall(r"([\d.]+) dB", said.out))
  assert after > before + 1 and "fewer than five frames" in said.err
  better, told = read_scene(tmp_path / "better")
  assert told.checkpoint == "unknown, refined in 40 steps"
  assert np.isfinite(np.asarray(better.means)).all()
  assert (tmp_path / "better" / "preview.png").is_file()


def test_the_command_warns_when_frames_that_were_not_fitted_get_worse(tmp_path, capsys):
  truth = scene(times=5)
  views = pictures(truth)
  metadata = SceneMetadata(cameras=views.cameras, times=truth.times, prompt="", package_version="0")
  write_scene(tmp_path / "scene", truth, metadata)
  # All but the frame that is held out are of something else.
  video = 1 - np.asarray(views.images)
  video[4] = 1 - video[4]
  write_video(tmp_path / "other.mp4", video, 8)
  arguments = [f"--scene={tmp_path}/scene", f"--video={tmp_path}/other.mp4", "--steps=20"]
  run_command("refine", *arguments, f"--output={tmp_path}/worse")
  said = capsys.readouterr()
  fitted, held = re.findall(r"([\d.]+) dB before, ([\d.]+) dB after", said.out)
  assert float(fitted[1]) > float(fitted[0]) and float(held[1]) < float(held[0])
  assert "warning: the result is worse than its start on frames that were not fitted" in said.err
