import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from d4s_jax.config import PRESETS
from d4s_jax.models.clip import CLIPVision, preprocess
from d4s_jax.weights.clip import ENCODER
from tests.support import from_torch

SMALL = dict(dim=32, ffn_dim=48, heads=2, depth=3, size=28, patch=7, projection_dim=12)


def torch_encoder(config, device="cpu"):
  """The model of transformers of our fields, with projection or not."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  projection = config.get("projection_dim")
  name = "CLIPVisionModel" + ("" if projection is None else "WithProjection")
  settings = transformers.CLIPVisionConfig(
    hidden_size=config["dim"],
    intermediate_size=config["ffn_dim"],
    num_attention_heads=config["heads"],
    num_hidden_layers=config["depth"],
    image_size=config["size"],
    patch_size=config["patch"],
    projection_dim=projection or 512,
    hidden_act="gelu",
  )
  with torch.device(device):
    return getattr(transformers, name)(settings).eval()


def encoder_parameters(model, config):
  """Our parameters with the weights of a model of transformers."""
  shapes = jax.eval_shape(CLIPVision(**config).init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
  values = {
    name if name.startswith(("vision_model.", "visual")) else f"vision_model.{name}": x.numpy()
    for name, x in model.state_dict().items()
  }
  return from_torch(ENCODER, shapes, values)


@pytest.mark.parity
@pytest.mark.parametrize("projected", [True, False], ids=["projected", "plain"])
def test_both_outputs_equal_transformers(projected):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  config = SMALL if projected else SMALL | {"projection_dim": None}
  model = torch_encoder(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
    image = torch.rand(2, 3, 28, 28)
    pixels = preprocess(jnp.asarray(image.movedim(1, -1).numpy()), 28)
    out = model(torch.from_numpy(np.moveaxis(np.array(pixels), -1, 1)), output_hidden_states=True)
  params = encoder_parameters(model, config)
  apply = jax.jit(lambda params, x: CLIPVision(**config).apply({"params": params}, x))
  tokens, embedding = apply(params, image.movedim(1, -1).numpy())
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(tokens, out.hidden_states[-2], atol=1e-5)
  want = out.image_embeds if projected else out.pooler_output
  np.testing.assert_allclose(embedding, want, atol=1e-5)


@pytest.mark.parity
@settings(max_examples=15, phases=(Phase.generate,))
@given(height=st.integers(20, 300), width=st.integers(20, 300), size=st.sampled_from([224, 56, 33]))
def test_preprocessing_equals_transformers(height, width, size):
  transformers = pytest.importorskip("transformers")
  image = pytest.importorskip("PIL.Image")
  random = np.random.default_rng(height * 1000 + width)
  # No blacks and whites: between its passes Pillow clips what is beyond, and versions disagree.
  coarse = random.integers(64, 192, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
  pixels = np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:height, :width]
  processor = transformers.CLIPImageProcessor(
    size={"shortest_edge": size}, crop_size={"height": size, "width": size}
  )
  want = processor(image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
  got = preprocess(jnp.asarray(pixels)[None] / 255.0, size)[0]
  # Two levels of 255 over the deviation: they round to 8 bits twice.
  np.testing.assert_allclose(np.moveaxis(got, -1, 0), want, atol=2 / 255 / 0.26)


@pytest.mark.parity
def test_the_published_size_has_the_parameter_count_of_transformers():
  config = PRESETS["wan14b-i2v-480p"]["backbone"]["image_encoder"]
  shapes = jax.eval_shape(CLIPVision(**config).init, jax.random.key(0), jnp.zeros((1, 64, 48, 3)))
  ours = sum(x.size for x in jax.tree.leaves(shapes))
  assert ours == sum(p.numel() for p in torch_encoder(config, "meta").parameters()) == 630_766_080


@pytest.mark.parity
def test_bfloat16_is_as_near_to_float32_as_that_of_transformers():
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  # The same weights and inputs, which bfloat16 holds.
  half = torch_encoder(SMALL).to(torch.bfloat16)
  whole = torch_encoder(SMALL)
  whole.load_state_dict({name: x.float() for name, x in half.state_dict().items()})
  image = torch.rand(2, 28, 28, 3).numpy()
  pixels = torch.from_numpy(np.array(preprocess(jnp.asarray(image), 28))).movedim(-1, 1).bfloat16()
  with torch.no_grad():
    wanted, theirs = (
      (out.hidden_states[-2].float().numpy(), out.image_embeds.float().numpy())
      for model, x in ((whole, pixels.float()), (half, pixels))
      for out in [model(x, output_hidden_states=True)]
    )
  module = CLIPVision(**SMALL, dtype=jnp.bfloat16)
  got = jax.jit(module.apply)({"params": encoder_parameters(whole, SMALL)}, image)
  for ours, other, want in zip(got, theirs, wanted, strict=True):
    assert ours.dtype == jnp.bfloat16
    error, allowed = np.std(np.asarray(ours, np.float32) - want), np.std(other - want)
    # Twice theirs: both round at other places.
    assert 0 < error < 2 * allowed and error < 0.02 * np.std(want)
