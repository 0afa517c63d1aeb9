"""A published pipeline of each family through the commands: trained on, made a scene of, exported.

Random weights at small widths stand for published ones. Every command is that of configs/README.md,
with the preset narrowed by flags.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from d4s_jax.formats import scene
from d4s_jax.formats.images import write_image
from d4s_jax.models.backbone import Text
from d4s_jax.training import checkpoint, initialize, run_folder, state
from d4s_jax.training.log import read_metrics
from tests import published_pipelines
from tests.models.cogvideox_oracle import rotary
from tests.models.test_ldrm import make_cameras
from tests.support import run_command
from tests.weights.test_convert import tensors
from tests.weights.test_run import module, tensor

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NARROW = {
  **{"model.ldrm.gaussians": 128, "model.ldrm.width": 32, "model.ldrm.depth": 2},
  **{"model.ldrm.heads": 2, "model.ldrm.motion_channels": 8},
  # LPIPS needs 31 pixels.
  **{"clip.frames": 5, "clip.height": 32, "clip.width": 32, "clip.targets": 2},
  **{"batch_size": 2, "heldout.every": 2, "steps": 2, "checkpoint.every": 2, "optimizer.warmup": 1},
  "loss.lpips": "alex",
}
PRESETS = [
  *("wan2.2-5b-ti2v", "cogvideox-5b-i2v"),
  *(pytest.param(x, marks=pytest.mark.slow) for x in ("cogvideox-2b", "cogvideox-1.5-5b")),
]


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
  """What is compiled twice is compiled once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_COMPILATION_CACHE_DIR", "set below")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", False)


class Place:
  """A folder with a converted pipeline, and the commands of a user who works in it."""

  def __init__(self, folder, preset):
    self.folder, self.preset = folder, preset
    self.narrow = published_pipelines.write(preset, folder / "published") | NARROW
    self.convert("published", "ours", "flax")
    write_image(folder / "photo.png", np.random.default_rng(0).random((40, 30, 3), np.float32))

  def convert(self, source, target, format):
    places = f"--from={self.folder / source}", f"--to={self.folder / target}"
    run_command("convert", *places, f"--format={format}")

  def train(self, stage, run, **changes):
    """Two steps of a stage; of `init.PART`, names are folders here, and backbones are converted."""
    ours = self.folder / "ours"
    init = dict.fromkeys(("transformer", "autoencoder", "text_encoder"), "ours")
    init |= {key.removeprefix("init."): changes.pop(key) for key in [*changes] if "init." in key}
    settings = self.narrow | {f"init.{part}": self.folder / name for part, name in init.items()}
    settings |= {"model.backbone.tokenizer": ours / "tokenizer"}
    settings |= {"text_cache": self.folder / "prompts"} | changes
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    config = f"--config={CONFIGS / stage}.py:{self.preset}"
    run_command("train", config, f"--workdir={self.folder / run}", *flags)
    rows = read_metrics(self.folder / run, "train")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in rows)

  def generate(self, run, output):
    run_command(
      "generate",
      *(f"--checkpoint={self.folder / run}", f"--image={self.folder / 'photo.png'}"),
      *("--prompt=a cat", "--trajectory=spiral", "--steps=2", f"--output={self.folder / output}"),
    )
    return scene.read_scene(self.folder / output)[0]

  def read(self, run):
    """Models and parameters of a run."""
    _, system = run_folder.read_system(self.folder / run)
    return system, checkpoint.read_model(self.folder / run, system.abstract())[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_joint_training_from_a_published_model_to_a_scene_and_to_torch(preset, tmp_path, capfd):
  place = Place(tmp_path, preset)
  place.train("joint", "run")
  said = capfd.readouterr().out
  assert "at random: transformer/camera/" in said and "WARNING" not in said
  assert np.isfinite(place.generate("run", "scene").means).all()

  place.convert("run", "out", "torch")
  system, params = place.read("run")
  out, published = tmp_path / "out", tmp_path / "published"
  for name in ("vae", "text_encoder"):
    assert tensors(out / name) == tensors(published / name)
  before, after = (tensors(folder / "transformer") for folder in (published, out))
  assert {x: y[:2] for x, y in after.items()} == {x: y[:2] for x, y in before.items()}
  assert sum(before[name] != after[name] for name in before) > len(before) // 2
  assert_torch_computes_the_same(system, params, out, place.narrow["model.backbone.text_length"])

  # What left comes in again.
  place.convert("out", "back", "flax")
  config = run_folder.read_config(tmp_path / "run")
  want = state.flatten(params)
  for name in params:
    config["init"][name] = str(tmp_path / "back")
  found = initialize._read_parts(system, ConfigDict(config), system.abstract())
  found = state.flatten(found)
  assert found.keys() == want.keys()
  for path, value in want.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)


