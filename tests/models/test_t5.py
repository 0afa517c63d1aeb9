import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d4s_jax.config import PRESETS
from d4s_jax.models.t5 import T5Encoder, relative_buckets
from d4s_jax.weights.t5 import ALIASES, ENCODER
from tests.support import from_torch

SMALL = dict(vocabulary=50, dim=24, depth=2, heads=3, head_dim=8, ffn_dim=40)


def _torch_model(per_layer_bias, config, device="cpu"):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  family = ("UMT5Config", "UMT5EncoderModel") if per_layer_bias else ("T5Config", "T5EncoderModel")
  make_config, make_model = (getattr(transformers, name) for name in family)
  with torch.device(device):
    return make_model(
      make_config(
        vocab_size=config["vocabulary"],
        d_model=config["dim"],
        d_kv=config["head_dim"],
        d_ff=config["ffn_dim"],
        num_layers=config["depth"],
        num_heads=config["heads"],
        feed_forward_proj="gated-gelu",
      )
    ).eval()


@pytest.mark.parity
@pytest.mark.parametrize("per_layer_bias", [True, False], ids=["umt5", "t5"])
def test_equals_transformers(per_layer_bias):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = _torch_model(per_layer_bias, SMALL)
  for parameter in model.parameters():
    if parameter.ndim == 1:
      torch.nn.init.normal_(parameter, 1.0, 0.2)
  tokens = torch.randint(2, 50, (3, 40))
  mask = torch.arange(40)[None] < torch.tensor([[40], [25], [1]])
  with torch.no_grad():
    want = model(tokens, mask.long()).last_hidden_state.numpy()

  encoder = T5Encoder(**SMALL, per_layer_bias=per_layer_bias)
  tokens, mask = tokens.numpy(), mask.numpy()
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens, mask)
  # The embedding has a second name, of which safetensors keep one.
  values = {name: x.numpy() for name, x in model.state_dict().items() if name not in ALIASES}
  variables = {"params": from_torch(ENCODER, shapes, values)}
  got = jax.jit(encoder.apply)(variables, tokens, mask)
  # 2e-5: float32 sums in another order; where the mask is False the values mean nothing.
  np.testing.assert_allclose(got[mask], want[mask], atol=2e-5)


def _pair(per_layer_bias, dtype="float32"):
  """A PyTorch model of numbers that `dtype` holds, and ours with the same parameters."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = _torch_model(per_layer_bias, SMALL)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model = model.to(getattr(torch, dtype))
  encoder = T5Encoder(**SMALL, per_layer_bias=per_layer_bias, dtype=jnp.dtype(dtype))
  tokens = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens, tokens == 0)
  values = {n: x.float().numpy() for n, x in model.state_dict().items() if n not in ALIASES}
  return torch, model, encoder, {"params": from_torch(ENCODER, shapes, values)}


@pytest.mark.parity
@settings(max_examples=4)
@given(
  per_layer_bias=st.booleans(),
  lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
  padding=st.integers(0, 5),
)
@example(per_layer_bias=False, lengths=[1], padding=0)
def test_every_shape_equals_transformers(per_layer_bias, lengths, padding):
  torch, model, encoder, variables = _pair(per_layer_bias)
  size = max(lengths) + padding
  tokens = torch.randint(2, 50, (len(lengths), size))
  mask = torch.arange(size)[None] < torch.tensor(lengths)[:, None]
  with torch.no_grad():
    want = model(tokens, mask.long()).last_hidden_state.numpy()
  tokens, mask = tokens.numpy(), mask.numpy()
  got = jax.jit(encoder.apply)(variables, tokens, mask)
  # 1e-4: float32 sums in another order; where the mask is False the values mean nothing.
  np.testing.assert_allclose(got[mask], want[mask], atol=1e-4 * max(1.0, np.abs(want).max()))


@pytest.mark.parity
@pytest.mark.parametrize("per_layer_bias", [True, False], ids=["umt5", "t5"])
def test_bfloat16_is_as_near_to_float32_as_that_of_transformers(per_layer_bias):
  torch, half, encoder, variables = _pair(per_layer_bias, "bfloat16")
  full = copy.deepcopy(half).float()
  tokens, mask = torch.randint(2, 50, (3, 20)), torch.ones(3, 20, dtype=torch.bool)
  with torch.no_grad():
    want, theirs = (
      model(tokens, mask.long()).last_hidden_state.float().numpy() for model in (full, half)
    )
  got = jax.jit(encoder.apply)(variables, tokens.numpy(), mask.numpy())

  def error(x):
    return np.sqrt(np.mean((np.asarray(x, np.float32) - want) ** 2) / np.mean(want**2))

  # Eight bits of mantissa through two blocks: about 0.5% for both. 1.3: they round in other places.
  assert error(got) < min(0.01, 1.3 * error(theirs)), (error(got), error(theirs))


@pytest.mark.parity
def test_buckets_equal_transformers_at_every_distance():
  torch = pytest.importorskip("torch")
  attention = _torch_model(False, SMALL).encoder.block[0].layer[0].SelfAttention
  # A bias that is its own bucket number.
  attention.relative_attention_bias.weight.data[:, 0] = torch.arange(32)
  want = attention.compute_bias(512, 512)[0, 0].detach().numpy()
  np.testing.assert_array_equal(relative_buckets(512, 32, 128), want)


def test_buckets_by_hand():
  buckets = relative_buckets(300, 32, 128)
  assert buckets[0, 0] == 0 and buckets[0, 7] == 23 and buckets[7, 0] == 7
  assert buckets[0, 8] == 24 and buckets[8, 0] == 8
  assert buckets[0, 299] == 31 and buckets[299, 0] == 15


def test_hidden_tokens_do_not_show(key):
  encoder = T5Encoder(**SMALL)
  tokens = jax.random.randint(key, (1, 12), 2, 50)
  mask = jnp.arange(12)[None] < 5
  params = jax.jit(encoder.init)(key, tokens, mask)
  changed = tokens.at[:, 5:].set(3)
  apply = jax.jit(encoder.apply)
  got = apply(params, tokens, mask), apply(params, changed, mask)
  np.testing.assert_array_equal(got[0][:, :5], got[1][:, :5])
  assert not np.allclose(got[0][:, 5:], got[1][:, 5:])


@pytest.mark.parity
@pytest.mark.parametrize(("per_layer_bias", "vocabulary"), [(True, 256384), (False, 32128)])
def test_full_sizes_have_the_published_parameter_count(per_layer_bias, vocabulary):
  """umT5-XXL, which every Wan model reads its prompts with, and T5-v1.1-XXL."""
  config = PRESETS["wan1.3b"]["backbone"]["text_encoder"]
  assert config["vocabulary"] == 256384
  config = config | {"per_layer_bias": per_layer_bias, "vocabulary": vocabulary}
  tokens = jnp.zeros((1, 8), jnp.int32)
  shapes = jax.eval_shape(T5Encoder(**config).init, jax.random.key(0), tokens, tokens > 0)
  ours = sum(x.size for x in jax.tree.leaves(shapes))
  model = _torch_model(config["per_layer_bias"], config, "meta")
  assert ours == sum(p.numel() for p in model.parameters())
