import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d4s_jax.config import PRESETS
from d4s_jax.models.wan.transformer import WanTransformer

# Compiled without LLVM's optimiser: these networks run once.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = dict(dim=32, ffn_dim=48, heads=2, depth=2, out_channels=4, freq_dim=16, strides=(4, 8, 8))
# Ours to those of diffusers; a leading "blocks/" is a stack over layers.
NAMES = {
  "patch_embedding": "patch_embedding",
  "time/in": "condition_embedder.time_embedder.linear_1",
  "time/out": "condition_embedder.time_embedder.linear_2",
  "time/modulation": "condition_embedder.time_proj",
  "text/in": "condition_embedder.text_embedder.linear_1",
  "text/out": "condition_embedder.text_embedder.linear_2",
  "modulation": "scale_shift_table",
  "head": "proj_out",
  "blocks/modulation": "scale_shift_table",
  "blocks/cross_norm": "norm2",
  "blocks/mlp_in": "ffn.net.0.proj",
  "blocks/mlp_out": "ffn.net.2",
}
for _ours, _theirs in (("self", "attn1"), ("cross", "attn2")):
  for _name, _torch in dict(query="q", key="k", value="v").items():
    NAMES[f"blocks/{_ours}_attention/{_name}"] = f"{_theirs}.to_{_torch}"
    if _name != "value":
      NAMES[f"blocks/{_ours}_attention/{_name}_norm"] = f"{_theirs}.norm_{_torch}"
  NAMES[f"blocks/{_ours}_attention/out"] = f"{_theirs}.to_out.0"


def _torch_model(config, text_dim, device="cpu"):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  with torch.device(device):
    return diffusers.WanTransformer3DModel(
      num_attention_heads=config["heads"],
      attention_head_dim=config["dim"] // config["heads"],
      in_channels=config.get("out_channels", 16),
      out_channels=config.get("out_channels", 16),
      text_dim=text_dim,
      freq_dim=config.get("freq_dim", 256),
      ffn_dim=config["ffn_dim"],
      num_layers=config["depth"],
    ).eval()


def _parameters(values):
  """Our tree of the named arrays of a PyTorch model: its weights or their gradients."""
  tree = {}
  for ours, theirs in NAMES.items():
    stacked = ours.startswith("blocks/")
    pattern = (r"blocks\.(\d+)\." if stacked else "") + re.escape(theirs) + r"(\.weight|\.bias|)"
    for name in values:
      if not (match := re.fullmatch(pattern, name)):
        continue
      leaf = {".weight": "kernel", ".bias": "bias", "": None}[match[match.lastindex]]
      leaf = "scale" if leaf == "kernel" and "norm" in ours else leaf
      if stacked and match[1] != "0":
        continue
      names = [re.sub(r"^blocks\.0\.", f"blocks.{i}.", name) for i in range(2 if stacked else 1)]
      value = [_layout(values[n], leaf) for n in names]
      value = np.stack(value) if stacked else value[0]
      *path, last = [*ours.split("/"), *([leaf] if leaf else [])]
      functools.reduce(lambda t, key: t.setdefault(key, {}), path, tree)[last] = value
  return tree


def _layout(value, leaf):
  if leaf is None:
    return value[0]
  return np.moveaxis(value, (0, 1), (-1, -2)) if leaf == "kernel" else value


