import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.geometry import cameras as pinhole
from d4s_jax.geometry.deformation import at, identity
from d4s_jax.pipeline import drawing, shot
from d4s_jax.render import render
from d4s_jax.types import DynamicGaussians, Rendering

# All tests share these sizes, and so one compiled drawing.
COUNT, SIDE = 120, 64
SMALL, GIANT = 0.0, 4.0
reference = jax.jit(functools.partial(render, backend="reference"))


def scene(log_scale, key):
  """Gaussians in a slab ahead of the camera, which move 1 m to the right in the second half."""
  keys = jax.random.split(key, 3)
  spread = jnp.array([[2.0, 2.0, 0.5]])
  means = jax.random.normal(keys[0], (COUNT, 3)) * spread + jnp.array([[0.0, 0.0, 4.0]])
  moved = identity(3, COUNT).at[2, :, 0].set(1.0)
  return DynamicGaussians(
    means=means,
    quaternions=jnp.broadcast_to(jnp.array([1.0, 0, 0, 0]), (COUNT, 4)),
    raw_scales=jnp.full((COUNT, 3), log_scale),
    footprints=jnp.full(COUNT, 0.2),
    opacities=jax.random.uniform(keys[1], (COUNT,), minval=0.2),
    harmonics=jax.random.normal(keys[2], (COUNT, 1, 3)),
    times=jnp.array([0.0, 0.5, 1.0]),
    deformation=moved,
  )


@pytest.fixture(scope="module")
def cameras():
  path = shot.camera_path("spiral", 6)
  return shot.photograph(np.zeros((SIDE, SIDE, 3), np.float32), path, SIDE, SIDE)[1]


def test_each_camera_is_drawn_at_its_own_time(key, cameras, capsys):
  dynamic = scene(SMALL, key)
  times = np.array([0, 0.25, 0.5, 0.6, 0.75, 1.0], np.float32)
  drawn = drawing.draw(dynamic, cameras, times, "draw the test")
  assert drawn.image.shape == (6, SIDE, SIDE, 3)
  assert isinstance(drawn.depth, np.ndarray)
  want = reference(at(dynamic, times), cameras)
  # Two renderers, float32: the order of sums differs.
  np.testing.assert_allclose(drawn.image, want.image, atol=1e-4)
  np.testing.assert_allclose(drawn.alpha, want.alpha, atol=1e-4)
  assert "draw the test" in capsys.readouterr().err
  # Time counts: the same cameras at the first time see something else.
  still = drawing.draw(dynamic, cameras, np.zeros(6), "draw")
  want = reference(at(dynamic, np.zeros(6, np.float32)), cameras)
  np.testing.assert_allclose(still.image, want.image, atol=1e-4)
  np.testing.assert_allclose(still.image[2], drawn.image[2], atol=1e-6)
  assert np.abs(still.image[4] - drawn.image[4]).max() > 0.05


@pytest.mark.parametrize(
  ("count", "moving", "sizes"),
  # Views of one moment are drawn one after another, in calls of up to 8.
  [(1, True, [1]), (9, True, [3] * 3), (49, True, [4] * 13), (7, False, [1] * 7)],
)
def test_no_call_draws_more_views_than_it_has_to(key, cameras, monkeypatch, count, moving, sizes):
  drawn = []

  def blank(gaussians, cameras, **options):
    del gaussians, options
    jax.debug.callback(lambda x: drawn.append(len(x)), cameras.intrinsics)
    alpha = jnp.zeros((*cameras.intrinsics.shape[:-2], cameras.height, cameras.width))
    image = jnp.stack([alpha] * 3, axis=-1) + cameras.intrinsics[..., :1, :1, None]
    return Rendering(image=image, alpha=alpha, depth=alpha, overflow=jnp.zeros(len(alpha), int))

  monkeypatch.setattr(drawing, "render", blank)
  # Of a size that no other test draws: what is compiled here must not be found there.
  focal = np.arange(1.0, count + 1)[:, None, None] * np.ones((3, 3))
  views = dataclasses.replace(
    cameras[np.zeros(count, int)], intrinsics=focal.astype(np.float32), height=8, width=8
  )
  times = np.linspace(0, 1, count) * moving
  found = drawing.draw(scene(SMALL, key), views, times, "")
  jax.effects_barrier()
  assert drawn == sizes
  # And each is the one that was asked for.
  np.testing.assert_array_equal(found.image[:, 0, 0, 0], focal[:, 0, 0])


