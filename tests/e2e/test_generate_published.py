"""A published pipeline, converted, generates a plain video; on one device and cut over four."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS, base
from d4s_jax.formats.images import read_image, write_image
from d4s_jax.formats.video import read_video
from d4s_jax.models.published import PUBLISHED, published
from d4s_jax.models.system import System
from d4s_jax.pipeline import Pipeline, progress, shot
from d4s_jax.training import inference
from tests import published_pipelines, published_tokenizers
from tests.models.test_clip import torch_encoder
from tests.support import on_devices, random_params, run_command, small_config, write_run

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

FRAMES, SIDE = 5, 16
CLIP = dict(dim=20, ffn_dim=24, heads=2, depth=3, size=32, patch=8)
SIZE = (f"--frames={FRAMES}", f"--height={SIDE}", f"--width={SIDE}", "--steps=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a photograph and a pipeline in our layout, its transformer in bfloat16."""
  folder = tmp_path_factory.mktemp("published")
  torch.manual_seed(0)
  transformer = diffusers.WanTransformer3DModel(
    num_attention_heads=4,
    attention_head_dim=16,
    # The noisy latents, four channels of mask, the photograph's.
    in_channels=12,
    out_channels=4,
    image_dim=20,
    added_kv_proj_dim=64,
    text_dim=32,
    freq_dim=16,
    ffn_dim=64,
    num_layers=2,
  )
  vae = diffusers.AutoencoderKLWan(
    base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
  )
  text_encoder = transformers.UMT5EncoderModel(
    transformers.UMT5Config(
      vocab_size=384,
      d_model=32,
      d_kv=8,
      d_ff=64,
      num_layers=2,
      num_heads=4,
      feed_forward_proj="gated-gelu",
    )
  )
  source = folder / "published"
  transformer.to(torch.bfloat16).save_pretrained(source / "transformer")
  vae.save_pretrained(source / "vae")
  text_encoder.save_pretrained(source / "text_encoder")
  torch_encoder(CLIP).save_pretrained(source / "image_encoder")
  published_tokenizers.write_umt5(source / "tokenizer")
  diffusers.UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
  ).save_pretrained(source / "scheduler")
  index = {
    "_class_name": "WanImageToVideoPipeline",
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
  }
  (source / "model_index.json").write_text(json.dumps(index))
  run_command("convert", f"--from={source}", f"--to={folder / 'ours'}", "--format=flax")
  photo = np.random.default_rng(0).random((40, 30, 3), dtype=np.float32)
  write_image(folder / "photo.png", photo)
  return folder


def arguments(folder, output, *more):
  return (
    f"--image={folder / 'photo.png'}",
    f"--checkpoint={folder / 'ours'}",
    f"--output={folder / output}",
    "--trajectory=spiral",
    *SIZE,
    *more,
  )


def quiet(what):
  del what
  return progress.timed("read")


def test_it_makes_a_video_and_says_what_it_lacks(place, capsys):
  # Without the marks, beside which what another prompt changes here is lost in the file's rounding.
  options = "--prompt=a cat", "--seed=3", "--scale=2", "--nowatermark"
  run_command("generate", *arguments(place, "clip", *options))
  run_command("generate", *arguments(place, "away", *options, "--negative_prompt=dog"))
  captured = capsys.readouterr()
  assert "know no cameras" in captured.err
  assert "Video:" in captured.out
  folder = place / "clip"
  assert {path.name for path in folder.iterdir()} == {"video.mp4", "preview.png", "video.json"}
  video = read_video(folder / "video.mp4")
  assert video.shape == (FRAMES, SIDE, SIDE, 3)
  assert video.std() > 0.01
  assert read_image(folder / "preview.png").size
  description = json.loads((folder / "video.json").read_text())
  assert (description["prompt"], description["provenance"]["seed"]) == ("a cat", 3)
  assert description["provenance"]["checkpoint"] == "ours"
  assert description["sampling"]["solver"] == "unipc"
  away = json.loads((place / "away" / "video.json").read_text())
  assert away["sampling"] == description["sampling"] | {"negative_prompt": "dog"}
  assert away["provenance"]["config_hash"] != description["provenance"]["config_hash"]
  assert np.abs(read_video(place / "away" / "video.mp4") - video).max() > 0


