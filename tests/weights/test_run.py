"""A run leaves for PyTorch: the code beside the weights computes what ours does, on torch alone."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.formats import parts, tokenizer_files
from d4s_jax.geometry.deformation import deform
from d4s_jax.models.backbone import Text
from d4s_jax.models.system import System
from d4s_jax.models.tokenizer import make_tokenizer
from d4s_jax.pipeline import progress
from d4s_jax.training import inference, initialize, loop, state
from d4s_jax.weights import run
from tests.models.cogvideox_oracle import rotary
from tests.models.test_ldrm import make_cameras
from tests.published_tokenizers import write_umt5
from tests.support import Held, random_params, run_command, small_cogvideox, small_config, write_run

torch = pytest.importorskip("torch")

TIMES = np.array([[0.0, 0.4, 1.0], [0.1, 0.5, 0.6]], np.float32)
VARIANTS = {
  "tiny": {},
  "published": dict(
    canonical="first", degree=1, depth=3, patch=2, stem=0, pixels_per_cell=1, gaussians=90
  ),
  "flat": dict(encoding="flat"),
}


# CogVideoX, in the place of the backbone of `small_config`: 5 frames of 32 x 48 are 2 x 4 x 6
# latents.
COGVIDEOX = {
  "2b": dict(positions="sine"),
  "5b-i2v": dict(positions="learned", grid=(2, 2, 3), takes_image=True),
  "1.5-5b-i2v": dict(patch=(2, 2, 2), takes_image=True, offset=True),
}


def build(**changes):
  """A small system in another variant, and random parameters."""
  config = small_config()
  config.model.encoding = changes.pop("encoding", "plucker")
  with config.ignore_type():
    config.model.ldrm.update(changes)
  system = System.build(config.model.to_dict())
  return config, system, random_params(system, seed=5)


def module(folder):
  """The code that was written into a folder."""
  spec = importlib.util.spec_from_file_location("diff4splat_exported", folder / "diff4splat.py")
  found = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = found
  spec.loader.exec_module(found)
  return found


def tensor(x):
  return torch.from_numpy(np.array(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gaussians_equal_ours(variant, tmp_path):
  _, system, params = build(**VARIANTS[variant])
  run.export(system, Held(params)).write(tmp_path, lambda size: None)
  theirs = module(tmp_path / "diff4splat")
  # Three columns of tokens: an odd number, which the pyramid pads.
  cameras = make_cameras(2, 5, 32, 48)
  latents = jax.random.normal(jax.random.key(0), system.backbone.latent_shape(2, 5, 32, 48))
  times, sigma = jnp.asarray(TIMES), jnp.array([0.0, 0.3])

  @jax.jit
  def ours(params):
    scene, _ = system.reconstruct(params, latents, cameras, times, sigma=sigma)
    return scene, deform(scene)

  want, deformed = ours(params)
  video = system.backbone.decode(params, latents) if system.ldrm.stem else None
  ldrm, _ = theirs.load(str(tmp_path / "diff4splat"))
  with torch.no_grad():
    got = ldrm(
      *(tensor(x) for x in (latents, cameras.world_from_camera, cameras.intrinsics)),
      *((32, 48), tensor(TIMES), tensor(sigma)),
      video=None if video is None else tensor(video),
    )
    moved = theirs.at(got, 1)
  for name in got._fields:
    a, b = getattr(got, name).numpy(), np.asarray(getattr(want, name))
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()), err_msg=name)
  for name, a in zip(("means", "quaternions", "scales"), moved):
    b = np.asarray(getattr(deformed, name))[:, 1]
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()), err_msg=name)
  assert np.ptp(np.asarray(want.deformation), axis=1).max() > 0.1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A run, exported by the command."""
  folder = tmp_path_factory.mktemp("run")
  config, system, params = build()
  write_run(folder / "run", config, params)
  run_command("convert", f"--from={folder}/run", f"--to={folder}/out", "--format=torch")
  return folder / "out", system, params