def assert_torch_computes_the_same(system, params, folder, length):
  """The video model with its cameras, of diffusers, and the scene, on torch alone."""
  backbone = system.backbone
  theirs = module(folder / "diff4splat")
  ldrm, camera = theirs.load(str(folder / "diff4splat"))
  kind = json.loads((folder / "transformer" / "config.json").read_text())["_class_name"]
  transformer = getattr(diffusers, kind).from_pretrained(folder / "transformer").eval()
  shape = list(backbone.latent_shape(1, 5, 32, 32))
  latents = jax.random.normal(jax.random.key(0), shape)
  shape[1] += backbone.padding(shape[1])
  noisy, words = (jax.random.normal(jax.random.key(1), x) for x in (shape, (1, length, 16)))
  cameras, times = make_cameras(1, 5, 32, 32), jnp.array([[0.0, 0.4, 1.0]])
  maps, text = system.camera_maps(cameras), Text(words, jnp.ones((1, length), bool))

  @jax.jit
  def ours(params):
    dynamic, _ = system.reconstruct(params, latents, cameras, times)
    return backbone.denoise(params, noisy, jnp.full(1, 0.5), text, maps), dynamic

  velocity, want = ours(params)
  # Where diffusers has the channels, and what it is told beside.
  place, told = (1, {}) if kind.startswith("Wan") else (2, {"image_rotary_emb": turned(backbone)})
  hidden = tensor(noisy).movedim(-1, place)
  if getattr(backbone.transformer, "takes_image", False):
    hidden = torch.cat([hidden, torch.zeros_like(hidden)], place)
  arguments = hidden, tensor(words), torch.tensor([500.0 if place == 1 else 499.0])
  named = dict(zip(("hidden_states", "encoder_hidden_states", "timestep"), arguments)) | told
  with torch.no_grad():
    without = transformer(**named).sample
    with theirs.condition(transformer, camera, tensor(maps)):
      got = transformer(**named).sample
    places = (tensor(x) for x in (latents, cameras.world_from_camera, cameras.intrinsics))
    made = ldrm(*places, (32, 32), tensor(times), tensor(jnp.zeros(1)), video=None)
  assert (got - without).abs().max() > 0
  pairs = [(got.movedim(place, -1), velocity)]
  for a, b in pairs + [(x, getattr(want, name)) for name, x in made._asdict().items()]:
    b = np.asarray(b)
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()))


def turned(backbone):
  """What pipelines of CogVideoX give the transformer, for these latents of 4 x 4."""
  fields = {x: getattr(backbone.transformer, x) for x in ("head_dim", "positions", "grid")}
  frames = -(-backbone.latent_shape(1, 5, 32, 32)[1] // backbone.patch[0])
  return rotary(fields, frames, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("preset", published_pipelines.PRESETS)
def test_adapters_and_a_reconstruction_of_earlier_stages(preset, tmp_path):
  place, lora = Place(tmp_path, preset), {"model.lora.rank": 2, "frozen_dtype": "bfloat16"}
  place.train("diffusion", "diffusion", **lora)
  place.train("static", "static")
  place.train("joint", "run", **lora, **{"init.adapter": "diffusion", "init.ldrm": "static"})
  assert np.isfinite(place.generate("run", "scene").means).all()
  # Beside its adapter, the transformer leaves as it came, but for the rounding of `frozen_dtype`.
  place.convert("run", "out", "torch")
  before, after = (tensors(tmp_path / x / "transformer") for x in ("published", "out"))
  assert {x: y[:2] for x, y in after.items()} == {x: y[:2] for x, y in before.items()}
  assert list((tmp_path / "out" / "adapter").glob("*.safetensors"))
