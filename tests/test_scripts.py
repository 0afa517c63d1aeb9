"""The scripts that ship, show and score weights: their parts on small inputs."""

import dataclasses
import itertools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d4s_jax.data.synthetic import SyntheticScenes
from d4s_jax.models import shipped
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, fitting, refinement, run_folder, validation
from tests import gallery, ship
from tests.benchmarks import fitted, generation, heldout, overfit
from tests.support import small_config


@pytest.fixture(scope="module")
def clip():
  return SyntheticScenes(split="heldout", kind="dynamic", frames=5, views=2).read(0)


def batched(clip):
  return jax.tree.map(lambda x: np.asarray(x)[None], dataclasses.replace(clip, text=np.zeros(1)))


def test_pixels_lifted_to_their_depth_redraw_the_video_best(clip):
  batch = batched(clip)
  again = dataclasses.replace(batch, target=batch.source)
  depths = {"true": batch.source.depth, "one": jnp.full_like(batch.source.depth, 3.0)}
  draw = jax.jit(heldout.drawn_lifted)
  found = {
    name: validation.psnr(draw(again, depth), batch.source.images).mean()
    for name, depth in depths.items()
  }
  assert found["true"] > 20
  assert found["true"] > found["one"] + 1


def test_scores_of_pixels_and_scenes():
  target, mask = np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2), bool)
  image = target.copy()
  image[0, 0, 0] = 0.1
  assert np.isnan(heldout.masked_psnr(image, target, mask))
  mask[0, 0, 0] = True
  assert heldout.masked_psnr(image, target, mask) == pytest.approx(20)
  ours, theirs = [2.0, 3.0, 4.0, np.nan], [1.0, 1.5, 3.5, 7.0]
  assert heldout.summary(ours).split() == "3.000 +- 0.816 (n 3)".split()
  assert heldout.above(ours, theirs).startswith("+1.00 [+0.50, +1.")


@pytest.mark.parametrize("seconds", [-1.0, 0.05])
def test_a_fit_ends_when_its_time_is_over(seconds, clip, monkeypatch):
  def refine(start, views, *, extent, key, proceed):
    made = 0
    while proceed(made):
      made += 1
    return start, made

  ticks = itertools.count(0, 0.02)
  monkeypatch.setattr(fitted, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
  monkeypatch.setattr(refinement, "refine", refine)
  monkeypatch.setattr(fitting, "extent", lambda *_: 1.0)
  (start, made), steps = fitted.fit("start", clip.source, seconds, 0)
  assert start == "start"
  assert made == steps
  assert made == (0 if seconds < 0 else 2)


@pytest.mark.parametrize(("obeys", "expected"), [(True, 1.0), (False, 0.5)])
def test_steering_of_a_model_that_obeys_and_one_that_does_not(obeys, expected, clip):
  def generate(image, cameras, text):
    way = 1.0 if not obeys or "right" in text else -1.0
    moved = np.zeros((2, 3, 10), np.float32)
    moved[1, :, 0] = way * np.array([1, 1, -0.1])
    return SimpleNamespace(deformation=moved, opacities=np.ones(3))

  texts = ("A ball rolls left.", "A leftover stands.", "A cone slides right and a box left.")
  clips = [dataclasses.replace(clip, text=text) for text in texts]
  right, ordered = generation.steering(generate, clips)
  assert right == [expected] * 2
  assert ordered == [float(obeys)] * 2
  assert generation.share([0, 1, 1, 1]).startswith("75% [")


def test_the_gallery_shows_five_pictures_side_by_side(clip, tmp_path):
  batch = batched(clip)
  source = dataclasses.replace(batch, target=jax.tree.map(lambda x: x[:, ::4], batch.source))
  scene = jax.tree.map(lambda x: np.array(x)[0], heldout.lifted(source, batch.source.depth))
  scene.deformation[-1, :, 0] += 0.5
  assert np.all(gallery.motion_as_color(scene).harmonics[:, 0, 0] > scene.harmonics[:, 0, 0].min())
  image = np.asarray(clip.source.images[0])
  frames = gallery.animation(scene, image, clip.source.cameras)
  assert frames.shape == (gallery.FRAMES, gallery.SIDE, 5 * gallery.SIDE, 3)
  given, drawn, _, _, moves = np.split(frames[0], 5, axis=1)
  assert validation.psnr(drawn, given) > 18
  red, green, _ = moves.mean((0, 1))
  assert red > green + 0.2
  gallery.write(tmp_path / "a.webp", frames)
  with Image.open(tmp_path / "a.webp") as shown:
    assert shown.n_frames == gallery.FRAMES


def test_photographs_of_the_gallery(tmp_path):
  own = gallery.photographs(None)
  assert len(own) == 4 and all(file.is_file() for file in own.values())
  (tmp_path / "a_red_ball.jpg").touch()
  assert gallery.photographs(tmp_path) == {"a red ball": tmp_path / "a_red_ball.jpg"}


def test_shipping_writes_half_precision_and_scores_it(tmp_path, monkeypatch, capsys):
  config = small_config()
  config.stage, config.data.source = "autoencoder", "synthetic"
  run_folder.write_config(tmp_path / "run", config.to_dict(), {})
  rng = np.random.default_rng(0)
  params = {
    part: {"layer": {"kernel": rng.normal(size=(3, 5)).astype(np.float32)}}
    for part in ("autoencoder", "text_encoder", "ldrm")
  }
  monkeypatch.setattr(System, "abstract", lambda _: None)
  monkeypatch.setattr(checkpoint, "read_model", lambda *_: (dict(params), 7))
  (tmp_path / "weights").mkdir()
  monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "weights")
  monkeypatch.setattr(
    sys, "argv", ["ship.py", f"--run={tmp_path / 'run'}", "--parts=autoencoder,text_encoder"]
  )
  given = []

  def validate(params, batches):
    given.append(params["autoencoder"])
    return {"clips": len(batches) * len(batches[0].source.images)}

  monkeypatch.setattr(validation, "make_validation", lambda *_: validate)
  ship.main()
  told = capsys.readouterr().out
  assert "step 7, float32, 64 held-out clips of synthetic: {'clips': 64}" in told
  assert "float16, synthetic: {'clips': 64}" in told
  for exact, rounded in zip(*map(jax.tree.leaves, given), strict=True):
    np.testing.assert_array_equal(np.asarray(exact, np.float16), rounded)
  assert {file.stem for file in (tmp_path / "weights").iterdir()} == {
    "tiny_autoencoder",
    "tiny_text_encoder",
  }


def test_views_of_overfitting_are_picked_and_joined(clip):
  views = overfit.join(clip.source, overfit.pick(clip.target, np.array([1])))
  assert views.images.shape == (6, 64, 64, 3)
  assert views.times[-1] == clip.target.times[1]