@pytest.mark.parity
def test_the_backbone_with_its_cameras_equals_ours(exported, monkeypatch):
  diffusers = pytest.importorskip("diffusers")
  transformers = pytest.importorskip("transformers")
  # With it, loading needs the accelerate package; all is float32 here anyway.
  monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
  folder, system, params = exported
  backbone = system.backbone
  transformer = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer").eval()
  vae = diffusers.AutoencoderKLWan.from_pretrained(folder / "vae").eval()
  encoder = transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
  theirs = module(folder / "diff4splat")
  _, camera = theirs.load(str(folder / "diff4splat"))

  tokens = jnp.asarray(backbone.tokenizer("a cat"))[None]
  latents = jax.random.normal(jax.random.key(2), backbone.latent_shape(1, 5, 32, 48))
  maps = system.camera_maps(make_cameras(1, 5, 32, 48))

  @jax.jit
  def ours(params):
    text = backbone.encode_text(params, tokens)
    sigma = jnp.array([0.5])
    video = 2 * backbone.decode(params, latents) - 1
    return text, backbone.denoise(params, latents, sigma, text, maps), video

  text, velocity, video = ours(params)
  first = tensor(latents).movedim(-1, 1)
  with torch.no_grad():
    mask = tensor(text.mask)
    embeddings = encoder(tensor(tokens).long(), mask.long()).last_hidden_state * mask[..., None]
    arguments = first, torch.tensor([500.0]), embeddings
    without = transformer(*arguments).sample
    with theirs.condition(transformer, camera, tensor(maps)):
      got = transformer(*arguments).sample
    again = transformer(*arguments).sample
    decoded = vae.decode(first).sample
  pairs = ((embeddings, text.embeddings), (got.movedim(1, -1), velocity))
  for a, b in (*pairs, (decoded.movedim(1, -1), np.clip(video, -1, 1))):
    b = np.asarray(b)
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()))
  assert (got - without).abs().max() > 0.1
  assert torch.equal(again, without)


@pytest.mark.parity
@pytest.mark.parametrize(
  # Of nine frames, whose latents are three, the patches of two need a fourth.
  "variant, frames",
  [*((variant, 5) for variant in COGVIDEOX), ("1.5-5b-i2v", 9)],
)
def test_cogvideox_with_its_cameras_equals_ours(variant, frames, tmp_path):
  diffusers = pytest.importorskip("diffusers")
  system = System.build(
    small_cogvideox(inverted="patch" in COGVIDEOX[variant], **COGVIDEOX[variant]).model.to_dict()
  )
  params, backbone = random_params(system, seed=5), system.backbone
  run.export(system, Held(params)).write(tmp_path, lambda size: None)
  transformer = diffusers.CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer")
  theirs = module(tmp_path / "diff4splat")
  _, camera = theirs.load(str(tmp_path / "diff4splat"))

  _, count, *rest = backbone.latent_shape(2, frames, 32, 48)
  count += backbone.padding(count)
  latents = jax.random.normal(jax.random.key(2), (2, count, *rest))
  words = jax.random.normal(jax.random.key(3), (2, 24, 16))
  maps = system.camera_maps(make_cameras(2, frames, 32, 48))
  # The samples have cameras of their own.
  maps = maps.at[1].set(maps[1, ::-1])
  text = Text(words, jnp.ones(words.shape[:2], bool))
  want = jax.jit(backbone.denoise)(params, latents, jnp.array([0.5, 0.5]), text, maps, None)
  noisy = tensor(latents).movedim(-1, 2)
  if backbone.transformer.takes_image:
    noisy = torch.cat([noisy, torch.zeros_like(noisy)], 2)
  arguments = dict(
    hidden_states=noisy,
    encoder_hidden_states=tensor(words),
    timestep=torch.tensor([499.0, 499.0]),
    ofs=torch.full((1,), 2.0) if backbone.transformer.offset else None,
    image_rotary_emb=rotary(
      dict(head_dim=16) | COGVIDEOX[variant], count // backbone.patch[0], 2, 3
    ),
  )
  with torch.no_grad():
    without = transformer(**arguments).sample
    with theirs.condition(transformer, camera, tensor(maps)):
      got = transformer(**arguments).sample
    with theirs.condition(transformer, camera, tensor(maps[:1])):
      same = transformer(**arguments).sample
    again = transformer(**arguments).sample
  want = np.asarray(want)
  np.testing.assert_allclose(got.movedim(2, -1), want, atol=1e-4 * max(1.0, np.abs(want).max()))
  assert (got - without).abs().amax((1, 2, 3, 4)).min() > 0.1
  # A single sample of cameras goes for all.
  torch.testing.assert_close(same[0], got[0])
  assert (same - got)[1].abs().max() > 0.1
  assert torch.equal(again, without)