@pytest.mark.parametrize(
  "preset, solver",
  [
    ("wan1.3b", "unipc"),
    ("cogvideox-5b-i2v", "dpm"),
    pytest.param("wan2.2-5b-ti2v", "unipc", marks=pytest.mark.slow),
    pytest.param("cogvideox-2b", "ddim", marks=pytest.mark.slow),
    pytest.param("cogvideox-1.5-5b", "ddim", marks=pytest.mark.slow),
  ],
)
def test_every_family_generates_by_the_schedule_it_was_published_with(
  preset, solver, place, tmp_path, capsys
):
  published_pipelines.write(preset, tmp_path / "published")
  run_command("convert", f"--from={tmp_path}/published", f"--to={tmp_path}/ours", "--format=flax")
  size = "--frames=5", "--height=32", "--width=32", "--steps=2"
  given = arguments(place, "any", "--prompt=a cat", *size)
  given = [x for x in given if not x.startswith(("--checkpoint", "--output"))]
  run_command("generate", *given, f"--checkpoint={tmp_path}/ours", f"--output={tmp_path}/clip")
  if preset == "wan1.3b":
    assert "trained to start from text alone" in capsys.readouterr().err
  description = json.loads((tmp_path / "clip" / "video.json").read_text())
  assert description["sampling"]["solver"] == solver
  video = read_video(tmp_path / "clip" / "video.mp4")
  assert video.shape == (5, 32, 32, 3) and video.std() > 0.01


@pytest.mark.parametrize(
  "more, message",
  [
    (["--result=scene"], "video model alone"),
    (["--frames=6"], r"frames 6 \(legal is 1 \+ 4k, nearest 5 or 9\)"),
    (["--steps=1001"], "1001 steps; expected 1 to 1000"),
    (["--width=20"], r"width 20 \(legal is 16k, nearest 16 or 32\)"),
    (
      ["--checkpoint=OURS/transformer"],
      "a single part, the 'transformer'; expected the folder",
    ),
  ],
)
def test_what_it_cant_make_is_one_line(place, capsys, more, message):
  more = [word.replace("OURS", str(place / "ours")) for word in more]
  with pytest.raises(SystemExit):
    run_command("generate", *arguments(place, "refused", *more))
  assert re.search(message, capsys.readouterr().err)
  assert not (place / "refused").exists()


def test_what_is_not_converted_or_not_one_family_is_one_line(place, tmp_path, capsys):
  def refused(folder):
    with pytest.raises(SystemExit):
      run_command("generate", *arguments(place, "refused", f"--checkpoint={folder}"))
    return capsys.readouterr().err

  for folder in (place / "published" / "transformer", place / "published"):
    line = refused(folder)
    assert f"d4s_jax.convert --from={folder} --to=NEW --format=flax" in line
  shutil.copytree(place / "ours", tmp_path / "blind")
  shutil.rmtree(tmp_path / "blind" / "image_encoder")
  assert "(image_encoder is missing or of another kind)" in refused(tmp_path / "blind")
  shutil.copytree(place / "ours", tmp_path / "pair")
  shutil.copytree(tmp_path / "pair" / "transformer", tmp_path / "pair" / "transformer_2")
  assert "has two transformers" in refused(tmp_path / "pair")
  shutil.copytree(place / "ours", tmp_path / "mixed")
  shutil.rmtree(tmp_path / "mixed" / "vae")
  diffusers.AutoencoderKLCogVideoX(
    block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2
  ).save_pretrained(tmp_path / "other")
  other = tmp_path / "mixed" / "vae"
  run_command("convert", f"--from={tmp_path / 'other'}", f"--to={other}", "--format=flax")
  line = refused(tmp_path / "mixed")
  assert "make no model" in line and "AutoencoderKLCogVideoX" in line


def test_half_precision_stays_half_and_changes_nothing(place):
  trained = inference.open_checkpoint(place / "ours", quiet)
  params = trained.parts["transformer"]
  kernel = params["blocks"]["mlp_in"]["kernel"]
  assert kernel.dtype == jnp.bfloat16
  # What is computed in float32 is stored so.
  assert params["time"]["in"]["kernel"].dtype == jnp.float32
  assert params["modulation"].dtype == jnp.float32
  assert "camera" not in params
  assert trained.config["sampling"]["solver"] == "unipc"
  backbone = trained.system.backbone
  random = np.random.default_rng(0)
  latents = jnp.asarray(random.standard_normal((1, 2, 2, 2, 4)), jnp.float32)
  image = jnp.asarray(random.random((1, 16, 16, 3)), jnp.float32)
  encoders = {name: trained.parts[name] for name in ("autoencoder", "image_encoder")}
  condition = backbone.condition(encoders, image, FRAMES)
  text = backbone.encode_text(
    {"text_encoder": trained.parts["text_encoder"]},
    jnp.asarray(trained.system.tokenize("a cat"))[None],
  )
  args = (latents, jnp.full(1, 0.5), text, None, condition)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  narrow = backbone.denoise({"transformer": params}, *args)
  # XLA may sum in another order, where it widens a matrix on the way.
  np.testing.assert_allclose(narrow, backbone.denoise({"transformer": wide}, *args), atol=1e-5)


