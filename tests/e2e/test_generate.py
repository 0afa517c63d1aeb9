"""From a photograph to videos, through the commands and the files between them."""

import collections
import datetime
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import d4s_jax
from d4s_jax.formats import provenance
from d4s_jax.formats.cameras import write_trajectory
from d4s_jax.formats.images import read_image, write_image
from d4s_jax.formats.scene import read_scene
from d4s_jax.formats.video import read_video
from d4s_jax.geometry.trajectories import trajectory
from d4s_jax.models.system import System
from d4s_jax.pipeline import PROMPT, detection
from d4s_jax.types import Cameras
from d4s_jax.watermark import keys
from tests.support import random_params, run_command, small_config, write_run

FRAMES, SIDE = 5, 16
FILES = {"scene.safetensors", "scene.json", "video.mp4", "depth.mp4", "preview.png"}


def as_a_new_process(**settings):
  """Forgets what was compiled, and where it is kept."""
  jax.clear_caches()
  for name, value in ({"compilation_cache_dir": None} | settings).items():
    jax.config.update(f"jax_{name}", value)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
  """Programs are kept on disk, as for a user; counts of what JAX says of them."""
  counts = collections.Counter()

  def count(event, **_):
    counts[event.rpartition("/")[2]] += 1

  # All of them: whether a small one takes a second is chance.
  new = {"enable_compilation_cache": True, "persistent_cache_min_compile_time_secs": 0.0}
  names = (*new, "compilation_cache_dir", "compilation_cache_max_size")
  old = {name: getattr(jax.config, f"jax_{name}") for name in names}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.monitoring.register_event_listener(count)
    as_a_new_process(**new)
    yield counts
    as_a_new_process(**old)
    jax.monitoring.unregister_event_listener(count)


@pytest.fixture(scope="module")
def place(tmp_path_factory, compiled):
  """A folder with a run of random parameters, a portrait of odd size, and its scene."""
  folder = tmp_path_factory.mktemp("generate")
  config = small_config()
  system = System.build(config.model.to_dict())
  write_run(folder / "run", config, random_params(system), step=7)
  photo = np.random.default_rng(0).random((53, 37, 3), dtype=np.float32)
  write_image(folder / "photo.png", photo)
  as_a_new_process()
  compiled.clear()
  generate(folder, "scene", "--trajectory=spiral", "--seed=5")
  return folder


@pytest.fixture(scope="module")
def second(place, compiled):
  """What JAX says of programs while it generates another scene of the size, which is not marked."""
  assert compiled["cache_misses"] > 10
  as_a_new_process()
  compiled.clear()
  arguments = ("--trajectory=forward", "--seed=9", "--prompt=another", "--nowatermark")
  generate(place, "bare", *arguments)
  return dict(compiled)


def generate(folder, output, *arguments):
  run_command(
    "generate",
    f"--image={folder / 'photo.png'}",
    f"--checkpoint={folder / 'run'}",
    f"--output={folder / output}",
    *arguments,
  )


def render(folder, output, *arguments):
  run_command(
    "render_scene", f"--scene={folder / 'scene'}", f"--output={folder / output}", *arguments
  )
  return read_video(folder / output)


def test_a_photograph_becomes_a_scene_folder(place):
  folder = place / "scene"
  assert {path.name for path in folder.iterdir()} == FILES
  dynamic, metadata = read_scene(folder)
  assert dynamic.means.shape == (128, 3)
  assert dynamic.deformation.shape == (FRAMES, 128, 10)
  np.testing.assert_allclose(metadata.times, np.linspace(0, 1, FRAMES), atol=1e-6)
  cameras = metadata.cameras
  np.testing.assert_allclose(cameras.world_from_camera, trajectory("spiral", FRAMES), atol=1e-6)
  assert (cameras.height, cameras.width) == (SIDE, SIDE)
  # A portrait keeps its whole width, so 60 degrees stay 60 degrees.
  focal = SIDE / 2 / np.tan(np.radians(30))
  np.testing.assert_allclose(cameras.intrinsics[:, 0, 0], focal, rtol=1e-5)
  assert metadata.prompt == PROMPT
  assert metadata.package_version == d4s_jax.__version__
  assert (metadata.seed, metadata.checkpoint) == (5, "run, step 7")
  assert len(metadata.config_hash) == 64


def test_a_second_scene_compiles_nothing(second):
  assert second["cache_hits"] > 10 and "cache_misses" not in second