@pytest.mark.parity
def test_a_run_of_cogvideox_becomes_models_of_diffusers_and_transformers(tmp_path):
  diffusers = pytest.importorskip("diffusers")
  transformers = pytest.importorskip("transformers")
  config = small_cogvideox(inverted=True, **COGVIDEOX["1.5-5b-i2v"])
  system = System.build(config.model.to_dict())
  params, backbone = random_params(system, seed=5), system.backbone
  write_run(tmp_path / "run", config, params)
  run_command("convert", f"--from={tmp_path}/run", f"--to={tmp_path}/out", "--format=torch")
  vae = diffusers.AutoencoderKLCogVideoX.from_pretrained(tmp_path / "out" / "vae").eval()
  assert vae.config.invert_scale_latents
  encoder = transformers.T5EncoderModel.from_pretrained(tmp_path / "out" / "text_encoder").eval()
  transformer = tmp_path / "out" / "transformer"
  transformer = diffusers.CogVideoXTransformer3DModel.from_pretrained(transformer)
  kernel = np.asarray(params["transformer"]["blocks"]["mlp_in"]["kernel"])[1]
  np.testing.assert_array_equal(
    transformer.transformer_blocks[1].ff.net[0].proj.weight.data, kernel.T
  )

  tokens = jnp.asarray(backbone.tokenizer("a cat"))[None]
  latents = jax.random.normal(jax.random.key(2), backbone.latent_shape(1, 1, 16, 16))
  text = jax.jit(backbone.encode_text)(params, tokens)
  video = 2 * jax.jit(backbone.decode)(params, latents) - 1
  with torch.no_grad():
    # Padding is read as text.
    embeddings = encoder(tensor(tokens).long()).last_hidden_state
    decoded = vae.decode(tensor(latents).movedim(-1, 1) / 0.7).sample.movedim(1, -1)
  for a, b in ((embeddings, text.embeddings), (decoded, video)):
    b = np.asarray(b)
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()))


def test_a_published_tokenizer_travels_along(exported, tmp_path):
  _, system, params = exported
  files = tokenizer_files.read(write_umt5(tmp_path / "tokenizer"))
  backbone = dataclasses.replace(system.backbone, tokenizer=make_tokenizer(24, files, 384))
  job = run.export(dataclasses.replace(system, backbone=backbone), Held(params))
  for name, contents in files.items():
    assert job.files[f"tokenizer/{name}"] == contents
  assert not [name for name in run.export(system, Held(params)).files if "tokenizer" in name]


def test_what_left_comes_in_again(exported, tmp_path):
  folder, _, params = exported
  run_command("convert", f"--from={folder}/vae", f"--to={tmp_path}/ours", "--format=flax")
  _, stored = parts.open_part(tmp_path / "ours", "autoencoder")
  for path, value in state.flatten(params["autoencoder"]).items():
    np.testing.assert_array_equal(parts.as_float32(stored, path), value)


def files_of(folder):
  return {
    x.relative_to(folder).as_posix(): x.read_bytes() for x in folder.rglob("*") if x.is_file()
  }


def test_a_whole_exported_run_comes_in_again_and_leaves_alike(exported, tmp_path):
  folder, system, params = exported
  ours, back = tmp_path / "ours", tmp_path / "back"
  run_command("convert", f"--from={folder}", f"--to={ours}", "--format=flax")
  run_command("convert", f"--from={ours}", f"--to={back}", "--format=torch")
  assert files_of(back) == files_of(folder)
  # A run that starts from it begins with the very numbers.
  config = small_config()
  for name in params:
    config.init[name] = str(ours)
  found = initialize._read_parts(system, config, system.abstract())
  want, found = state.flatten(params), state.flatten(found)
  assert found.keys() == want.keys()
  for path, value in want.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_what_exists_nowhere_else_comes_in_alone(exported, tmp_path):
  folder, ours, back = exported[0] / "diff4splat", tmp_path / "ours", tmp_path / "back"
  run_command("convert", f"--from={folder}", f"--to={ours}", "--format=flax")
  run_command("convert", f"--from={ours}", f"--to={back}", "--format=torch")
  assert files_of(back) == files_of(folder)
  description, stored = parts.open_part(ours, "ldrm")
  assert description.fields["gaussians"] == 128 and "camera/projection/kernel" in stored.specs


