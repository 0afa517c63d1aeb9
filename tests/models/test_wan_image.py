"""The Wan models that start from a photograph: Wan2.1-I2V, and Wan2.2-TI2V with its clean frame."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from d4s_jax.config import PRESETS
from d4s_jax.models.backbone import Text, build
from d4s_jax.models.condition import Condition
from d4s_jax.models.wan.transformer import WanTransformer
from d4s_jax.weights.wan import TRANSFORMER
from tests.support import from_torch

SMALL = dict(dim=32, ffn_dim=48, heads=2, depth=2, out_channels=4, freq_dim=16)
# All but 512 tokens of context are the image's in diffusers.
LENGTH, TEXT, IMAGE = 512, 20, 24
BACKBONE = dict(
  family="wan",
  text_length=12,
  camera_channels=6,
  autoencoder=dict(base_dim=4, z_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1),
  text_encoder=dict(vocabulary=384, dim=16, heads=2, head_dim=8, ffn_dim=16, depth=1),
  image_encoder=dict(dim=16, ffn_dim=16, heads=2, depth=2, size=16, patch=8),
  transformer=dict(dim=24, ffn_dim=24, heads=2, depth=1),
)


@functools.cache
def _models(takes_image):
  """A PyTorch model, and our parameters' layout and function for it."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  torch.manual_seed(0)
  image = dict(image_dim=IMAGE, added_kv_proj_dim=32) if takes_image else {}
  model = diffusers.WanTransformer3DModel(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=12 if takes_image else 4,
    out_channels=4,
    text_dim=TEXT,
    freq_dim=16,
    ffn_dim=48,
    num_layers=2,
    **image,
  ).eval()
  for name, parameter in model.named_parameters():
    if "norm" in name and name.endswith("weight"):
      torch.nn.init.normal_(parameter, 1.0, 0.3)
  module = WanTransformer(**SMALL, takes_image=takes_image)
  inputs = _condition(jnp.zeros, 1, 1, 2, 2, takes_image)
  zeros = jnp.zeros((1, 1, 2, 2, 4)), jnp.zeros(1), jnp.zeros((1, LENGTH, TEXT)), None, inputs
  shapes = jax.eval_shape(
    functools.partial(module.init, method="denoise"), jax.random.key(0), *zeros
  )
  return torch, model, module, functools.partial(from_torch, TRANSFORMER, shapes)


def _condition(draw, batch, frames, height, width, takes_image):
  first = draw((batch, 1, height, width, 4))
  if not takes_image:
    return Condition(first)
  return Condition(first, draw((batch, frames, height, width, 4)), draw((batch, 5, IMAGE)))


def _arrays(values):
  return {name: value.detach().numpy() for name, value in values}


def _inputs(seed, batch, frames, height, width, takes_image):
  random = np.random.default_rng(seed)

  def draw(shape):
    return jnp.asarray(random.standard_normal(shape, np.float32))

  latents, text = draw((batch, frames, height, width, 4)), draw((batch, LENGTH, TEXT))
  condition = _condition(draw, batch, frames, height, width, takes_image)
  return latents, jnp.asarray(random.uniform(0, 1, batch).astype(np.float32)), text, condition


