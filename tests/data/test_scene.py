"""A scene's pictures agree with its geometry: depth, instances, tracks, poses, colours."""

import numpy as np
import pytest
from einops import rearrange, reduce

from d4s_jax.data.synthetic import SyntheticScenes, textures
from d4s_jax.data.synthetic.description import FIRST_BODY
from d4s_jax.geometry import cameras as camera_geometry
from d4s_jax.types import Cameras

FRAMES, SIZE = 5, 64


@pytest.fixture(scope="module")
def scenes():
  return SyntheticScenes(seed=3, kind="dynamic", frames=FRAMES, height=SIZE, width=SIZE, views=4)


@pytest.fixture(scope="module")
def clips(scenes):
  return [(scenes.setting(i), scenes.read(i)) for i in range(12)]


def near(images, pixels):
  """Values of the 3x3 pixels around image-plane positions of one image: [n 9]."""
  column, row = np.floor(pixels).astype(int).T
  offsets = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 2)
  rows = np.clip(row[:, None] + offsets[:, 1], 0, SIZE - 1)
  columns = np.clip(column[:, None] + offsets[:, 0], 0, SIZE - 1)
  return images[rows, columns]


def standing_camera(setting, index=0):
  intrinsics = camera_geometry.intrinsics_from_fov(setting.fov, SIZE, SIZE)
  pose = setting.path.keys[index].astype(np.float32)
  return lambda count: Cameras(
    world_from_camera=np.tile(pose, (count, 1, 1)),
    intrinsics=np.tile(intrinsics, (count, 1, 1)),
    height=SIZE,
    width=SIZE,
  )


def test_unprojected_pixels_lie_on_the_surfaces_they_show(clips):
  for setting, clip in clips:
    scene = setting.scene
    world = camera_geometry.unproject(clip.source.depth, clip.source.cameras)
    room = world @ scene.room_from_world[:3, :3].T + scene.room_from_world[:3, 3]
    for number, body in enumerate(scene.bodies):
      frame, row, column = np.nonzero(clip.instances == number + 1)
      rotation, center = body.motion.pose(clip.source.times[frame].astype(np.float64))
      offset = room[frame, row, column] - center
      local = np.einsum("nji,nj->ni", rotation, offset) / body.half
      x, y, z = local.T
      if body.shape == "sphere":
        surface = np.linalg.norm(local, axis=1)
      elif body.shape == "box":
        surface = np.abs(local).max(axis=1)
      elif body.shape == "cylinder":
        surface = np.maximum(np.hypot(x, z), np.abs(y))
      else:
        surface = 1 + np.maximum(np.hypot(x, z) - (y + 1) / 2, np.abs(y) - 1)
      np.testing.assert_allclose(surface, 1, atol=1e-4)  # float32 depth of metres


def test_places_are_of_human_size_and_hold_the_camera(clips):
  for setting, clip in clips:
    scene, place = setting.scene, setting.scene.place
    world = camera_geometry.unproject(clip.source.depth, clip.source.cameras)
    room = world @ scene.room_from_world[:3, :3].T + scene.room_from_world[:3, 3]
    background = room[clip.instances == 0]
    # Nothing is under the floor, and much of it is seen.
    assert background[:, 1].max() < 1e-3
    assert np.mean(np.abs(background[:, 1]) < 1e-3) > 0.1
    if place.kind == "room":
      assert np.all((background > place.low - 1e-3) & (background < place.high + 1e-3))
    else:
      assert np.linalg.norm(background - place.sky.center, axis=1).max() < place.sky.radius + 1e-3
    eyes = np.concatenate([view.cameras.world_from_camera for view in (clip.source, clip.target)])
    eyes = eyes[:, :3, 3] @ scene.room_from_world[:3, :3].T + scene.room_from_world[:3, 3]
    assert np.all(eyes[:, 1] < -0.3)
    assert 0.8 <= -scene.room_from_world[1, 3] <= 2.1
    assert 2 < np.median(clip.source.depth) < 15
    assert min(clip.source.depth.min(), clip.target.depth.min()) > 0.3