def test_what_a_repository_adds_to_an_exported_run_stays_behind(exported, tmp_path):
  shutil.copytree(exported[0], tmp_path / "fetched")
  (tmp_path / "fetched" / "README.md").write_text("A run.")
  (tmp_path / "fetched" / ".cache" / "huggingface").mkdir(parents=True)
  run_command("convert", f"--from={tmp_path}/fetched", f"--to={tmp_path}/ours", "--format=flax")
  inside = {path.name for path in exported[0].iterdir()}
  assert {path.name for path in (tmp_path / "ours").iterdir()} == inside


def edited(folder, target, **changes):
  """A copy of an exported folder with other values in its config.json; None takes a key out."""
  shutil.copytree(folder, target)
  path = target / "config.json"
  config = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({key: x for key, x in config.items() if x is not None}))
  return target


def test_folders_of_older_versions_are_told(exported, tmp_path, capsys):
  old = edited(exported[0] / "diff4splat", tmp_path / "old", parameters=None, scene_scale=None)
  with pytest.raises(ValueError, match="says nothing of scene_scale, parameters: an older version"):
    module(exported[0] / "diff4splat").load(str(old))
  with pytest.raises(SystemExit):
    run_command("convert", f"--from={old}", f"--to={tmp_path}/ours", "--format=flax")
  said = capsys.readouterr().err
  assert "scene_scale, parameters: an older version" in said and "Convert the run once more" in said
  assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"parameters": {"ldrm/x": [3]}}, "'ldrm/trunk/merge/bias' is unexpected"),
    ({"parameters": {"../../x": [3]}}, "'../../x' is .3.; restore the file"),
    ({"parameters": {"ldrm/x": [2**50]}}, "'ldrm/x' is .1125"),
    ({"parameters": [1]}, "expected an object from paths to shapes"),
    ({"more": 1}, "unknown 'more'"),
  ],
)
def test_other_folders_of_ours_are_refused(change, message, exported, tmp_path, capsys):
  folder = edited(exported[0] / "diff4splat", tmp_path / "changed", **change)
  with pytest.raises(SystemExit):
    run_command("convert", f"--from={folder}", f"--to={tmp_path}/ours", "--format=flax")
  assert re.search(message, capsys.readouterr().err)
  assert not (tmp_path / "ours").exists()


def test_a_run_of_another_size_does_not_start_from_it(exported, tmp_path):
  folder, _, _ = exported
  ours = tmp_path / "ours"
  run_command("convert", f"--from={folder}", f"--to={ours}", "--format=flax")
  config = small_config()
  config.model.ldrm.gaussians = 64
  config.model.backbone.transformer.dim = 64
  system = System.build(config.model.to_dict())
  config.init.ldrm = str(ours)
  with pytest.raises(ValueError, match="The ldrm in .*gaussians 128 there, 64 here"):
    initialize._read_parts(system, config, system.abstract())
  with pytest.raises(ValueError, match="The cameras in .*camera/projection/kernel"):
    initialize._cameras(ours, system.abstract()["transformer"])
  config.init.ldrm = str(folder)
  with pytest.raises(ValueError, match="is in the layout of PyTorch; python -m d4s_jax.convert"):
    initialize._read_parts(system, config, system.abstract())
  with pytest.raises(ValueError, match="weights of a run and not its settings"):
    inference.open_checkpoint(ours, progress.timed)


def test_training_refuses_other_weights_before_it_looks_for_clips(exported, tmp_path):
  folder, _, params = exported
  config = small_config()
  config.stage, config.data.source = "diffusion", f"shards:{tmp_path}/none"

  def refused(message, run="new"):
    with pytest.raises((ValueError, OSError), match=message):
      loop.run(config, tmp_path / run)

  config.init.adapter = "x"
  refused("this configuration has none; set model.lora.rank")
  config.init.adapter = ""
  for origin, message in ((folder, "is in the layout of PyTorch"), ("gone", 'expected "", "ship')):
    config.init.transformer = str(origin)
    refused(message)
  run_command("convert", f"--from={folder}", f"--to={tmp_path}/ours", "--format=flax")
  config.init.transformer = f"{tmp_path}/ours"
  refused(f"{tmp_path}/none")
  # One that has a checkpoint needs what it started from no more.
  write_run(tmp_path / "begun", config, params)
  config.init.transformer = "gone"
  refused(f"{tmp_path}/none", "begun")
  config.init.transformer = f"{tmp_path}/ours"
  config.model.backbone.transformer.ffn_dim = 64
  refused("The transformer in .*ffn_dim 32 there, 64 here")