def _theirs(torch, model, latents, sigma, text, condition, dtype=None):
  """Theirs, as their pipelines call it; gives leaves that gather gradients too."""

  def tensor(x):
    return torch.from_numpy(np.array(x)).to(dtype).requires_grad_()

  leaves = jax.tree.map(tensor, (latents, text, condition))
  latents, text, condition = leaves
  frames, height, width = latents.shape[1:4]
  time = 1000.0 * torch.from_numpy(np.array(sigma))
  if condition.video is None:
    x = torch.cat([condition.first, latents[:, 1:]], dim=1)
    tokens = (torch.arange(frames) > 0).float().repeat_interleave(height * width // 4)
    time = time[:, None] * tokens[None]
  else:
    mask = latents.new_zeros(*latents.shape[:-1], 4)
    mask[:, 0] = 1.0
    x = torch.cat([latents, mask, condition.video], dim=-1)
  out = model(x.movedim(-1, 1), time, text, condition.image).sample.movedim(1, -1)
  return out, leaves


def _denoise(module, params, latents, sigma, text, condition):
  variables = {"params": params}
  return module.apply(variables, latents, sigma, text, None, condition, method="denoise")


@pytest.mark.parity
@pytest.mark.parametrize(
  "takes_image", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["i2v", "ti2v"]
)
def test_values_and_gradients_equal_diffusers(takes_image):
  torch, model, module, to_ours = _models(takes_image)
  latents, sigma, text, condition = _inputs(0, 2, 3, 4, 6, takes_image)
  model.zero_grad()
  want, leaves = _theirs(torch, model, latents, sigma, text, condition)
  weights = torch.randn_like(want)
  (want * weights).sum().backward()

  @jax.jit
  def ours(params, latents, text, condition):
    def objective(params, latents, text, condition):
      got = _denoise(module, params, latents, sigma, text, condition)
      return jnp.sum(got * weights.numpy()), got

    gradient = jax.value_and_grad(objective, (0, 1, 2, 3), has_aux=True)
    return gradient(params, latents, text, condition)

  params = to_ours(_arrays(model.state_dict().items()))
  (_, got), gradients = ours(params, latents, text, condition)
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(got, want.detach(), atol=1e-5)
  wanted = (
    to_ours({n: p.grad.numpy() for n, p in model.named_parameters()}),
    # Where theirs doesn't look there is no gradient at all.
    *jax.tree.map(
      lambda x: np.zeros(x.shape, np.float32) if x.grad is None else x.grad.numpy(), leaves
    ),
  )
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted), strict=True
  ):
    # 1e-4 of the largest entry: sums over all tokens.
    np.testing.assert_allclose(a, b, atol=1e-4 * max(np.abs(b).max(), 1e-2), err_msg=str(path))


@pytest.mark.parity
@pytest.mark.parametrize("takes_image", [True, False], ids=["i2v", "ti2v"])
def test_bfloat16_is_as_near_to_float32_as_that_of_diffusers(takes_image):
  torch, model, _, to_ours = _models(takes_image)
  # The same weights and inputs, which bfloat16 holds.
  half = copy.deepcopy(model).to(torch.bfloat16)
  whole = copy.deepcopy(half).float()
  latents, sigma, text, condition = _inputs(2, 2, 3, 4, 6, takes_image)

  def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)

  inputs = rounded(latents), sigma, rounded(text), jax.tree.map(rounded, condition)
  with torch.no_grad():
    want = _theirs(torch, whole, *inputs)[0].numpy()
    theirs = _theirs(torch, half, *inputs, torch.bfloat16)[0].float().numpy()
  params = to_ours(_arrays(whole.state_dict().items()))
  module = WanTransformer(**SMALL, takes_image=takes_image, dtype=jnp.bfloat16)
  ours = jax.jit(functools.partial(_denoise, module))(params, *inputs)
  error, allowed = np.std(ours - want), np.std(theirs - want)
  # Twice theirs: both round at other places.
  assert 0 < error < 2 * allowed and error < 0.05 * np.std(want)


# One frame, and grids of tokens with odd sides.
@pytest.mark.slow
@pytest.mark.parity
@settings(max_examples=12, phases=(Phase.explicit, Phase.generate), derandomize=True)
@given(
  takes_image=st.booleans(),
  batch=st.integers(1, 3),
  frames=st.integers(1, 4),
  rows=st.integers(1, 5),
  columns=st.integers(1, 7),
)
@example(takes_image=True, batch=1, frames=1, rows=1, columns=3)
@example(takes_image=False, batch=3, frames=1, rows=3, columns=1)
def test_every_shape_gives_what_diffusers_does(takes_image, batch, frames, rows, columns):
  torch, model, module, to_ours = _models(takes_image)
  inputs = _inputs(1, batch, frames, 2 * rows, 2 * columns, takes_image)
  with torch.no_grad():
    want, _ = _theirs(torch, model, *inputs)
  params = to_ours(_arrays(model.state_dict().items()))
  got = jax.jit(functools.partial(_denoise, module))(params, *inputs)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parity
def test_presets_have_the_parameter_count_of_diffusers():
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  with torch.device("meta"):
    model = diffusers.WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
  published = sum(p.numel() for p in model.parameters())
  for preset, shift in (("wan14b-i2v-480p", 3.0), ("wan14b-i2v-720p", 5.0)):
    backbone = build(PRESETS[preset]["backbone"] | {"family": "wan", "camera_channels": 6})
    params = jax.eval_shape(backbone.init, jax.random.key(0))
    cameras = params["transformer"].pop("camera")
    assert cameras
    ours = sum(x.size for x in jax.tree.leaves(params["transformer"]))
    assert ours == published == 16_394_878_784
    assert backbone.schedule.shift == shift