def test_depth_jumps_only_at_the_borders_of_instances():
  scenes = SyntheticScenes(seed=4, kind="static", frames=1, height=SIZE, width=SIZE, views=0)
  rooms = [i for i in range(20) if scenes.setting(i).scene.place.kind == "room"]
  jumps = 0
  for index in rooms:
    clip = scenes.read(index)
    depth, instances = clip.source.depth[0], clip.instances[0]
    jump = np.abs(np.diff(np.log(depth), axis=1)) > 0.3
    assert np.all(np.diff(instances, axis=1)[jump] != 0)
    jumps += jump.sum()
  assert jumps > 50


def test_tracks_agree_with_depth_instances_and_poses(clips):
  for _, clip in clips:
    tracks = clip.tracks
    assert tracks.valid.all() and tracks.visible.any(axis=1).all()
    pixels, depth = camera_geometry.project(
      rearrange(tracks.points, "n f c -> f n c"), clip.source.cameras
    )
    for frame in range(FRAMES):
      seen = tracks.visible[:, frame]
      around = near(clip.source.depth[frame], pixels[frame, seen])
      z = depth[frame, seen]
      # A point lies between pixel centres: within the depths around it, and 3% because a round
      # solid recedes fast at its outline. Few are on slivers that no pixel centre shows.
      within = (z > 0.97 * around.min(axis=1)) & (z < 1.03 * around.max(axis=1))
      assert np.mean(within) > 0.98
      inside = (pixels[frame] >= 0).all(axis=-1) & (pixels[frame] < SIZE).all(axis=-1)
      hidden = ~seen & inside & (depth[frame] > 0)
      around = near(clip.source.depth[frame], pixels[frame, hidden])
      # What is hidden has something before it.
      assert np.all(depth[frame, hidden] > 0.97 * around.min(axis=1))
      assert not np.any(seen & ~inside)


