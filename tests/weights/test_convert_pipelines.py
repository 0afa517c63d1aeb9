"""Whole pipelines of diffusers through the command both ways, and into diffusers again."""

import json

import pytest

from tests.models.test_clip import torch_encoder
from tests.published_pipelines import wan_transformer
from tests.weights.test_convert import convert, make, tensors
from tests.weights.test_convert_cogvideox import make_cogvideox

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CLIP = dict(dim=20, ffn_dim=24, heads=2, depth=3, size=16, patch=8)


def _unipc():
  settings = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
  return diffusers.UniPCMultistepScheduler(**settings)


def _cogvideox(variant):
  scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
  parts = dict(text_encoder=make("t5"), vae=make_cogvideox("vae"), scheduler=scheduler)
  return parts | dict(transformer=make_cogvideox(variant))


def _wan(vae="vae", **more):
  parts = dict(text_encoder=make("text_encoder"), vae=make(vae), scheduler=_unipc())
  return parts | dict(transformer=make("transformer")) | more


def _wan_image():
  torch.manual_seed(2)
  transformer = wan_transformer(in_channels=12, text_dim=24, image_dim=20, added_kv_proj_dim=32)
  processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16})
  return _wan(transformer=transformer, image_encoder=torch_encoder(CLIP), image_processor=processor)


# The class of diffusers, and what it is made of.
PIPELINES = {
  "cogvideox-2b": ("CogVideoXPipeline", lambda: _cogvideox("2b")),
  "cogvideox-5b": ("CogVideoXPipeline", lambda: _cogvideox("5b")),
  "cogvideox-5b-i2v": ("CogVideoXImageToVideoPipeline", lambda: _cogvideox("5b-i2v")),
  "cogvideox-1.5-5b": ("CogVideoXPipeline", lambda: _cogvideox("1.5-5b")),
  "cogvideox-1.5-5b-i2v": ("CogVideoXImageToVideoPipeline", lambda: _cogvideox("1.5-5b-i2v")),
  "wan2.1-t2v": ("WanPipeline", _wan),
  "wan2.1-i2v": ("WanImageToVideoPipeline", _wan_image),
  "wan2.2-ti2v": ("WanPipeline", lambda: _wan("vae22", expand_timesteps=True)),
  "wan2.2-a14b": (
    "WanPipeline",
    lambda: _wan(transformer_2=make("transformer", seed=3), boundary_ratio=0.875),
  ),
}


def _tokenizer():
  pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁cat", -2.0)]
  return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "components"), PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_that_diffusers_saved_comes_back_and_loads(
  kind, components, tmp_path, monkeypatch
):
  # With it, loading needs the accelerate package; all is float32 here anyway.
  monkeypatch.setattr(diffusers.WanTransformer3DModel, "_keep_in_fp32_modules", None)
  components = components()
  pipeline = getattr(diffusers, kind)(tokenizer=_tokenizer(), **components)
  published, ours, back = (tmp_path / name for name in ("published", "ours", "back"))
  pipeline.save_pretrained(published)
  convert(published, ours, "flax")
  convert(ours, back, "torch")
  models = [name for name, x in components.items() if isinstance(x, torch.nn.Module)]
  for folder in models:
    assert tensors(back / folder) == tensors(published / folder)
  names = {x.relative_to(published) for x in published.rglob("*") if x.is_file()}
  assert {x.relative_to(back) for x in back.rglob("*") if x.is_file()} == names
  for name in names:
    if name.suffix == ".json":
      contents = [json.loads((folder / name).read_text()) for folder in (published, back)]
      assert contents[0] == contents[1]
  again = getattr(diffusers, kind).from_pretrained(back)
  settings = {key for key in pipeline.config if key not in components and key[0] != "_"}
  assert all(again.config[key] == pipeline.config[key] for key in settings)
  assert again.tokenizer("a cat").input_ids == pipeline.tokenizer("a cat").input_ids
  assert again.scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
  for part in models:
    found, wanted = (getattr(x, part).state_dict() for x in (again, pipeline))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