def test_a_renderer_without_room_gets_more(key, cameras, capsys, monkeypatch):
  # The renderers of TPUs and GPUs have room for a number of intersections.
  monkeypatch.setattr(drawing, "render", functools.partial(render, backend="tiled"))
  drawing._draw.clear_cache()
  dynamic = scene(GIANT, key)  # Every Gaussian covers every tile.
  drawn = drawing.draw(dynamic, cameras, np.zeros(6), "draw")
  assert drawn.overflow.max() == 0
  want = reference(at(dynamic, jnp.zeros(6)), cameras)
  np.testing.assert_allclose(drawn.image, want.image, atol=1e-4)
  assert "no room" not in capsys.readouterr().err

  monkeypatch.setattr(drawing, "_MOST_ROOM", 0)
  drawn = drawing.draw(dynamic, cameras, np.zeros(6), "draw")
  assert drawn.overflow.min() > 0, "the scene must not fit into the default room"
  assert f"no room to draw {drawn.overflow.sum()} Gaussian" in capsys.readouterr().err
  drawing._draw.clear_cache()


def test_a_scene_drawn_larger_is_the_same_picture_sampled_more_finely(key, cameras):
  dynamic = scene(-2.0, key)  # Narrower than a pixel.
  times = np.linspace(0, 1, 6)
  plain = drawing.draw(dynamic, cameras, times, "")
  own = drawing.draw(dynamic, cameras, times, "", cameras)
  for name in ("image", "depth", "alpha"):
    np.testing.assert_array_equal(getattr(own, name), getattr(plain, name))
  # Every third pixel has the middle of a pixel of the small picture.
  large = pinhole.resize(cameras, 3 * SIDE, 3 * SIDE)
  found = drawing.draw(dynamic, large, times, "", cameras)
  np.testing.assert_allclose(found.image[:, 1::3, 1::3], own.image, atol=1e-4)
  gaps = drawing.draw(dynamic, large, times, "")
  assert gaps.alpha.mean() < 0.8 * own.alpha.mean()
  # Smaller than it was made, a pixel sees what a pixel sees.
  small = pinhole.resize(cameras, SIDE // 2, SIDE // 2)
  less = [drawing.draw(dynamic, small, times, "", *made).image for made in ((), (cameras,))]
  np.testing.assert_array_equal(*less)


def test_each_view_of_a_zoom_has_the_blur_of_its_own_focal_length(key, cameras):
  dynamic = scene(-2.0, key)
  times = np.linspace(0, 1, 6)
  lenses = np.array(cameras.intrinsics)
  # In, out and in again: views that are drawn together are not neighbours.
  lenses[:, [0, 1], [0, 1]] *= np.array([1, 3, 1.5, 1, 3, 1])[:, None]
  zooming = dataclasses.replace(cameras, intrinsics=lenses)
  whole = drawing.draw(dynamic, zooming, times, "", cameras)
  for view in (1, 2, 4):
    alone = drawing.draw(dynamic, zooming[view : view + 1], times[view : view + 1], "", cameras)
    np.testing.assert_allclose(whole.image[view], alone.image[0], atol=1e-4)
  # Where the lens is the scene's own nothing is blurred more than without a zoom.
  plain = drawing.draw(dynamic, cameras, times, "", cameras)
  np.testing.assert_allclose(whole.image[[0, 3, 5]], plain.image[[0, 3, 5]], atol=1e-4)
  # Three times as near, three times as wide, to a step of the zoom.
  blur = drawing.footprint(3.0, 1.0)
  near = render(at(dynamic, times[[1]]), zooming[1:2], blur=blur)
  np.testing.assert_allclose(whole.image[[1]], near.image, atol=0.03)
  sharp = drawing.draw(dynamic, zooming, times, "")
  assert sharp.alpha[1].mean() < 0.8 * whole.alpha[1].mean()


def test_places_and_rates_of_a_video(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "folder.mp4").mkdir()
  drawing.check_video(tmp_path / "new" / "deep" / "a.MP4", 24)
  drawing.check_video(tmp_path / "a.mp4", 0.5)
  for path, fps, error, message in [
    ("a.avi", 24, ValueError, "ends in .mp4 or .gif or .webp"),
    ("folder.mp4", 24, IsADirectoryError, "is a folder"),
    ("file/a.mp4", 24, NotADirectoryError, "file is a file"),
    ("a.mp4", 0, ValueError, "0 frames per second"),
    ("a.mp4", float("nan"), ValueError, "nan frames per second"),
  ]:
    with pytest.raises(error, match=message):
      drawing.check_video(tmp_path / path, fps)