@pytest.fixture(scope="module")
def case():
  """A PyTorch model, ours with the same random weights, and inputs."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = _torch_model(SMALL, text_dim=20)
  for name, parameter in model.named_parameters():
    if "norm" in name and name.endswith("weight"):
      torch.nn.init.normal_(parameter, 1.0, 0.3)
  latents, text = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 7, 20)
  times = {
    "sample": torch.tensor([900.0, 17.0]),
    "token": torch.tensor([[0.0] * 6 + [900.0] * 12, list(range(18))]),
  }
  params = _parameters({n: v.numpy() for n, v in model.state_dict().items()})
  return torch, model, params, latents, text, times


def _channel_last(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


@functools.cache
def _forward(**changes):
  module = WanTransformer(**(SMALL | changes))
  return jit(lambda params, *args: module.apply({"params": params}, *args))


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["sample", "token"])
def test_values_and_gradients_equal_diffusers(case, mode):
  torch, model, params, latents, text, times = case
  latents, text = latents.clone().requires_grad_(), text.clone().requires_grad_()
  model.zero_grad()
  velocity = model(latents, times[mode], text).sample
  weights = torch.randn_like(velocity)
  (velocity * weights).sum().backward()

  @jit
  def ours(params, latents, text):
    def objective(params, latents, text):
      module = WanTransformer(**SMALL)
      got = module.apply({"params": params}, latents, jnp.asarray(times[mode].numpy()), text)
      return jnp.sum(got * _channel_last(weights)), got

    return jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(params, latents, text)

  (_, got), gradients = ours(params, _channel_last(latents), text.detach().numpy())
  # 1e-5: float32 sums in another order.
  np.testing.assert_allclose(got, _channel_last(velocity), atol=1e-5)
  wanted = (
    _parameters({n: p.grad.numpy() for n, p in model.named_parameters()}),
    _channel_last(latents.grad),
    text.grad.numpy(),
  )
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted), strict=True
  ):
    # 1e-4 of the largest entry: sums over all tokens.
    np.testing.assert_allclose(a, b, atol=1e-4 * max(np.abs(b).max(), 1e-2), err_msg=str(path))


@pytest.mark.parity
def test_tree_is_that_of_the_module_and_the_cameras_alone_are_ours(case):
  _, _, params, latents, text, _ = case
  maps = jnp.zeros((2, 9, 32, 48, 6))
  shapes = jax.eval_shape(
    WanTransformer(**SMALL).init,
    jax.random.key(0),
    _channel_last(latents),
    jnp.zeros(2),
    text.numpy(),
    maps,
  )
  shapes = jax.tree.map(jnp.shape, nn.unbox(shapes)["params"])
  assert shapes.pop("camera").keys() == {"adapter", "projection"}
  assert shapes == jax.tree.map(jnp.shape, params)


@pytest.fixture(scope="module")
def trained():
  """Parameters without any zeros left, but for the camera projection; inputs."""
  keys = jax.random.split(jax.random.key(1), 5)
  latents = jax.random.normal(keys[0], (2, 3, 4, 6, 4))
  text = jax.random.normal(keys[1], (2, 7, 20))
  maps = 100.0 * jax.random.normal(keys[2], (2, 9, 32, 48, 6))
  module = WanTransformer(**SMALL)
  params = nn.unbox(jit(module.init)(keys[3], latents, jnp.zeros(2), text, maps))["params"]
  params["head"]["kernel"] = jax.random.normal(keys[4], params["head"]["kernel"].shape)
  return params, latents, jnp.array([300.0, 800.0]), text, maps


def test_untrained_cameras_change_no_bit(trained):
  params, latents, time, text, maps = trained
  np.testing.assert_array_equal(
    _forward()(params, latents, time, text, maps), _forward()(params, latents, time, text)
  )


def test_trained_cameras_change_the_output_and_zero_maps_are_no_camera(trained):
  params, latents, time, text, maps = trained
  kernel = jax.random.normal(jax.random.key(2), params["camera"]["projection"]["kernel"].shape)
  params = params | {"camera": params["camera"] | {"projection": {"kernel": kernel}}}
  without = _forward()(params, latents, time, text)
  got = _forward()(params, latents, time, text, maps.at[1].set(0.0))
  assert np.abs(got[0] - without[0]).max() > 0.1
  np.testing.assert_array_equal(got[1], without[1])


def test_a_timestep_a_frame_equals_the_same_for_each_of_its_tokens(trained):
  params, latents, _, text, _ = trained
  frames = jnp.array([[0.0, 10.0, 20.0], [5.0, 500.0, 900.0]])
  by_frame = _forward()(params, latents, frames, text)
  by_token = _forward()(params, latents, jnp.repeat(frames, 6, axis=1), text)
  np.testing.assert_allclose(by_frame, by_token, atol=1e-5)


def test_denoise_puts_the_clean_first_frame_at_time_zero(trained):
  params, latents, _, text, maps = trained
  first = 3.0 + latents[:, :1]
  sigma = jnp.array([0.3, 0.8])
  module = WanTransformer(**SMALL)
  denoise = jit(lambda *a: module.apply({"params": params}, *a, method="denoise"))
  got = denoise(latents, sigma, text, maps, first)
  replaced = jnp.concatenate([first, latents[:, 1:]], axis=1)
  times = 1000 * sigma[:, None] * jnp.array([[0.0, 1.0, 1.0]])
  want = _forward()(params, replaced, times, text, maps)
  np.testing.assert_allclose(got, want, atol=1e-5)
  without = denoise(latents, sigma, text, None, None)
  np.testing.assert_allclose(without, _forward()(params, latents, 1000 * sigma, text), atol=1e-5)


def test_remat_and_bfloat16_give_the_same_velocity(trained):
  params, latents, time, text, _ = trained
  want = _forward()(params, latents, time, text)
  np.testing.assert_allclose(_forward(remat=True)(params, latents, time, text), want, atol=1e-5)
  half = _forward(dtype=jnp.bfloat16)(params, latents, time, text)
  assert half.dtype == jnp.float32
  # 5% of the spread: eight bits of mantissa through two blocks.
  assert float(jnp.std(half - want)) < 0.05 * float(jnp.std(want))


def _sizes(preset):
  if preset == "wan5b":  # Wan2.2-TI2V-5B, which is no preset yet: its autoencoder is missing.
    return dict(dim=3072, ffn_dim=14336, heads=24, depth=30, out_channels=48)
  model = PRESETS[preset]["backbone"]
  return model["transformer"] | {"out_channels": model["autoencoder"]["z_dim"]}


@pytest.mark.parity
@pytest.mark.parametrize("preset", ["wan1.3b", "wan14b", "wan5b", "paper", "tiny"])
def test_presets_have_the_parameter_count_of_diffusers(preset):
  config = _sizes(preset)
  channels = config["out_channels"]
  shapes = jax.eval_shape(
    WanTransformer(**config).init,
    jax.random.key(0),
    jnp.zeros((1, 2, 2, 2, channels)),
    jnp.zeros(1),
    jnp.zeros((1, 8, 4096)),
  )
  ours = sum(x.size for x in jax.tree.leaves(shapes))
  model = _torch_model(config, 4096, "meta")
  assert ours == sum(p.numel() for p in model.parameters())


def test_every_parameter_is_cut_along_one_axis_at_most():
  shapes = jax.eval_shape(
    WanTransformer(**_sizes("wan1.3b")).init,
    jax.random.key(0),
    jnp.zeros((1, 2, 2, 2, 16)),
    jnp.zeros(1),
    jnp.zeros((1, 8, 4096)),
  )
  params = nn.unbox(shapes)["params"]
  specs = nn.get_partition_spec(shapes)["params"]
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    spec = functools.reduce(lambda t, key: t[key.key], path, specs)
    assert list(spec).count("embed") <= 1
    if value.size > 1_000_000:
      assert "embed" in spec, path
