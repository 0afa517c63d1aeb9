"""CogVideoX through `python -m d4s_jax.convert` both ways: every bit, and the same outputs."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from d4s_jax.formats import parts
from d4s_jax.weights.components import COMPONENTS
from tests.models.cogvideox_oracle import rotary, torch_autoencoder, torch_transformer
from tests.models.test_cogvideox_transformer import SMALL, VARIANTS
from tests.weights.test_convert import convert, refused, tensors

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

AUTOENCODER = dict(widths=(4, 6, 8, 8), z_dim=4, num_res_blocks=1, groups=2, scale=0.7)
MODELS = [*VARIANTS, "vae"]


def make_cogvideox(name):
  """A small model in which no tensor is constant."""
  torch.manual_seed(0)
  if name == "vae":
    model = torch_autoencoder(AUTOENCODER, inverted=True)
  else:
    model = torch_transformer(SMALL | VARIANTS[name], text_dim=24)
  with torch.no_grad():
    for value in model.state_dict().values():
      value.add_(0.1 * torch.randn_like(value))
  return model


def outputs(name, model):
  """What a PyTorch model makes of fixed inputs, and these inputs as ours takes them."""
  torch.manual_seed(1)
  with torch.no_grad():
    if name == "vae":
      video = 2 * torch.rand(1, 3, 9, 16, 24) - 1
      out = model.config.scaling_factor * model.encode(video).latent_dist.mean
      return out.movedim(1, -1), (video.movedim(1, -1),)
    config = SMALL | VARIANTS[name]
    frames = 4 if config.get("patch") else 3
    latents = torch.randn(2, frames, model.config.in_channels, 4, 6)
    text, time = torch.randn(2, 7, 24), torch.tensor([900.0, 17.0])
    turned = rotary(config, frames // config.get("patch", (1, 2, 2))[0], 2, 3)
    offset = torch.full((1,), 2.0) if config.get("offset") else None
    out = model(latents, text, time, ofs=offset, image_rotary_emb=turned).sample
    return out.movedim(2, -1), (latents.movedim(2, -1), time, text)


def through(name, model, folder):
  """Where a model lies as published, as ours, and as it comes back."""
  places = [folder / part for part in ("published", "ours", "back")]
  model.save_pretrained(places[0], max_shard_size="20KB")
  convert(places[0], places[1], "flax")
  convert(places[1], places[2], "torch")
  return places


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_what_comes_back_is_equal_and_all_compute_the_same(name, tmp_path):
  model = make_cogvideox(name)
  published, ours, back = through(name, model, tmp_path)
  assert tensors(back) == tensors(published)
  config = json.loads((published / "config.json").read_text())
  assert json.loads((back / "config.json").read_text()) == config
  want, inputs = outputs(name, model)
  again = type(model).from_pretrained(back).eval()
  assert torch.equal(outputs(name, again)[0], want)

  component = COMPONENTS[type(model).__name__]
  description, stored = parts.open_part(ours, component.part)
  fields = {k: tuple(x) if isinstance(x, list) else x for k, x in description.fields.items()}
  module = component.module(**fields)
  flat = {path: parts.as_float32(stored, path) for path in stored.specs}
  variables = {"params": traverse_util.unflatten_dict(flat, sep="/")}
  apply = functools.partial(module.apply, method="encode" if name == "vae" else None)
  got = jax.jit(apply)(variables, *(x.numpy() for x in inputs))
  got = got[0] if name == "vae" else got
  # 2e-5: float32 sums in another order.
  np.testing.assert_allclose(got, want.numpy(), atol=2e-5 * float(want.abs().max()))


@pytest.mark.parity
@pytest.mark.parametrize(
  ("name", "dtype"), [("5b-i2v", "bfloat16"), ("1.5-5b-i2v", "float16"), ("vae", "bfloat16")]
)
def test_every_type_comes_back_bit_for_bit(name, dtype, tmp_path):
  model = make_cogvideox(name)
  for key, value in model.named_parameters():
    # Mixed, as some are published.
    if "norm" not in key:
      value.data = value.data.to(getattr(torch, dtype))
  published, _, back = through(name, model, tmp_path)
  assert {x[0] for x in tensors(published).values()} >= {"F32", {"b": "BF16", "f": "F16"}[dtype[0]]}
  assert tensors(back) == tensors(published)


def test_all_that_is_wrong_is_listed_at_once_and_nothing_is_written(tmp_path, capsys):
  model = make_cogvideox("1.5-5b")
  del model.proj_out.bias
  model.patch_embed.proj.weight.data = model.patch_embed.proj.weight.data[:, :8]
  model.transformer_blocks[1].attn1.extra = torch.nn.Linear(2, 2)
  model.save_pretrained(tmp_path / "published")
  line = refused(capsys, tmp_path / "published", tmp_path / "new", "flax")
  for text in (
    "4 tensors don't fit",
    "proj_out.bias is missing",
    "'transformer_blocks.1.attn1.extra.bias' is unexpected",
    "patch_embed.proj.weight has shape [32, 8], not [32, 32]",
  ):
    assert text in line
  assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_a_description_of_another_variant_is_refused(tmp_path, capsys):
  """Rotary and no positions have the same tensors: the configuration tells them apart."""
  _, ours, _ = through("5b", make_cogvideox("5b"), tmp_path)
  path = ours / "config.json"
  value = json.loads(path.read_text())
  value["fields"]["positions"] = "sine"
  path.write_text(json.dumps(value))
  capsys.readouterr()
  line = refused(capsys, ours, tmp_path / "new", "torch")
  assert "part and fields are not those of `published`" in line