@pytest.fixture(scope="module")
def backbone():
  return build(BACKBONE)


@pytest.fixture(scope="module")
def params(backbone):
  """Random parameters in which nothing is exactly zero, so that every input has an effect."""
  draw = np.random.default_rng(0).standard_normal

  def parameter(path, leaf):
    return jnp.asarray(0.2 * draw(leaf.shape, np.float32) + (path[-1].key == "scale"))

  return jax.tree_util.tree_map_with_path(
    parameter, jax.eval_shape(backbone.init, jax.random.key(0))
  )


def test_the_condition_is_the_photograph_then_grey_and_what_clip_sees_in_it(backbone, params, key):
  frames = 5
  image = jax.random.uniform(key, (2, 16, 32, 3))
  got = jax.jit(backbone.condition, static_argnums=2)(params, image, frames)
  video = jnp.full((2, frames, 16, 32, 3), 0.5).at[:, 0].set(image)
  latents = jax.jit(backbone.encode)(params, video)
  np.testing.assert_allclose(got.video, latents, atol=1e-5)
  np.testing.assert_allclose(got.first, jax.jit(backbone.encode)(params, video[:, :1]), atol=1e-5)
  variables = {"params": params["image_encoder"]}
  tokens, _ = jax.jit(backbone.image_encoder.apply)(variables, image)
  np.testing.assert_allclose(got.image, tokens, atol=1e-5)


def test_image_to_video_hears_every_condition(backbone, params, key):
  keys = jax.random.split(key, 4)
  latents = jax.random.normal(keys[0], backbone.latent_shape(1, 5, 16, 32))
  maps = jax.random.normal(keys[1], (1, 5, 16, 32, 6))
  text = Text(jax.random.normal(keys[2], (1, 12, 16)), jnp.ones((1, 12), bool))
  sigma = jnp.full(1, 0.5)
  condition = jax.jit(backbone.condition, static_argnums=2)(
    params, jax.random.uniform(keys[3], (1, 16, 32, 3)), 5
  )
  denoise = jax.jit(backbone.denoise)
  velocity = denoise(params, latents, sigma, text, maps, condition)
  others = (
    denoise(params, latents, sigma, text, maps, condition._replace(video=condition.video + 1.0)),
    denoise(params, latents, sigma, text, maps, condition._replace(image=-condition.image)),
    denoise(params, latents, sigma, text, jnp.zeros_like(maps), condition),
    denoise(params, latents, sigma, text._replace(embeddings=-text.embeddings), maps, condition),
    # The noisy first latents count, unlike where the clean ones replace them.
    denoise(params, latents.at[:, 0].add(1.0), sigma, text, maps, condition),
  )
  for other in others:
    assert np.abs(velocity - other).max() > 1e-3
  for wrong, message in ((None, "got none"), (Condition(condition.first), "only its latents")):
    with pytest.raises(ValueError, match=f"{message}.*Backbone.condition"):
      backbone.denoise(params, latents, sigma, text, maps, wrong)


def test_cameras_that_are_not_trained_change_no_bit(backbone, params, key):
  latents = jax.random.normal(key, backbone.latent_shape(1, 5, 16, 32))
  text = Text(jax.random.normal(key, (1, 12, 16)), jnp.ones((1, 12), bool))
  condition = _condition(lambda shape: jax.random.normal(key, shape), 1, 2, 2, 4, True)
  condition = condition._replace(image=condition.image[..., :16])
  camera = params["transformer"]["camera"]
  kernel = jnp.zeros_like(camera["projection"]["kernel"])
  camera = camera | {"projection": {"kernel": kernel}}
  params = params | {"transformer": params["transformer"] | {"camera": camera}}
  maps = 100.0 * jax.random.normal(key, (1, 5, 16, 32, 6))
  args = params, latents, jnp.full(1, 0.5), text
  np.testing.assert_array_equal(
    jax.jit(backbone.denoise)(*args, maps, condition),
    jax.jit(backbone.denoise)(*args, None, condition),
  )
