"""CogVideoX's transformer against diffusers at every shape, and in bfloat16."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d4s_jax.models.cogvideox.transformer import CogVideoXTransformer
from tests.models.cogvideox_oracle import (
  channel_last,
  rotary,
  torch_transformer,
  transformer_parameters,
)
from tests.models.test_cogvideox_transformer import SMALL, VARIANTS

torch = pytest.importorskip("torch")


def _models(variant, grid, **changes):
  """A PyTorch model, ours, and ours' parameters; `grid` is what learnt positions are made for."""
  torch.manual_seed(0)
  config = SMALL | VARIANTS[variant] | changes
  if config.get("positions") == "learned":
    config |= dict(grid=grid)
  model = torch_transformer(config, text_dim=20)
  with torch.no_grad():
    for value in model.state_dict().values():
      value.add_(0.1 * torch.randn_like(value))
  return config, model, CogVideoXTransformer(**config)


def _inputs(model, config, batch, grid, length):
  """Random latents of a grid of tokens, words, timesteps, and what diffusers wants besides."""
  frames, rows, columns = (n * p for n, p in zip(grid, config.get("patch", (1, 2, 2))))
  latents = torch.randn(batch, frames, model.config.in_channels, rows, columns)
  text, time = torch.randn(batch, length, 20), torch.linspace(17.0, 900.0, batch)
  offset = torch.full((1,), 2.0) if config.get("offset") else None
  return latents, text, time, dict(ofs=offset, image_rotary_emb=rotary(config, *grid))


def _parameters(model, config):
  values = {name: x.float().numpy() for name, x in model.state_dict().items()}
  return {"params": transformer_parameters(values, config)}


def _check(variant, batch, grid, length):
  # They add positions to a text of full length alone.
  length = SMALL["text_length"] if "positions" in VARIANTS[variant] else length
  config, model, module = _models(variant, grid, depth=1)
  latents, text, time, more = _inputs(model, config, batch, grid, length)
  with torch.no_grad():
    want = channel_last(model(latents, text, time, **more).sample)
  inputs = channel_last(latents), time.numpy(), text.numpy()
  got = jax.jit(module.apply)(_parameters(model, config), *inputs)
  # 1e-4 of the largest: float32 sums in another order.
  np.testing.assert_allclose(got, want, atol=1e-4 * max(1.0, np.abs(want).max()))


@pytest.mark.parity
@pytest.mark.parametrize(
  ("variant", "batch", "grid", "length"),
  [("2b", 3, (1, 1, 1), 7), ("1.5-5b-i2v", 1, (1, 3, 5), 1), ("5b-i2v", 2, (3, 5, 1), 7)],
)
def test_one_frame_one_token_and_odd_numbers_of_them_equal_diffusers(variant, batch, grid, length):
  _check(variant, batch, grid, length)


@pytest.mark.parity
@pytest.mark.slow
@settings(max_examples=40)
@given(
  variant=st.sampled_from([*VARIANTS]),
  batch=st.integers(1, 3),
  grid=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
  length=st.integers(1, 7),
)
def test_every_shape_equals_diffusers(variant, batch, grid, length):
  _check(variant, batch, grid, length)


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_as_near_to_float32_as_that_of_diffusers(variant):
  grid = (2, 2, 3)
  config, model, _ = _models(variant, grid)
  half = model.to(torch.bfloat16)
  # The same weights and inputs, which bfloat16 holds.
  full = copy.deepcopy(half).float()
  latents, text, time, more = _inputs(half, config, 2, grid, SMALL["text_length"])
  latents, text = latents.bfloat16(), text.bfloat16()
  with torch.no_grad():
    want = channel_last(full(latents.float(), text.float(), time, **more).sample)
    theirs = channel_last(half(latents, text, time, **more).sample.float())
  ours = CogVideoXTransformer(**config, dtype=jnp.bfloat16)
  inputs = channel_last(latents.float()), time.numpy(), text.float().numpy()
  got = jax.jit(ours.apply)(_parameters(half, config), *inputs)

  def error(x):
    return np.sqrt(np.mean((np.asarray(x) - want) ** 2) / np.mean(want**2))

  # Eight bits of mantissa through two blocks: about 0.6% for both. 1.3: they round in other places.
  assert error(got) < min(0.01, 1.3 * error(theirs))