def test_half_of_the_tracks_move_with_a_solid(clips):
  for setting, clip in clips:
    travelled = np.linalg.norm(clip.tracks.points - clip.tracks.points[:, :1], axis=-1).max(axis=1)
    assert np.mean(travelled > 1e-3) >= 0.45  # a point on the axis of a spin stands
    # Points of one solid keep their distances.
    for number, body in enumerate(setting.scene.bodies):
      if not body.motion.moves:
        continue
      frame, row, column = np.nonzero(clip.instances == number + 1)
      world = camera_geometry.unproject(clip.source.depth, clip.source.cameras)
      points = world[frame, row, column][:: max(1, len(frame) // 6)]
      since = clip.source.times[frame][:: max(1, len(frame) // 6)]
      moved = setting.scene.positions(
        points, np.full(len(points), number + 1), since, np.linspace(0, 1, 7)
      )
      apart = np.linalg.norm(moved[:, None] - moved[None], axis=-1)
      np.testing.assert_allclose(apart, np.repeat(apart[..., :1], 7, axis=-1), atol=1e-4)


def test_colour_of_a_static_surface_is_the_same_in_every_view():
  scenes = SyntheticScenes(seed=5, kind="static", frames=5, height=SIZE, width=SIZE, views=0)
  # Orbits turn most: colour that depended on the direction of view would change.
  orbits = [i for i in range(40) if scenes.setting(i).path.name == "orbit"]
  differences, wrong = [], []
  for index in orbits[:6]:
    clip = scenes.read(index)
    scene = scenes.setting(index).scene
    row, column = (x.ravel() for x in np.meshgrid(np.arange(4, 60, 3), np.arange(4, 60, 3)))
    point = camera_geometry.unproject(clip.source.depth, clip.source.cameras)[0, row, column]
    points = np.repeat(point[:, None], 5, axis=1)
    seen = scene.sees(
      points, clip.instances[0, row, column], clip.source.cameras, clip.source.times
    )
    pixels, _ = camera_geometry.project(points[:, 4][None], clip.source.cameras[4:])
    image = clip.source.images[4]
    around = near(clip.instances[4], pixels[0])
    # Away from borders, where colours mix.
    clear = seen[:, 4] & (around == clip.instances[0, row, column][:, None]).all(axis=1)
    there = bilinear(image, pixels[0, clear])
    differences.append(np.abs(there - clip.source.images[0, row, column][clear]))
    wrong.append(np.abs(np.roll(there, 7, axis=0) - clip.source.images[0, row, column][clear]))
  differences, wrong = np.concatenate(differences), np.concatenate(wrong)
  # The level of detail follows the distance, and pixels are interpolated here.
  assert np.median(differences) < 0.01
  assert np.median(differences) < 0.2 * np.median(wrong)


def bilinear(image, pixels):
  x, y = (pixels - 0.5).T
  column, row = np.floor(x).astype(int), np.floor(y).astype(int)
  column, row = np.clip(column, 0, SIZE - 2), np.clip(row, 0, SIZE - 2)
  x, y = (x - column)[:, None], (y - row)[:, None]
  upper = image[row, column] * (1 - x) + image[row, column + 1] * x
  lower = image[row + 1, column] * (1 - x) + image[row + 1, column + 1] * x
  return upper * (1 - y) + lower * y


def test_time_changes_only_what_moves(clips):
  static = SyntheticScenes(seed=6, kind="static", frames=1, height=SIZE, width=SIZE, views=0)
  setting = static.setting(0)
  times = np.array([0.0, 0.4, 1.0])
  images, depth, instances = setting.scene.render(standing_camera(setting)(3), times)
  for x in (images, depth, instances):
    np.testing.assert_array_equal(x[1:], np.repeat(x[:1], 2, axis=0))
  for setting, _ in clips:
    images, depth, instances = setting.scene.render(standing_camera(setting)(3), times)
    moving = [i + 1 for i, body in enumerate(setting.scene.bodies) if body.motion.moves]
    still = ~np.isin(instances, moving).any(axis=0)
    np.testing.assert_array_equal(depth[0][still], depth[2][still])
    assert not np.array_equal(images[0], images[2])


def test_edges_are_smoothed_towards_a_finer_picture(scenes, monkeypatch):
  # Without texture: a finer picture has finer detail.
  monkeypatch.setattr(textures, "lookup", lambda texture, u, v, footprint: np.full_like(u, 0.5))
  smoothed, hard = [], []
  for index in range(4):
    setting = scenes.setting(index)
    cameras = standing_camera(setting)(1)
    finer = camera_geometry.resize(cameras, 4 * SIZE, 4 * SIZE)
    image, _, instances = setting.scene.render(cameras, np.zeros(1))
    truth = reduce(
      setting.scene.render(finer, np.zeros(1))[0], "1 (h i) (w j) c -> h w c", "mean", i=4, j=4
    )
    with monkeypatch.context() as patch:
      patch.setattr(type(setting.scene), "_smooth", lambda *args: args[-2])
      unsmoothed, _, _ = setting.scene.render(cameras, np.zeros(1))
    edge = np.zeros((SIZE, SIZE), bool)
    edge[:, 1:] |= np.diff(instances[0], axis=1) != 0
    smoothed.append(np.abs(image[0] - truth)[edge].mean())
    hard.append(np.abs(unsmoothed[0] - truth)[edge].mean())
  assert np.mean(smoothed) < 0.5 * np.mean(hard)


def test_render_of_one_view_equals_render_of_many(clips):
  setting, clip = clips[0]
  for index in (0, 3):
    views = clip.target
    image, depth, _ = setting.scene.render(
      views.cameras[index : index + 1], views.times[index : index + 1]
    )
    np.testing.assert_array_equal(image[0], views.images[index])
    np.testing.assert_array_equal(depth[0], views.depth[index])


def test_every_surface_of_places_and_solids_occurs(clips):
  kinds = {setting.scene.place.kind for setting, _ in clips}
  assert kinds == {"room", "courtyard", "landscape"}
  assert FIRST_BODY == 7 and max(clip.instances.max() for _, clip in clips) >= 3
