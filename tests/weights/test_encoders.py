"""CLIP and DINO read from the folders of transformers: the same embeddings, strict about files."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from d4s_jax.evaluation import semantics
from d4s_jax.models.clip import preprocess
from d4s_jax.weights import encoders

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
SIDE = 32


def shaken(model):
  """Random weights in which nothing is at its initial 0 or 1."""
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  torch.manual_seed(0)
  config = transformers.CLIPConfig(
    text_config=COMMON | dict(vocab_size=60, max_position_embeddings=12),
    vision_config=COMMON | dict(image_size=SIDE, patch_size=8),
    projection_dim=16,
  )
  model = shaken(transformers.CLIPModel(config))
  folder = tmp_path_factory.mktemp("clip")
  model.save_pretrained(folder)
  return folder, model


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
  config = transformers.ViTConfig(**COMMON, image_size=SIDE, patch_size=8)
  model = shaken(transformers.ViTModel(config, add_pooling_layer=False))
  folder = tmp_path_factory.mktemp("dino")
  model.save_pretrained(folder)
  return folder, model


def pictures(count=3, side=SIDE):
  return np.random.default_rng(0).random((count, side, side, 3), np.float32)


def planes(x):
  return torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())


@pytest.mark.parity
def test_clip_embeds_pictures_and_texts_as_transformers_does(clip):
  folder, model = clip
  ours = encoders.read_clip(folder)
  images = pictures()
  with torch.no_grad():
    seen = model.visual_projection(
      model.vision_model(planes(preprocess(jnp.asarray(images), SIDE))).pooler_output
    )
    # 59, the highest id, ends a text; what follows pads it.
    tokens = np.array([[1, 7, 30, 59, 59, 59], [1, 2, 3, 4, 5, 59]], np.int32)
    ids = torch.from_numpy(tokens).long()
    states = model.text_model(ids).last_hidden_state
    read = model.text_projection(states[torch.arange(2), torch.tensor([3, 5])])
  np.testing.assert_allclose(semantics.embed(ours.vision, images), seen, atol=1e-5)
  found = ours.text.module.apply({"params": ours.text.params}, jnp.asarray(tokens))
  np.testing.assert_allclose(found, read, atol=1e-5)


@pytest.mark.parity
def test_dino_embeds_pictures_as_transformers_does(dino):
  folder, model = dino
  images = pictures()
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  with torch.no_grad():
    want = model(planes(((images - mean) / std).astype(np.float32))).last_hidden_state[:, 0]
  np.testing.assert_allclose(semantics.embed(encoders.read_dino(folder), images), want, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(40, 56), (72, 24), (32, 64), (64, 65)])
def test_dino_keeps_the_aspect_and_interpolates_positions_as_its_own_code_does(
  dino, size, monkeypatch
):
  """The rest is that of transformers, whose positions are others where a picture isn't square."""
  folder, model = dino

  def positions(self, embeddings, height, width):
    """By a factor of the patches and a tenth of one, as facebookresearch/dino does it."""
    if height == width:  # of the resized picture
      return self.position_embeddings
    first, rest = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
    side = round(rest.shape[1] ** 0.5)
    grid = rest.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = [(pixels // self.patch_size + 0.1) / side for pixels in (height, width)]
    grid = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)

  monkeypatch.setattr(type(model.embeddings), "interpolate_pos_encoding", positions)
  images = np.random.default_rng(1).random((2, *size, 3), np.float32)
  resized = tuple(SIDE * side // min(size) for side in size)
  mean, std = (
    torch.tensor(x).reshape(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
  )
  with torch.no_grad():
    pixels = torch.nn.functional.interpolate(planes(images), resized, mode="bilinear")
    want = model((pixels - mean) / std, interpolate_pos_encoding=True).last_hidden_state[:, 0]
  found = semantics.embed(encoders.read_dino(folder), images)
  np.testing.assert_allclose(found, want, atol=1e-5)


def damaged(folder, tmp_path, change):
  config = json.loads((folder / "config.json").read_text())
  tensors = load_file(folder / "model.safetensors")
  change(config, tensors)
  (tmp_path / "config.json").write_text(json.dumps(config))
  save_file(tensors, tmp_path / "model.safetensors")
  return tmp_path


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda c, t: t.pop("visual_projection.weight"), "visual_projection.weight is missing"),
    (lambda c, t: t.update(more=np.zeros(1, np.float32)), "'more' is unexpected"),
    (lambda c, t: c["text_config"].update(hidden_act="relu"), "hidden_act is 'relu'"),
    (lambda c, t: c["vision_config"].update(image_size=36), "describes no model"),
    (lambda c, t: c.update(architectures=["BertModel"]), "holds a 'BertModel'; expected a CLIP"),
    (lambda c, t: c.pop("text_config"), "without vision_config and text_config"),
  ],
)
def test_what_is_no_clip_is_refused(clip, tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    encoders.read_clip(damaged(clip[0], tmp_path, change))


def test_what_no_embedding_depends_on_may_be_there_and_the_identity_tells_weights_apart(
  dino, tmp_path
):
  def pooled(config, tensors):
    tensors["pooler.dense.weight"] = np.zeros((32, 32), np.float32)
    tensors["pooler.dense.bias"] = np.zeros(32, np.float32)

  folder = damaged(dino[0], tmp_path, pooled)
  encoders.read_dino(folder)
  found, other = encoders.identity(folder).split(), encoders.identity(dino[0]).split()
  # As the hub shows it of a file of weights; what isn't read changes nothing.
  (folder / "preprocessor_config.json").write_text("{}")
  assert encoders.identity(folder).split() == found
  digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
  assert found[:2] == ["model.safetensors", f"sha256:{digest[:16]}"] and found[1] != other[1]
  assert [found[2], other[2]] == ["config.json"] * 2
  with pytest.raises(ValueError, match="expected a CLIPModel"):
    encoders.read_clip(folder)