def test_parts_are_read_in_turn_and_let_go(place):
  trained = inference.open_checkpoint(place / "ours", quiet)
  seen = []
  parts = inference.Parts(
    tuple(trained.parts), lambda name: seen.append(name) or trained.parts[name]
  )
  pipeline = Pipeline(trained.system, parts, steps=1)
  photo = read_image(place / "photo.png")
  image, cameras = shot.photograph(photo, shot.camera_path("up", FRAMES), SIDE, SIDE)
  before = len(jax.live_arrays())
  video = pipeline.video(pipeline.sample(image, cameras, "a cat"))
  before_last = ["text_encoder", "autoencoder", "image_encoder", "transformer"]
  assert seen == [*before_last, "autoencoder"]
  assert video.shape == (FRAMES, SIDE, SIDE, 3)
  smallest = min(len(jax.tree.leaves(trained.parts[name])) for name in trained.parts)
  assert len(jax.live_arrays()) - before < smallest, "the parameters are gone"


def test_a_run_of_the_diffusion_stage_makes_a_video(place):
  config = small_config()
  config.stage = "diffusion"
  run = place / "run"
  write_run(run, config, random_params(System.build(config.model.to_dict())))
  options = arguments(place, "of-run")
  run_command("generate", *options, f"--checkpoint={run}")
  assert read_video(place / "of-run" / "video.mp4").shape == (FRAMES, SIDE, SIDE, 3)


SCRIPT = """
import jax, json, pathlib, sys
from tests.support import run_command
from d4s_jax.training import inference
from d4s_jax.pipeline import progress
folder = pathlib.Path(sys.argv[1])
run_command("generate", *sys.argv[2:])
parts = inference.open_checkpoint(folder, progress.timed).parts
share = lambda x: x.addressable_shards[0].data.nbytes / x.nbytes
kernel = parts["transformer"]["blocks"]["mlp_in"]["kernel"]
print(json.dumps([jax.device_count(), share(kernel)]))
"""


def test_four_devices_make_the_same_video(place, tmp_path):
  run_command("generate", *arguments(place, "one"))
  # Where compiled programs are kept otherwise, if anywhere.
  here = {name: value for name, value in on_devices(4).items() if "COMPILATION_CACHE" not in name}
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(place / "ours"), *arguments(place, "four")],
    env=here | {"XDG_CACHE_HOME": str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  # One copy of the transformer for each of guidance's two passes.
  assert json.loads(done.stdout.splitlines()[-1]) == [4, 0.5]
  assert any((tmp_path / "d4s_jax").iterdir()), "what was compiled is kept"
  one, four = (read_video(place / name / "video.mp4") for name in ("one", "four"))
  # Sums in another order, seen through the rounding of pixels and their compression.
  np.testing.assert_allclose(one, four, atol=3 / 255)


@pytest.mark.parametrize("index", range(len(PUBLISHED)))
def test_the_size_of_a_published_family_is_legal(index):
  family = PUBLISHED[index]
  for preset in PRESETS:
    backbone = base(preset).model.backbone
    if preset not in ("tiny", "paper") and published(_config(backbone)) == family:
      System.build(base(preset).model.to_dict()).check_size(*family.size)
      return
  pytest.fail(f"no preset is of {family}")


def _config(backbone):
  """What tells families apart in the config.json of a preset's transformer."""
  patch = backbone.transformer.get("patch", (1, 2, 2))
  takes = "image_encoder" in backbone or backbone.transformer.get("takes_image", False)
  names = {"wan": "WanTransformer3DModel", "cogvideox": "CogVideoXTransformer3DModel"}
  channels = {"wan": 36, "cogvideox": 32}[backbone.family] if takes else 16
  return {
    "_class_name": names[backbone.family],
    "patch_size_t": patch[0] if patch[0] > 1 else None,
    "in_channels": channels,
    "out_channels": backbone.autoencoder.z_dim,
  }
