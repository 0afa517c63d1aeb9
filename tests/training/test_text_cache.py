"""Prompts are embedded once, and what is read afterwards is what the encoder would compute."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.data.source import SOURCES
from d4s_jax.models.backbone import Embedded
from d4s_jax.models.system import System
from d4s_jax.training import loop, objectives, state, text_cache
from tests.support import full_disk, random_params, small_config

PROMPTS = ("a cat", "a dog on a wall", "a cat")


def build(reads_padding=False, dtype="float32"):
  config = small_config()
  config.model.dtype = dtype
  system = System.build(config.model.to_dict())
  backbone = dataclasses.replace(system.backbone, reads_padding=reads_padding)
  return dataclasses.replace(system, backbone=backbone)


@pytest.fixture(scope="module")
def tiny():
  return build(), state.flatten(random_params(build()))


@functools.cache
def scene():
  return SOURCES["synthetic"](kind="dynamic", frames=5, height=32, width=32, views=2).read(0)


def batch(system, prompts=PROMPTS):
  clips = [dataclasses.replace(scene(), text=system.tokenize(text)) for text in prompts]
  return jax.tree.map(lambda *x: np.stack(x), *clips)


def make(folder, system, params, said=None):
  return text_cache.make(
    str(folder), system.backbone, params, ([] if said is None else said).append
  )


def entries(folder):
  return sorted(folder.glob("*"))


@pytest.mark.parametrize(
  ("reads_padding", "dtype"), [(False, "float32"), (True, "bfloat16")], ids=["wan", "cogvideox"]
)
def test_cached_embeddings_are_those_of_the_encoder(reads_padding, dtype, tiny, tmp_path):
  system, params = build(reads_padding, dtype), tiny[1]
  clip = batch(system)
  embedded = make(tmp_path / "cache", system, params)(clip, params).text
  embedded = jax.tree.map(jnp.asarray, embedded)
  encode, drop = system.backbone.encode_text, jnp.array([True, False, False])
  tokens = jnp.asarray(clip.text)
  wanted = jax.jit(lambda params: [encode(params, tokens, x) for x in (None, drop)])
  # bf16: batches of other sizes may round differently, by a step or two of 2^-8.
  near = 2e-2 if dtype == "bfloat16" else 1e-5
  for dropped, want in zip((None, drop), wanted(state.unflatten(params))):
    got = encode({}, embedded, dropped)
    assert got.embeddings.dtype == want.embeddings.dtype
    np.testing.assert_array_equal(got.mask, want.mask)
    pair = (np.asarray(x.embeddings, np.float32) for x in (got, want))
    np.testing.assert_allclose(*pair, rtol=near, atol=near)
  assert len(entries(tmp_path / "cache")) == 3  # and the empty prompt


def test_a_prompt_is_embedded_once(tiny, tmp_path, monkeypatch):
  system, params = tiny
  clip, said = batch(system), []
  first = make(tmp_path, system, params, said)(clip, params).text
  assert len(said) == 1 and "compiling the text encoder" in said[0]
  times = [path.stat().st_mtime_ns for path in entries(tmp_path)]

  def refuse(cache, prompts, frozen):
    assert not prompts, "embedded again"
    return ()

  monkeypatch.setattr(text_cache.TextCache, "_embed", refuse)
  second = make(tmp_path, system, params, said)(clip, params).text
  jax.tree.map(np.testing.assert_array_equal, second, first)
  assert len(said) == 1
  assert [path.stat().st_mtime_ns for path in entries(tmp_path)] == times


def test_progress_is_said(tiny, tmp_path, monkeypatch):
  system, params = tiny
  monkeypatch.setattr(text_cache, "_OFTEN", 2)
  said = []
  make(tmp_path, system, params, said)(batch(system), params)
  assert said[1:] == [f"text cache {tmp_path}: 2 prompts embedded"]


@pytest.mark.parametrize("change", ["weight", "order", "setting"])
def test_another_encoder_finds_nothing(change, tiny, tmp_path):
  system, params = tiny
  clip = batch(system)
  first = make(tmp_path, system, params)(clip, params).text
  other = dict(params)
  name = "text_encoder/blocks/mlp_in/kernel"
  if change == "weight":
    other[name] = params[name].at[0, 0, 0].add(1e-7)
  if change == "order":
    other[name] = params[name][:, ::-1]
  if change == "setting":
    encoder = system.backbone.text_encoder.clone(max_distance=64)
    system = dataclasses.replace(
      system, backbone=dataclasses.replace(system.backbone, text_encoder=encoder)
    )
  make(tmp_path, system, other)(clip, other)
  assert len(entries(tmp_path)) == 6
  # What is not of the encoder changes nothing.
  other = params | {"ldrm/trunk/merge/kernel": params["ldrm/trunk/merge/kernel"] + 1}
  again = make(tmp_path, tiny[0], other)(clip, other).text
  jax.tree.map(np.testing.assert_array_equal, again, first)
  assert len(entries(tmp_path)) == 6


@pytest.mark.parametrize("damage", ["flipped", "truncated", "other shape", "junk"])
def test_a_damaged_entry_is_refused_with_the_remedy(damage, tiny, tmp_path):
  system, params = tiny
  clip = batch(system, ("a cat",))
  make(tmp_path, system, params)(clip, params)
  sizes = {path.stat().st_size: path for path in entries(tmp_path)}
  short, long = (sizes[size] for size in sorted(sizes))
  contents = bytearray(long.read_bytes())
  if damage == "flipped":
    contents[-40] ^= 1
  if damage == "truncated":
    contents = contents[:-1]
  if damage == "other shape":
    contents = short.read_bytes()
  if damage == "junk":
    contents = b"\xff" * 100
  long.write_bytes(contents)
  with pytest.raises(ValueError, match=rf"{long.name} is damaged.*remove this file"):
    make(tmp_path, system, params)(clip, params)
  long.unlink()
  make(tmp_path, system, params)(clip, params)


def test_a_full_disk_leaves_no_entry(tiny, tmp_path):
  system, params = tiny
  with full_disk(100), pytest.raises(OSError, match="too large"):
    make(tmp_path, system, params)
  assert not entries(tmp_path)


def test_without_a_folder_tokens_stay(tiny):
  system, params = tiny
  clip = batch(system)
  assert make("", system, params)(clip, params) is clip


def test_the_loss_is_that_without_the_cache(tiny, tmp_path):
  system, params = tiny
  clip = jax.tree.map(jnp.asarray, batch(system))
  text = make(tmp_path, system, params)(batch(system), params).text
  text = jax.tree.map(jnp.asarray, text)
  assert isinstance(text, Embedded)
  settings = objectives.Settings(
    weights={"flow_matching": 1.0}, condition_dropout=0.5, estimated_share=0.0
  )
  clean = jax.random.normal(jax.random.key(0), system.backbone.latent_shape(3, 5, 32, 32))
  # Of this key the first prompt is dropped, and the others are kept.
  key = jax.random.key(2)
  nothing = jax.tree.map(jnp.zeros_like, text.text)
  texts = [clip.text, text, text._replace(text=nothing), text._replace(empty=nothing)]

  @jax.jit
  def loss(params, text):
    changed = dataclasses.replace(clip, text=text)
    return objectives.diffusion(system, params, changed, clean, key, settings)[0]["flow_matching"]

  want, got, *others = (float(loss(state.unflatten(params), x)) for x in texts)
  # 1e-5: prompts are embedded one by one, which orders float32 sums otherwise.
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # Prompts that are kept and prompts that are dropped both count.
  assert all(abs(other / got - 1) > 1e-4 for other in others), (got, others)


def test_a_trained_encoder_is_refused_before_anything_is_written(tmp_path):
  config = small_config()
  config.stage, config.text_cache = "diffusion", str(tmp_path / "cache")
  config.trainable = ("^transformer/", "^text_encoder/")
  with pytest.raises(ValueError, match="text_cache.*trains the text encoder.*--config.trainable"):
    loop.run(config, tmp_path / "run")
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="is a file"):
    text_cache.check(str(tmp_path / "file" / "cache"), {})
  text_cache.check("", {})