@pytest.mark.usefixtures("second")
def test_what_is_generated_is_marked_unless_asked_otherwise(place):
  for name in ("", "video.mp4", "depth.mp4"):
    assert detection.detect(place / "scene" / name, keys.PUBLIC).log10_false < -6
    assert detection.detect(place / "bare" / name, keys.PUBLIC).log10_false > -3
  said = provenance.read(place / "scene" / "video.mp4")
  assert said == provenance.read(place / "scene") == provenance.read(place / "scene/preview.png")
  assert said["model"] == "run, step 7" and len(said["checkpoint_hash"]) == 64
  made = datetime.datetime.fromisoformat(said["date"])
  assert abs((datetime.datetime.now(datetime.UTC) - made).total_seconds()) < 3600
  # The same weights have the same hash.
  assert provenance.read(place / "bare")["checkpoint_hash"] == said["checkpoint_hash"]


def test_without_a_checkpoint_the_shipped_weights_serve(place, tmp_path):
  photo = f"--image={place / 'photo.png'}"
  run_command("generate", photo, "--trajectory=up", "--steps=2", f"--output={tmp_path / 'scene'}")
  dynamic, metadata = read_scene(tmp_path / "scene")
  assert metadata.checkpoint == "shipped tiny"
  assert dynamic.deformation.shape == (9, 4096, 10)
  assert np.abs(dynamic.deformation[-1, :, :3] - dynamic.deformation[0, :, :3]).max() > 0.01


def test_its_pictures_can_be_looked_at(place):
  folder = place / "scene"
  for name in ("video.mp4", "depth.mp4"):
    frames = read_video(folder / name)
    assert frames.shape == (FRAMES, 256, 256, 3)
    assert frames.std() > 0.01, "something is drawn"
    assert np.abs(frames[-1] - frames[0]).mean() > 0.005, "it changes along the path"
  sheet = read_image(folder / "preview.png")
  # Five rows of six cells of 160 pixels, captions and margins.
  assert sheet.shape[0] > 5 * 160 and sheet.shape[1] > 6 * 160


def test_the_scene_is_drawn_along_other_paths_at_any_size(place):
  ahead = render(place, "ahead.mp4", "--trajectory=forward", "--frames=7", "--height=48")
  assert ahead.shape == (7, 48, 48, 3)
  back = render(place, "back.mp4", "--trajectory=backward", "--frames=7", "--height=48")
  # Both paths begin at the photograph; the compression of the videos differs a little.
  np.testing.assert_allclose(ahead[0], back[0], atol=0.1)
  assert np.abs(ahead[-1] - back[-1]).mean() > 0.02
  depth = render(
    place, "deep/ahead.mp4", "--trajectory=forward", "--frames=7", "--height=48", "--depth"
  )
  assert depth.shape == ahead.shape
  assert np.abs(depth - ahead).mean() > 0.02


def test_a_file_sets_frames_and_lens(place):
  # A wider lens than the scene's own, in pixels of 48 x 48.
  focal = np.array([[20, 0, 24], [0, 20, 24], [0, 0, 1]], np.float32)
  cameras = Cameras(
    world_from_camera=trajectory("up", 3),
    intrinsics=np.tile(focal, (3, 1, 1)),
    height=48,
    width=48,
  )
  write_trajectory(place / "path.json", cameras)
  frames = render(place, "file.mp4", f"--trajectory={place / 'path.json'}", "--height=48")
  assert frames.shape == (3, 48, 48, 3)
  own = render(place, "own.mp4", "--trajectory=up", "--frames=3", "--height=48")
  assert np.abs(frames[0] - own[0]).mean() > 0.02


def test_another_scene_takes_the_place(place):
  shutil.copytree(place / "scene", place / "other")
  (place / "other" / "notes.txt").write_text("mine")
  arguments = (
    "--trajectory=down:distance=0.2",
    "--fov=40",
    "--steps=2",
    "--guidance=constant",
    "--scale=2",
  )
  generate(place, "other", *arguments, "--prompt=a cat")
  before, _ = read_scene(place / "scene")
  after, metadata = read_scene(place / "other")
  assert np.abs(after.means - before.means).max() > 1e-3
  assert (metadata.seed, metadata.prompt) == (0, "a cat")
  np.testing.assert_allclose(metadata.cameras.world_from_camera[-1, :3, 3], [0, 0.2, 0], atol=1e-6)
  assert (place / "other" / "notes.txt").read_text() == "mine"
  assert {path.name for path in (place / "other").iterdir()} == FILES | {"notes.txt"}
  old, new = (read_video(place / name / "video.mp4") for name in ("scene", "other"))
  assert np.abs(old - new).mean() > 0.01


def test_an_interrupted_drawing_leaves_the_old_scene_whole(place, monkeypatch):
  shutil.copytree(place / "scene", place / "kept")
  before = {path.name: path.read_bytes() for path in (place / "kept").iterdir()}

  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("d4s_jax.pipeline.preview.write_views", interrupt)
  with pytest.raises(KeyboardInterrupt):
    generate(place, "kept", "--trajectory=up", "--steps=1")
  assert {path.name: path.read_bytes() for path in (place / "kept").iterdir()} == before
  assert not [path for path in place.iterdir() if path.name.startswith(".")]
