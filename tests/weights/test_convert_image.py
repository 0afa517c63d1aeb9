"""What only image-to-video models have: the CLIP encoder, a transformer with an image branch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from d4s_jax.formats import parts
from d4s_jax.models.system import System
from d4s_jax.training import checkpoint, initialize, state
from d4s_jax.weights import run
from d4s_jax.weights.components import COMPONENTS
from tests.models.test_clip import torch_encoder
from tests.published_pipelines import wan_transformer
from tests.support import Held, random_params, small_config
from tests.weights.test_convert import convert, refused, tensors

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CLIP = dict(dim=20, ffn_dim=24, heads=2, depth=3, size=16, patch=8)
PROJECTED = CLIP | {"projection_dim": 12}
UNREAD = [f"blocks.{i}.attn2.norm_added_q.weight" for i in range(2)]


def _transformer():
  return wan_transformer(in_channels=12, image_dim=20, added_kv_proj_dim=32)


def _drawn(model):
  """The model with random numbers in every tensor."""
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def _rewrite(folder, change):
  path = next(folder.glob("*.safetensors"))
  save_file(change(load_file(path)), path, {"format": "pt"})


def _prefixed(values):
  """As older transformers named the tensors of a model without projection."""
  return {f"vision_model.{name.removeprefix('vision_model.')}": x for name, x in values.items()}


def _with_unread(values):
  """As the published files are, with zeros that no model reads, in another type than theirs."""
  return values | {name: np.zeros(32, np.float16) for name in UNREAD}


MODELS = {
  "transformer": (_transformer, _with_unread),
  "transformer again": (_transformer, dict),
  "old encoder": (lambda: torch_encoder(CLIP), _prefixed),
  "new encoder": (lambda: torch_encoder(CLIP), dict),
  "projected encoder": (lambda: torch_encoder(PROJECTED), dict),
}


def _outputs(model):
  """What a PyTorch model makes of fixed inputs, and these inputs as ours takes them."""
  torch.manual_seed(1)
  with torch.no_grad():
    if isinstance(model, diffusers.WanTransformer3DModel):
      # They take all but 512 tokens for the image's.
      latents, text, image = (
        torch.randn(2, 12, 2, 4, 6),
        torch.randn(2, 512, 16),
        torch.randn(2, 5, 20),
      )
      time = torch.tensor([900.0, 17.0])
      out = model(latents, time, text, image).sample.movedim(1, -1)
      return out, (latents.movedim(1, -1), time, text, None, image)
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = (
      torch.tensor(getattr(transformers.image_utils, f"OPENAI_CLIP_{x}")) for x in ("MEAN", "STD")
    )
    normal = (pixels - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    return model(normal, output_hidden_states=True).hidden_states[-2], (pixels.movedim(1, -1),)


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_models_come_back_bit_for_bit_and_compute_what_the_original_does(
  name, tmp_path, monkeypatch
):
  # With it, loading needs the accelerate package; all is float32 here anyway.
  monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
  make, change = MODELS[name]
  original = _drawn(make())
  original.save_pretrained(tmp_path / "theirs")
  _rewrite(tmp_path / "theirs", change)
  convert(tmp_path / "theirs", tmp_path / "ours", "flax")
  convert(tmp_path / "ours", tmp_path / "back", "torch")
  assert tensors(tmp_path / "back") == tensors(tmp_path / "theirs")
  configs = [(tmp_path / x / "config.json").read_text() for x in ("theirs", "back")]
  assert json.loads(configs[0]) == json.loads(configs[1])
  want, inputs = _outputs(original)
  again = type(original).from_pretrained(tmp_path / "back").eval()
  assert torch.equal(_outputs(again)[0], want)

  component = COMPONENTS[type(original).__name__]
  description, stored = parts.open_part(tmp_path / "ours", component.part)
  fields = {k: tuple(x) if isinstance(x, list) else x for k, x in description.fields.items()}
  flat = {p: parts.as_float32(stored, p) for p in stored.specs if not p.startswith(parts.UNREAD)}
  params = traverse_util.unflatten_dict(flat, sep="/")
  inputs = [x if x is None else jnp.asarray(x.numpy()) for x in inputs]
  got = jax.jit(component.module(**fields).apply)({"params": params}, *inputs)
  got = got if name.startswith("transformer") else got[0]
  # 2e-5: float32 sums in another order.
  np.testing.assert_allclose(got, want.numpy(), atol=2e-5 * float(want.abs().max()))


def _config():
  config = small_config()
  with config.ignore_type():
    config.model.backbone.image_encoder = CLIP
    config.init.image_encoder = ""
  return config


@pytest.mark.parity
def test_a_run_exports_what_transformers_and_diffusers_load(tmp_path, monkeypatch):
  monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
  system = System.build(_config().model.to_dict())
  params = random_params(system)
  run.export(system, Held(params)).write(tmp_path, lambda size: None)
  transformer = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "transformer").eval()
  encoder = transformers.CLIPVisionModel.from_pretrained(tmp_path / "image_encoder").eval()
  params["transformer"].pop("camera")
  for model, part in ((transformer, "transformer"), (encoder, "image_encoder")):
    want, inputs = _outputs(model)
    inputs = [x if x is None else jnp.asarray(x.numpy()) for x in inputs]
    got = jax.jit(getattr(system.backbone, part).apply)({"params": params[part]}, *inputs)
    got = got if part == "transformer" else got[0]
    np.testing.assert_allclose(got, want.numpy(), atol=2e-5 * float(want.abs().max()))


def test_a_run_starts_from_them_without_what_no_model_reads(tmp_path):
  for folder, name in (("transformer", "transformer"), ("image_encoder", "old encoder")):
    make, change = MODELS[name]
    _drawn(make()).save_pretrained(tmp_path / "theirs" / folder)
    _rewrite(tmp_path / "theirs" / folder, change)
  index = {
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "image_encoder": ["transformers", "CLIPVisionModel"],
  }
  (tmp_path / "theirs" / "model_index.json").write_text(json.dumps(index))
  convert(tmp_path / "theirs", tmp_path / "ours", "flax")
  config = _config()
  config.init.update(dict.fromkeys(index, str(tmp_path / "ours")))
  system = System.build(config.model.to_dict())
  params = initialize._read_parts(system, config, system.abstract())
  ours = state.flatten(system.abstract()["transformer"])
  theirs = state.flatten(params["transformer"])
  assert {path for path in ours if not path.startswith("camera/")} == theirs.keys()
  expected = load_file(next((tmp_path / "theirs" / "image_encoder").glob("*.safetensors")))
  np.testing.assert_array_equal(
    params["image_encoder"]["positions"],
    expected["vision_model.embeddings.position_embedding.weight"],
  )
  config.model.backbone.image_encoder.size = 24
  with pytest.raises(checkpoint.CheckpointError, match="size 16 there, 24 here"):
    system = System.build(config.model.to_dict())
    initialize._read_parts(system, config, system.abstract())


def test_damaged_image_models_are_refused(tmp_path, capsys):
  _drawn(_transformer()).save_pretrained(tmp_path / "a")
  _rewrite(tmp_path / "a", lambda values: values | {UNREAD[0]: np.zeros(31, np.float32)})
  line = refused(capsys, tmp_path / "a", tmp_path / "new", "flax")
  assert f"{UNREAD[1]} is missing" in line
  assert f"{UNREAD[0]} has shape [31], not [32]" in line

  path = tmp_path / "a" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"pos_embed_seq_len": 514}))
  line = refused(capsys, tmp_path / "a", tmp_path / "new", "flax")
  assert "pos_embed_seq_len is 514" in line and "models of the first and the last frame" in line

  torch_encoder(CLIP).save_pretrained(tmp_path / "b")
  path = tmp_path / "b" / "config.json"
  good = json.loads(path.read_text())
  for change, message in (
    ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu', and our model has only 'gelu'"),
    ({"hidden_act": None}, "hidden_act is None"),
    ({"image_size": [16, 16]}, "image_size: a list of 2; expected a whole number"),
    (
      {"patch_size": 5},
      "describes no model (An image of 16 pixels a side has no whole patches of 5",
    ),
  ):
    path.write_text(json.dumps(good | change))
    assert message in refused(capsys, tmp_path / "b", tmp_path / "new", "flax")
  del good["hidden_act"]
  path.write_text(json.dumps(good))
  assert "hidden_act is 'quick_gelu'" in refused(capsys, tmp_path / "b", tmp_path / "new", "flax")