def test_the_code_needs_torch_alone(exported):
  folder, _, _ = exported
  script = """
import sys
for name in ("jax", "numpy", "safetensors", "einops", "flax", "d4s_jax"):
  sys.modules[name] = None
from diff4splat import load
ldrm, camera = load(".")
print(sum(x.numel() for x in ldrm.parameters()), ldrm.half().get("trunk/merge/bias").dtype)
"""
  done = subprocess.run(
    [sys.executable, "-c", script],
    cwd=folder / "diff4splat",
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout.endswith("torch.float16\n"), done.stderr


def test_other_tensors_than_those_of_the_configuration_are_all_named(exported, tmp_path):
  safetensors = pytest.importorskip("safetensors.torch")
  folder = tmp_path / "diff4splat"
  shutil.copytree(exported[0] / "diff4splat", folder)
  path = folder / "diff4splat.safetensors"
  tensors = safetensors.load_file(path)
  del tensors["ldrm/trunk/merge/bias"]
  tensors |= {"camera/more": torch.zeros(2), "ldrm/trunk/merge/kernel": torch.zeros(3, 4)}
  safetensors.save_file(tensors, path)
  with pytest.raises(ValueError, match="not of its config.json") as error:
    module(folder).load(str(folder))
  wanted = "ldrm/trunk/merge/kernel is [3, 4], expected [64, 32]"
  for one in ("ldrm/trunk/merge/bias is missing", "camera/more is unexpected", wanted):
    assert one in str(error.value)


def test_a_run_is_not_converted_to_flax(exported, tmp_path, capsys):
  with pytest.raises(SystemExit):
    run_command(
      "convert", f"--from={exported[0].parent}/run", f"--to={tmp_path}/a", "--format=flax"
    )
  assert "is a training run, which is ours already" in capsys.readouterr().err


def test_the_code_refuses_what_is_of_another_video(exported, monkeypatch):
  folder, system, _ = exported
  ldrm, _ = module(folder / "diff4splat").load(str(folder / "diff4splat"))
  latents = torch.zeros(system.backbone.latent_shape(1, 5, 32, 48))
  poses, intrinsics = torch.eye(4).expand(1, 5, 4, 4), torch.eye(3).expand(1, 9, 3, 3)
  message = r"intrinsics is \(1, 9, 3, 3\), expected \(1, 5, 3, 3\); size is \(48, 32\), expected"
  with pytest.raises(ValueError, match=message):
    ldrm(latents, poses, intrinsics, (48, 32), torch.zeros(1, 2))
  right = (poses, torch.eye(3).expand(1, 5, 3, 3), (32, 48), torch.zeros(1, 2))
  for given, options, message in (
    ((latents[..., 1:], *right), {}, r"latents are \(1, 2, 4, 6, 3\), expected .*columns, 4\]"),
    ((latents, poses[:, 1:], *right[1:]), {}, r"world_from_camera is \(1, 4, 4, 4\), expected"),
    ((latents, *right[:3], torch.zeros(2)), {}, r"times are \(2,\), expected \[1, any number\]"),
    ((latents, *right), {"sigma": torch.zeros(3)}, r"sigma is \(3,\), expected \(1,\)"),
    ((latents, *right), {"video": torch.zeros(1, 5, 48, 32, 3)}, r"video is \(1, 5, 48, 32, 3\)"),
    ((latents, *right), {}, "stem of 2: video must be given"),
  ):
    with pytest.raises(ValueError, match=message):
      ldrm(*given, **options)
  get = ldrm.get

  def of_larger_patches(path):
    return get(path).repeat(1, 2, 2, 1, 1) if path.endswith("latents_patch/kernel") else get(path)

  monkeypatch.setattr(ldrm, "get", of_larger_patches)
  with pytest.raises(ValueError, match=r"latents are 2 x 3 x 6, expected multiples of \(1, 2, 2\)"):
    ldrm(latents[:, :, 1:], *right)
